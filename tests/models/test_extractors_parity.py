"""The extractors at full size against the published implementation's figures."""

import jax
import numpy as np
import pytest
from flax import nnx

from synchformer_jax.models import AST, Motionformer
from tests.parity import Weights, figures, model_of, normal, relative

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def visual():
    model = model_of(Motionformer, Weights("synchformer", ("vfeat_extractor.",), "vfeat_extractor."))
    graph, state = nnx.split(model)
    call = jax.jit(lambda state, frames, mask: nnx.merge(graph, state)(frames, mask))
    frames = normal("input/vis", (1, 2, 16, 3, 224, 224)).transpose(0, 1, 2, 4, 5, 3)
    return lambda mask: call(state, frames, mask)


@pytest.fixture(scope="module")
def audio():
    model = model_of(AST, Weights("synchformer", ("afeat_extractor.",), "afeat_extractor."))
    graph, state = nnx.split(model)
    call = jax.jit(lambda state, log_mel, mask: nnx.merge(graph, state)(log_mel, mask))
    log_mel = normal("input/aud", (1, 2, 1, 128, 66))[:, :, 0]
    return lambda mask: call(state, log_mel, mask)


def test_visual_features(visual):
    assert relative(visual(None), figures("extractors")["vfeat"]) < TOLERANCE


def test_masked_visual_features(visual):
    mask = np.ones((1, 2, 16, 224, 224), bool)
    mask[0, 0, 4:8] = False
    mask[0, 1, :, 112:] = False
    assert relative(visual(mask), figures("masked_extractors")["vfeat"]) < TOLERANCE


def test_audio_features(audio):
    assert relative(audio(None), figures("extractors")["afeat"]) < TOLERANCE


def test_masked_audio_features(audio):
    mask = np.ones((1, 2, 128, 66), bool)
    mask[0, 0, :, 20:40] = False
    mask[0, 1, 64:] = False
    assert relative(audio(mask), figures("masked_extractors")["afeat"]) < TOLERANCE
