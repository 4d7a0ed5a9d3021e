"""The sync head at full size against the published implementation's figures."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from synchformer_jax.convert import published
from synchformer_jax.models import SyncHead
from tests.parity import Weights, figures, model_of, normal, published_norm, relative

PART = ("vproj.", "aproj.", "transformer.")


@pytest.fixture(scope="module")
def head():
    return model_of(SyncHead, Weights("synchformer", PART))


@pytest.fixture(scope="module")
def features():
    return normal("input/vfeat", (3, 14, 8, 768)), normal("input/afeat", (3, 14, 6, 768))


def test_logits_loss_and_gradients(head, features):
    graph, state = nnx.split(head)
    targets = figures("sync_head_loss")["targets"]

    @jax.jit
    def run(state, visual, audio):
        def loss(state):
            logits = nnx.merge(graph, state)(visual, audio)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(), logits

        return jax.value_and_grad(loss, has_aux=True)(state)

    (loss, logits), gradients = run(state, *features)
    assert relative(logits, figures("sync_head")["logits"]) < 1e-4
    np.testing.assert_allclose(loss, figures("sync_head_loss")["loss"], rtol=1e-4)
    norms = figures("sync_head_grad_norms")
    ours = {k: published_norm(v) for k, v in published.from_state(nnx.merge(graph, gradients)).items()}
    theirs = dict(zip(norms["names"].tolist(), norms["norms"].tolist(), strict=True))
    assert set(ours) == set(theirs)
    small = 1e-5 * max(theirs.values())  # key biases shift all scores alike: their true gradient is zero
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=small, err_msg=name)


def test_synchronizability():
    head = model_of(SyncHead, Weights("synchronizability", PART), segments=13, classes=2)
    features = normal("input/vfeat13", (3, 13, 8, 768)), normal("input/afeat13", (3, 13, 6, 768))
    assert relative(nnx.jit(head)(*features), figures("synchronizability_head")["logits"]) < 1e-4
