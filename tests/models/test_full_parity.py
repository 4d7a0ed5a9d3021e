"""Whole models at full size against the published implementation's figures; minutes of work."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from synchformer_jax.convert import published
from synchformer_jax.models import SegmentAVCLIP, Synchformer
from tests.parity import Weights, figures, model_of, normal, published_norm, relative

pytestmark = pytest.mark.slow


def test_synchformer_on_a_clip():
    graph, state = nnx.split(model_of(Synchformer, Weights("synchformer")))
    frames = normal("input/clip_vis", (1, 14, 16, 3, 224, 224)).transpose(0, 1, 2, 4, 5, 3)
    log_mel = normal("input/clip_aud", (1, 14, 1, 128, 66))[:, :, 0]
    logits = jax.jit(lambda state, *x: nnx.merge(graph, state)(*x))(state, frames, log_mel)
    assert relative(logits, figures("synchformer_clip")["logits"]) < 1e-4


def test_segment_avclip_loss_and_gradients():
    theirs = figures("avclip_loss")
    model = model_of(SegmentAVCLIP, Weights("avclip"))
    graph, state = nnx.split(model)
    frames = normal("input/avclip_vis", (2, 2, 3, 16, 224, 224)).transpose(0, 1, 3, 4, 5, 2)
    log_mel = normal("input/avclip_aud", (2, 2, 66, 128)).swapaxes(2, 3)

    @jax.jit
    def run(state, frames, log_mel):
        def loss(state):
            model = nnx.merge(graph, state)
            visual, audio = (x.reshape(-1, x.shape[-1]) for x in model(frames, log_mel))
            similarity = visual @ audio.T / model.temperature()
            own = jnp.arange(len(visual))
            both = [optax.softmax_cross_entropy_with_integer_labels(s, own).mean() for s in (similarity, similarity.T)]
            return sum(both) / 2, (visual, audio, model.temperature())

        return jax.value_and_grad(loss, has_aux=True)(state)

    (loss, (visual, audio, temperature)), gradients = run(state, frames, log_mel)
    assert relative(visual, theirs["vfeat"]) < 1e-4
    assert relative(audio, theirs["afeat"]) < 1e-4
    np.testing.assert_allclose(loss, theirs["loss"], rtol=1e-4)
    similarities = figures("avclip_similarities")
    for name, a, b in (("v2a", visual, audio), ("a2v", audio, visual), ("v2v", visual, visual), ("a2a", audio, audio)):
        assert relative(a @ b.T / temperature, similarities[f"segment_sim_{name}"]) < 1e-4
    ours = published.from_state(nnx.merge(graph, gradients))
    norms = dict(zip(theirs["grad_names"].tolist(), theirs["grad_norms"].tolist(), strict=True))
    assert set(ours) - set(norms) == {"v_encoder.patch_embed.proj.weight", "v_encoder.patch_embed.proj.bias"}
    small = 1e-5 * max(norms.values())  # key biases have a true gradient of zero
    for name, value in norms.items():
        np.testing.assert_allclose(published_norm(ours[name]), value, rtol=2e-4, atol=small, err_msg=name)
