"""How good the model is on held-out clips, while it trains."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from synchformer_jax.eval import metrics
from synchformer_jax.models.avclip import PREFIX
from synchformer_jax.objectives.contrastive import Level, contrastive_losses
from synchformer_jax.train import mesh as meshes
from synchformer_jax.train import step as steps
from synchformer_jax.train.state import Arrays, Run

WINDOW = 8  # segments, about 5 s, as the published validation
PICTURED = 4  # clips whose similarities are shown, so that a large group gives no huge picture


def evaluate(
    run: Run,
    eval_step: Callable[[Arrays, Any], dict[str, jax.Array]],
    arrays: Arrays,
    batches: Iterable[dict[str, np.ndarray]],
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Stage 1: loss, and precision of finding a window of segments in the other stream. Later: loss and accuracies.

    Args:
        run: of the training.
        eval_step: of `make_eval_step`.
        arrays: all parameters.
        batches: one pass over the held-out clips; a last one may be smaller.

    Returns:
        The metrics, and pictures to look at: in stage 1 "similarity", the cosines `[visual, audio]` of the segments
        of the first few clips of a group; later none.
    """
    local = run.config.data.batch_size // jax.process_count()
    outputs: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        inputs = steps.device_fields(batch)
        real = len(inputs["audio"])
        # One compiled size serves all: a short batch is filled up with its own clips, whose results are dropped,
        # as are those of clips that only stand in for damaged ones.
        fill = np.arange(local) % real
        if real < local:
            inputs = {name: values[fill] for name, values in inputs.items()}
        result = jax.device_get(eval_step(arrays, meshes.put_batch(run.mesh, inputs)))
        counted = (np.arange(local) < real) & np.asarray(batch.get("valid", np.ones(real, bool)))[fill]
        target = np.asarray(inputs.get("target", np.zeros(local, np.int32)))
        if jax.process_count() > 1:
            counted, target = multihost_utils.process_allgather((counted, target), tiled=True)
        result["target"] = target
        for name, values in result.items():
            kept = values[counted] if values.ndim else values[None]
            outputs.setdefault(name, []).append(kept)
    gathered = {name: np.concatenate(parts) for name, parts in outputs.items()}
    if run.config.stage == "segment_avclip":
        return _contrastive(run, gathered)
    return _offset(gathered["logits"], gathered["target"]), {}


def _contrastive(run: Run, outputs: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The loss, without momentum encoders; how precisely windows are found; and the cosines of the first clips."""
    visual, audio = outputs["visual"], outputs["audio"]
    options, (clips, segments, width) = run.config.contrastive, visual.shape
    group = min(options.group_clips or run.config.data.batch_size, clips)
    whole = clips // group * group
    levels = {}
    for level, prefix in PREFIX.items():
        if f"{prefix}visual" in outputs:
            both = (outputs[prefix + part][:whole] for part in ("visual", "audio"))
            temperature, bias = (outputs.get(prefix + name, [None])[0] for name in ("temperature", "logit_bias"))
            levels[level] = Level(*both, temperature, bias)
    losses = contrastive_losses(levels, clips=group, chunk=options.chunk)
    loss = sum(options[f"{level}_weight"] * float(found) for level, found in losses.items())
    window = min(WINDOW, max(1, segments - 1))
    windows = metrics.shifted_windows(audio.astype(np.float64), visual.astype(np.float64), window)
    of_first = [part[: min(group, PICTURED)].reshape(-1, width) for part in (visual, audio)]
    values = {"loss": loss, "precision": float(np.mean(windows["precision"]))}
    return values, {"similarity": of_first[0] @ of_first[1].T}


def _offset(logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
    probabilities = metrics.softmax(logits)
    result = {
        "loss": float(-np.mean(np.log(probabilities[np.arange(len(target)), target] + 1e-30))),
        "accuracy": metrics.accuracy(logits, target),
    }
    if logits.shape[-1] > 2:
        result["accuracy_within_one"] = metrics.accuracy(logits, target, within=1)
    return result
