"""InfoNCE against the dense formula written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synchformer_jax.objectives import contrastive


def unit(rng, *shape):
    values = rng.standard_normal(shape)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def dense(visual, audio, clips, temperature):
    """Published formula on [B, S, D]: groups of clips, cross-entropy of rows and of columns, mean."""
    losses = []
    for start in range(0, len(visual), clips):
        v, a = (x[start : start + clips].reshape(-1, x.shape[-1]).astype(np.float64) for x in (visual, audio))
        similarities = v @ a.T / temperature
        rows = np.log(np.exp(similarities).sum(1)) - np.diag(similarities)
        columns = np.log(np.exp(similarities).sum(0)) - np.diag(similarities)
        losses.append((rows.mean() + columns.mean()) / 2)
    return np.mean(losses)


@pytest.mark.parametrize("clips", [1, 2, 3, 6])
@pytest.mark.parametrize("chunk", [0, 7])
def test_equals_the_dense_formula_for_every_grouping(clips, chunk):
    rng = np.random.default_rng(0)
    visual, audio = unit(rng, 6, 14, 24), unit(rng, 6, 14, 24)
    grouped = [contrastive.group_clips(jnp.asarray(x), clips) for x in (visual, audio)]
    assert contrastive.info_nce(*grouped, 0.07, chunk=chunk) == pytest.approx(
        dense(visual, audio, clips, 0.07), rel=1e-5
    )


def test_zero_clips_makes_one_group_of_all():
    assert contrastive.group_clips(jnp.zeros((6, 14, 3)), 0).shape == (1, 84, 3)


def test_chunks_have_the_gradient_of_the_whole():
    rng = np.random.default_rng(1)
    visual, audio = (jnp.asarray(unit(rng, 2, 12, 8)) for _ in range(2))

    def gradients(chunk):
        return jax.grad(lambda *x: contrastive.info_nce(*x, chunk=chunk), argnums=(0, 1, 2))(visual, audio, 0.2)

    for whole, chunked in zip(gradients(0), gradients(4), strict=True):
        np.testing.assert_allclose(chunked, whole, rtol=1e-4, atol=1e-7)


def test_embeddings_that_are_all_alike_cost_log_n():
    same = jnp.full((3, 28, 4), 0.5)
    assert contrastive.info_nce(same, same, 0.07) == pytest.approx(np.log(28), rel=1e-5)


@pytest.mark.parametrize(
    "call", [lambda x: contrastive.group_clips(x, 4), lambda x: contrastive.info_nce(x, x, 1, chunk=5)]
)
def test_sizes_that_do_not_divide_are_errors(call):
    with pytest.raises(ValueError, match="do not divide"):
        call(jnp.ones((6, 14, 3)))
