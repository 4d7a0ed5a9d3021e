"""The cost formula against what the compiler counts."""

import jax
import numpy as np
import pytest
from flax import nnx

from synchformer_jax.models import AST, Motionformer, SyncHead, flops, model_config


def test_full_size():
    cost = flops(model_config("B"))
    assert cost["clip"] == 14 * (cost["visual_segment"] + cost["audio_segment"]) + cost["head"]
    assert 3.5e11 < cost["visual_segment"] < 4.1e11  # 1,569 tokens, 12 blocks of 16 x 768^2 weights: 3.6e11 at least


@pytest.mark.parametrize("part", ["visual_segment", "audio_segment", "head"])
@pytest.mark.parametrize("attention", ["divided", "joint", "trajectory"])
def test_formula_equals_the_compilers_count(part, attention):
    if part != "visual_segment" and attention != "divided":
        pytest.skip("attention over space and time is in the visual part alone")
    config = model_config("S")
    config.compute.dtype, config.compute.unroll = "float32", True
    config.visual.update(image_size=64, depth=1, attention=attention)
    config.audio.depth = config.head.depth = 1
    kind = {"visual_segment": Motionformer, "audio_segment": AST, "head": SyncHead}[part]
    shapes = {
        "visual_segment": [(1, 1, 16, 64, 64, 3)],
        "audio_segment": [(1, 1, 128, 66)],
        "head": [(1, 14, 8, 384), (1, 14, 6, 384)],
    }[part]
    graph, state = nnx.split(nnx.eval_shape(lambda: kind(config, nnx.Rngs(0))))
    given = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    lowered = jax.jit(lambda state, *x: nnx.merge(graph, state)(*x)).lower(state, *given)
    counted = lowered.cost_analysis()["flops"]
    ours = flops(config)[part]
    assert 0.9 * counted < ours < 1.01 * counted  # the compiler counts norms and activations too
