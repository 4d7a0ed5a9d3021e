"""Numbers that say how good predictions are. Plain NumPy; equal to those of the published code.

The published code computes them with scikit-learn; the tests compare with both.
"""

import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int


def softmax(logits: Float[np.ndarray, "*batch classes"]) -> Float[np.ndarray, "*batch classes"]:
    """Probabilities over the last axis, in float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def accuracy(
    logits: Float[np.ndarray, "clips classes"], targets: Int[np.ndarray, " clips"], top: int = 1, within: int = 0
) -> float:
    """The share of clips with one of the `top` best classes at most `within` classes from the target."""
    return float(is_correct(logits, targets, top, within).mean())


def is_correct(
    logits: Float[np.ndarray, "clips classes"], targets: Int[np.ndarray, " clips"], top: int = 1, within: int = 0
) -> np.ndarray:
    """Whether one of the `top` best classes of a clip is at most `within` classes from its target, bool `[clips]`."""
    best = np.argsort(-np.asarray(logits), axis=-1, kind="stable")[:, :top]
    return (np.abs(best - np.asarray(targets)[:, None]) <= within).any(axis=1)


def average_precision(scores: Float[np.ndarray, " clips"], is_positive: np.ndarray) -> float:
    """The area under the precision-recall curve as a sum of steps, equal scores taken together.

    Args:
        scores: `[N]`, higher means more likely positive.
        is_positive: `[N]` bool, at least one true.
    """
    scores, is_positive = np.asarray(scores), np.asarray(is_positive, bool)
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(is_positive[order])
    last_of_equals = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    precision = hits[last_of_equals] / (last_of_equals + 1)
    recall = hits[last_of_equals] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def roc_auc(scores: Float[np.ndarray, " clips"], is_positive: np.ndarray) -> float:
    """The chance that a positive clip scores higher than a negative one, equal scores counting half.

    Args:
        scores: `[N]`, higher means more likely positive.
        is_positive: `[N]` bool, with at least one true and one false.
    """
    scores, is_positive = np.asarray(scores), np.asarray(is_positive, bool)
    _, position, count = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(count) - (count - 1) / 2)[position]
    positives = int(is_positive.sum())
    negatives = len(is_positive) - positives
    return float((mean_rank[is_positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def d_prime(area: float) -> float:
    """Sensitivity d' of two equal normal distributions that have this area under the ROC curve."""
    if not 0.0 < area < 1.0:
        return math.copysign(math.inf, area - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(area)


def classification_metrics(
    logits: Float[np.ndarray, "clips classes"], targets: Int[np.ndarray, " clips"], tops: tuple[int, ...] = (1, 5)
) -> dict[str, float]:
    """All metrics of the published evaluation, by their published names.

    `accuracy_K`: the target is among the K best classes. `accuracy_K_tol1`: one of the K best classes is at most one
    class from the target. `mAP`, `mROCAUC`: means over the classes, each against the rest, on probabilities. `dprime`:
    of the mean area. The last three are left out where a class never occurs among the targets, since the mean would
    then be over other classes than it says.

    Args:
        logits: `[N, C]`, before the softmax.
        targets: `[N]`, classes 0 to C - 1.
    """
    logits, targets = np.asarray(logits), np.asarray(targets)
    classes = logits.shape[-1]
    result = {}
    for top in sorted({min(top, classes) for top in tops}):
        if top < classes:
            result[f"accuracy_{top}"] = accuracy(logits, targets, top)
        result[f"accuracy_{top}_tol1"] = accuracy(logits, targets, top, within=1)
    if len(np.unique(targets)) < classes:
        return result
    probabilities = softmax(logits)
    one_against_rest = [(probabilities[:, i], targets == i) for i in range(classes)]
    result["mAP"] = float(np.mean([average_precision(*pair) for pair in one_against_rest]))
    result["mROCAUC"] = float(np.mean([roc_auc(*pair) for pair in one_against_rest]))
    result["dprime"] = d_prime(result["mROCAUC"])
    return result


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a share: honest for few clips and near 0 and 1, where the normal one is not."""
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def chance(classes: int, within: int = 0) -> float:
    """The accuracy of the best answer that ignores the clip, where all offsets are equally frequent."""
    return min(1.0, (2 * within + 1) / classes)


def confusion_matrix(
    predicted: Int[np.ndarray, " clips"], targets: Int[np.ndarray, " clips"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Counts `[C, C]`: row the true class, column the predicted one."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (np.asarray(targets), np.asarray(predicted)), 1)
    return counts


def shifted_windows(
    audio: Float[np.ndarray, "clips segments features"],
    visual: Float[np.ndarray, "clips segments features"],
    window: int,
) -> dict[str, np.ndarray]:
    """Segment AVCLIP's validation metric: does a window of segments find its counterpart in the other stream?

    A clip of S segments has S - window + 1 windows; two windows compare by the sum of their segments' inner products.

    Args:
        audio, visual: `[B, S, D]` embeddings of the segments of clips in sync.
        window: segments in a window.

    Returns:
        `preds_a` `[B, S - window + 1]`: for each visual window the most similar audio window; `preds_v`: for each
        audio window the most similar visual one. `precision_a`, `precision_v`, `precision` `[B]`: the shares that
        are right, and their mean.

    Raises:
        ValueError: the window is longer than the clip.
    """
    audio, visual = np.asarray(audio), np.asarray(visual)
    windows = audio.shape[1] - window + 1
    if windows < 1:
        raise ValueError(f"a window of {window} segments does not fit into {audio.shape[1]} segments")
    segments = np.einsum("bsd,btd->bst", audio, visual)
    similarity = sum(segments[:, i : i + windows, i : i + windows] for i in range(window))
    nearest_a, nearest_v = similarity.argmax(axis=-2), similarity.argmax(axis=-1)
    right = np.arange(windows)
    precision_a, precision_v = (nearest_a == right).mean(axis=-1), (nearest_v == right).mean(axis=-1)
    return {
        "preds_a": nearest_a,
        "preds_v": nearest_v,
        "precision_a": precision_a,
        "precision_v": precision_v,
        "precision": (precision_a + precision_v) / 2,
    }


def similarity_matrices(
    visual: Float[np.ndarray, "segments features"], audio: Float[np.ndarray, "segments features"], temperature: float
) -> dict[str, Float[np.ndarray, "segments segments"]]:
    """The four matrices of inner products over the temperature: `v2a`, `a2v`, `v2v`, `a2a`, each `[N, N]`."""
    visual, audio = np.asarray(visual), np.asarray(audio)
    v2a = visual @ audio.T / temperature
    return {"v2a": v2a, "a2v": v2a.T, "v2v": visual @ visual.T / temperature, "a2a": audio @ audio.T / temperature}
