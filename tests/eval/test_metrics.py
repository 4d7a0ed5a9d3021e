"""Metrics against the published figures, scikit-learn and plain loops."""

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from synchformer_jax.eval import metrics

DATA = Path(__file__).parents[1] / "data"


def parity_input(name: str, shape: tuple[int, ...]) -> np.ndarray:
    seed = [zlib.crc32(f"input/{name}".encode()), 0]
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("case", ["offset_metrics", "synchronizability_metrics"])
def test_published_metrics(case):
    figures = np.load(DATA / f"{case}.npz")
    ours = metrics.classification_metrics(figures["logits"], figures["targets"])
    names = set(figures.files) - {"logits", "targets"}
    assert names == set(ours)
    for name in names:
        np.testing.assert_allclose(ours[name], figures[name], rtol=1e-6, err_msg=name)


def test_a_missing_class_leaves_out_the_means_over_classes():
    figures = np.load(DATA / "offset_metrics.npz")
    keep = figures["targets"] != 3
    ours = metrics.classification_metrics(figures["logits"][keep], figures["targets"][keep])
    assert set(ours) == {"accuracy_1", "accuracy_5", "accuracy_1_tol1", "accuracy_5_tol1"}


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_binary_metrics_equal_scikit_learn_with_ties(clips, levels, seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, levels, clips) / 7
    positive = random.random(clips) < 0.4
    positive[0], positive[-1] = True, False
    np.testing.assert_allclose(
        metrics.average_precision(scores, positive), sklearn_metrics.average_precision_score(positive, scores)
    )
    np.testing.assert_allclose(metrics.roc_auc(scores, positive), sklearn_metrics.roc_auc_score(positive, scores))


@pytest.mark.parametrize("top", [1, 3, 20])
def test_accuracy_equals_scikit_learn(top):
    figures = np.load(DATA / "offset_metrics.npz")
    expected = sklearn_metrics.top_k_accuracy_score(figures["targets"], figures["logits"], k=top, labels=range(21))
    assert metrics.accuracy(figures["logits"], figures["targets"], top) == pytest.approx(expected)


def test_within_counts_neighbours_and_no_more():
    logits = np.eye(21)[[0, 1, 2, 20, 19, 18]]
    targets = np.array([0, 0, 0, 20, 20, 20])
    assert metrics.is_correct(logits, targets).tolist() == [True, False, False] * 2
    assert metrics.is_correct(logits, targets, within=1).tolist() == [True, True, False] * 2


def test_confusion_equals_scikit_learn():
    figures = np.load(DATA / "offset_metrics.npz")
    predicted = figures["logits"].argmax(-1)
    ours = metrics.confusion_matrix(predicted, figures["targets"], 21)
    np.testing.assert_array_equal(ours, sklearn_metrics.confusion_matrix(figures["targets"], predicted))


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_interval_has_the_tabled_values(correct, total, low, high):
    """The last row is Newcombe's example (Statistics in Medicine 17, 1998, method 3)."""
    assert metrics.wilson_interval(correct, total) == pytest.approx((low, high), abs=6e-5)


def test_wilson_interval_covers_the_truth_95_times_in_100():
    """The exact coverage at one share swings around 0.95, since counts are whole; its mean over the shares does not."""
    clips, shares = 60, np.linspace(0.05, 0.95, 181)
    coverage = np.zeros(len(shares))
    for hits in range(clips + 1):
        low, high = metrics.wilson_interval(hits, clips)
        chance = math.comb(clips, hits) * shares**hits * (1 - shares) ** (clips - hits)
        coverage += chance * ((low <= shares) & (shares <= high))
    assert coverage.mean() == pytest.approx(0.95, abs=0.005)


def test_chance_is_what_the_best_constant_reaches():
    targets = np.repeat(np.arange(21), 5)
    for within in (0, 1, 2):
        reached = max((np.abs(targets - guess) <= within).mean() for guess in range(21))
        assert metrics.chance(21, within) == pytest.approx(reached)


def test_d_prime_of_two_normals():
    random = np.random.default_rng(1)
    scores = np.concatenate([random.normal(1.5, 1, 20000), random.normal(0, 1, 20000)])
    area = metrics.roc_auc(scores, np.arange(40000) < 20000)
    assert metrics.d_prime(area) == pytest.approx(1.5, abs=0.03)
    assert metrics.d_prime(1.0) == np.inf and metrics.d_prime(0.0) == -np.inf


def test_shifted_windows_equal_the_published():
    figures = np.load(DATA / "shifted_windows.npz")
    audio = parity_input("win_a", (4, 14, 32))
    visual = 0.7 * parity_input("win_v", (4, 14, 32)) + audio
    ours = metrics.shifted_windows(audio, visual, window=8)
    for name in figures.files:
        np.testing.assert_allclose(ours[name], figures[name], err_msg=name)


def test_shifted_windows_of_unrelated_streams_equal_a_loop():
    random = np.random.default_rng(2)
    audio, visual = random.normal(size=(2, 3, 9, 5))
    ours = metrics.shifted_windows(audio, visual, window=4)
    for clip in range(3):
        a = np.stack([audio[clip, i : i + 4].ravel() for i in range(6)])
        v = np.stack([visual[clip, i : i + 4].ravel() for i in range(6)])
        np.testing.assert_array_equal(ours["preds_a"][clip], [int(np.argmax(a @ one)) for one in v])
        np.testing.assert_array_equal(ours["preds_v"][clip], [int(np.argmax(v @ one)) for one in a])
    assert ours["precision"].max() < 1
    with pytest.raises(ValueError, match="window of 10"):
        metrics.shifted_windows(audio, visual, window=10)


def test_similarities_equal_the_published():
    figures, features = np.load(DATA / "avclip_similarities.npz"), np.load(DATA / "avclip_loss.npz")
    ours = metrics.similarity_matrices(
        features["vfeat"].reshape(4, -1), features["afeat"].reshape(4, -1), float(features["logit_scale"])
    )
    for name, matrix in ours.items():
        np.testing.assert_allclose(matrix, figures[f"segment_sim_{name}"], rtol=1e-4, atol=1e-5, err_msg=name)
