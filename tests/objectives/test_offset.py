"""Offset classification against SciPy and by hand."""

import numpy as np
import pytest
from scipy.special import log_softmax

from synchformer_jax.objectives import offset


def test_cross_entropy_is_the_mean_negative_log_softmax():
    rng = np.random.default_rng(0)
    logits, target = 3 * rng.standard_normal((5, 21)).astype(np.float32), np.array([0, 20, 3, 7, 10])
    expected = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(5), target].mean()
    assert offset.cross_entropy(logits, target) == pytest.approx(expected, rel=1e-5)


def test_accuracy_counts_neighbours_only_if_asked():
    logits, target = np.eye(21, dtype=np.float32)[[4, 5, 6, 20]], np.array([5, 5, 5, 0])
    assert offset.accuracy(logits, target) == 0.25
    assert offset.accuracy(logits, target, within=1) == 0.75
