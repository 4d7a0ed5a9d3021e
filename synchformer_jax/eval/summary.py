"""Predictions and targets of many clips as one JSON-ready summary."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from synchformer_jax import clock
from synchformer_jax.eval import metrics


def summarise(
    logits: Float[np.ndarray, "clips classes"],
    targets: np.ndarray,
    clips: Sequence[str],
    groups: Sequence[str] | None = None,
    by: str | None = None,
) -> dict:
    """Everything numeric about a set of predictions, as plain values for JSON.

    Returns:
        `classes`, `grid` (seconds), `overall` (see `group_metrics`), `published` (the published metrics), `by` and
        `groups` (name to `group_metrics` and its own `confusion`), `confusion` (rows true), and `predictions`: for
        each clip `clip`, `target`, `predicted`, `logits` and its group.
    """
    classes = logits.shape[-1]
    predicted = logits.argmax(axis=-1)
    result = {
        "classes": classes,
        "grid": [round(float(offset), 6) for offset in clock.offset_grid(classes)],
        "overall": group_metrics(logits, targets),
        "published": {name: _finite(value) for name, value in metrics.classification_metrics(logits, targets).items()},
        "confusion": metrics.confusion_matrix(predicted, targets, classes).tolist(),
        "by": by,
        "groups": {},
    }
    for name in sorted(set(groups or ())):
        mine = np.array([group == name for group in groups])
        result["groups"][name] = group_metrics(logits[mine], targets[mine]) | {
            "confusion": metrics.confusion_matrix(predicted[mine], targets[mine], classes).tolist()
        }
    result["predictions"] = [
        {
            "clip": clip,
            **({by: groups[i]} if groups else {}),
            "target": int(targets[i]),
            "predicted": int(predicted[i]),
            "logits": [round(float(value), 5) for value in logits[i]],
        }
        for i, clip in enumerate(clips)
    ]
    return result


def group_metrics(logits: Float[np.ndarray, "clips classes"], targets: np.ndarray) -> dict:
    """`clips`, `loss` (nats), and the accuracies each with `value`, 95% interval `low` to `high`, and `chance`."""
    probabilities = metrics.softmax(logits)[np.arange(len(targets)), targets]
    result = {"clips": len(targets), "loss": float(-np.log(np.maximum(probabilities, 1e-300)).mean())}
    for name, top, within in (("accuracy_1", 1, 0), ("accuracy_1_tol1", 1, 1), ("accuracy_5", 5, 0)):
        correct = metrics.is_correct(logits, targets, top, within)
        low, high = metrics.wilson_interval(int(correct.sum()), len(correct))
        chance = metrics.chance(logits.shape[-1], within) if top == 1 else min(1.0, top / logits.shape[-1])
        result[name] = {"value": float(correct.mean()), "low": low, "high": high, "chance": chance}
    return result


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
