"""The contrastive losses against the dense formulas in NumPy, on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synchformer_jax.objectives.contrastive import Level, Teacher, contrastive_losses
from tests.objectives.dense import dense, unit

LOSSES = {"info_nce": (0.07, None), "sigmoid": (0.1, -10.0)}


def loss_of(visual, audio, temperature, bias=None, teacher=None, **options):
    return contrastive_losses({"segment": Level(visual, audio, temperature, bias, teacher)}, **options)["segment"]


def embeddings(clips=6, segments=7, width=24, seed=0):
    rng = np.random.default_rng(seed)
    return unit(rng, clips, segments, width), unit(rng, clips, segments, width)


def a_teacher(alpha, queue=11, seed=1):
    rng = np.random.default_rng(seed)
    return (*embeddings(seed=seed), unit(rng, 2, queue, 24), alpha)


def ours(visual, audio, temperature, bias, **options):
    """Loss and gradients, as `dense` gives them."""
    sought = (0, 1, 2) if bias is None else (0, 1, 2, 3)
    loss = jax.value_and_grad(lambda *x: loss_of(*x, **options), argnums=sought)
    return jax.jit(loss)(visual, audio, temperature, bias)


def assert_close(result, expected):
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-5)
    for mine, right in zip(result[1], expected[1], strict=False):
        np.testing.assert_allclose(mine, right, rtol=1e-5, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("clips, chunk", [(1, 0), (2, 5), (3, 1), (6, 0), (6, 5), (6, 100)])
def test_equals_the_dense_formula_for_every_grouping(kind, clips, chunk):
    visual, audio = embeddings()
    result = ours(visual, audio, *LOSSES[kind], clips=clips, chunk=chunk)
    assert_close(result, dense(visual, audio, clips, *LOSSES[kind]))


@pytest.mark.parametrize("kind, alpha", [("info_nce", 0.0), ("info_nce", 0.4), ("sigmoid", 0.0)])
@pytest.mark.parametrize("clips, chunk", [(2, 0), (6, 4)])
def test_a_teacher_gives_the_answers_the_queue_and_soft_targets(kind, alpha, clips, chunk):
    visual, audio = embeddings()
    teacher = a_teacher(alpha)
    result = ours(visual, audio, *LOSSES[kind], clips=clips, chunk=chunk, teacher=Teacher(*teacher))
    assert_close(result, dense(visual, audio, clips, *LOSSES[kind], teacher))


def test_a_teacher_gets_no_gradient():
    visual, audio = embeddings()
    gradient = jax.grad(lambda t: loss_of(visual, audio, 0.07, teacher=Teacher(*t)))(a_teacher(0.4))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_zero_clips_makes_one_group_of_all():
    visual, audio = embeddings()
    assert loss_of(visual, audio, 0.07) == loss_of(visual, audio, 0.07, clips=6)


@pytest.mark.parametrize("kind", LOSSES)
def test_one_embedding_a_clip_is_a_row_of_single_segments(kind):
    visual, audio = embeddings(segments=1)
    assert_close(ours(visual, audio, *LOSSES[kind]), dense(visual, audio, 6, *LOSSES[kind]))


def test_embeddings_that_are_all_alike_cost_log_n():
    same = jnp.full((6, 14, 4), 0.5)
    assert loss_of(same, same, 0.07, clips=2) == pytest.approx(np.log(28), rel=1e-5)


def test_the_sigmoid_loss_begins_at_a_few_nats():
    """With SigLIP's first temperature and bias, all unrelated: each row pays 10 for its pair, and little besides."""
    orthogonal = jnp.eye(28).reshape(2, 14, 28)
    other = jnp.roll(orthogonal.reshape(28, 28), 1, axis=0).reshape(2, 14, 28)
    expected = np.log1p(np.exp(10)) + 26 * np.log1p(np.exp(-10)) + np.log1p(np.exp(0))
    assert loss_of(orthogonal, other, 0.1, -10.0) == pytest.approx(expected, rel=1e-5)


def test_memory_in_chunks_grows_with_the_segments_and_not_with_their_square():
    def bytes_of(clips, chunk):
        shape = jax.ShapeDtypeStruct((clips, 16, 32), jnp.float32)
        loss = jax.grad(lambda *x: loss_of(*x, 0.07, chunk=chunk), argnums=(0, 1))
        return jax.jit(loss).lower(shape, shape).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(256, 64) < 2.2 * bytes_of(128, 64)
    assert bytes_of(256, 0) > 3.5 * bytes_of(128, 0)
    assert bytes_of(256, 64) < bytes_of(256, 0) / 8


def test_levels_do_not_see_each_other():
    segments, clips = embeddings(), embeddings(segments=1, width=8, seed=3)
    levels = {"segment": Level(*segments, 0.07, None, Teacher(*a_teacher(0.4))), "global": Level(*clips, 0.1, -10.0)}
    losses = contrastive_losses(levels, clips=3, chunk=4)
    assert losses["segment"] == loss_of(*segments, 0.07, teacher=Teacher(*a_teacher(0.4)), clips=3, chunk=4)
    assert losses["global"] == loss_of(*clips, 0.1, -10.0, clips=3, chunk=4)


@pytest.mark.parametrize("clips", [4, 12])
def test_groups_that_do_not_divide_the_batch_are_errors(clips):
    with pytest.raises(ValueError, match=f"6 clips do not divide into groups of {clips}"):
        loss_of(*embeddings(), 0.07, clips=clips)
