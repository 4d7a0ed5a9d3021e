"""The whole sync model against a forward pass in PyTorch that shares no line with it, from pixels and samples."""

import numpy as np
import pytest
from flax import nnx

from synchformer_jax.convert import published
from synchformer_jax.models import Synchformer, inference
from tests.eval import flashes

pytest.importorskip("torch")


def test_logits_agree():
    from benchmarks.forward import weights_of
    from benchmarks.torch_forward import TorchSynchformer

    config = flashes.config()
    config.model.segments = 2
    config.model.visual.depth, config.model.audio.depth, config.model.head.depth = 2, 2, 2
    hollow = nnx.eval_shape(lambda: Synchformer(config.model, nnx.Rngs(0)))
    weights = weights_of(hollow)
    random = np.random.default_rng(1)
    frames = random.integers(0, 256, (2, 2, 16, 32, 32, 3), dtype=np.uint8)
    audio = random.integers(-9000, 9000, (2, 2, 10_240), dtype=np.int16)
    model = nnx.merge(nnx.split(hollow)[0], published.to_state(hollow, weights))

    @nnx.jit
    def run(model, frames, audio):
        visual, heard = inference.encode_frames(config, model, frames), inference.encode_samples(config, model, audio)
        return inference.compare(config, model, visual, heard)

    ours = np.asarray(run(model, frames, audio))
    for fused in (False, True):
        theirs = TorchSynchformer(weights, heads=2, head_heads=2, fused=fused)(frames, audio)
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
