"""Which moments of the picture stage 1 finds alike with which moments of the sound, on a few held-out clips."""

import os
from pathlib import Path

import numpy as np

from synchformer_jax.errors import UserError
from synchformer_jax.eval import metrics
from synchformer_jax.files import atomic_path

FILE = "similarities.npz"
WINDOW = 8  # segments, as in the published validation


def read(stage1: str | os.PathLike) -> dict[str, np.ndarray] | None:
    """What `compute` has left, or None if there is nothing, or a newer checkpoint than it."""
    path, checkpoints = Path(stage1) / FILE, Path(stage1) / "checkpoints"
    if not path.is_file():
        return None
    if checkpoints.is_dir() and path.stat().st_mtime < checkpoints.stat().st_mtime:
        return None
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def compute(
    stage1: str | os.PathLike, data: str, split: str = "test", per_level: int = 2, most_clips: int = 64
) -> dict[str, np.ndarray]:
    """Loads stage 1, embeds clips of the split and writes their similarities beside the checkpoints.

    Args:
        stage1: work folder of a segment AVCLIP run.
        data: folder of the prepared data set.
        split: its split.
        per_level: clips to keep of each level; clips of level "none" have nothing to find alike and are left out.
        most_clips: the first so many clips are looked at.

    Returns:
        `similarity` float32 `[K, S, S]`, cosine, row a picture segment; `clip` and `level`, text `[K]`; `precision`
        `[K]`, the mean of the shifted-windows metric both ways.

    Raises:
        UserError: there is no checkpoint or no such clip.
    """
    import jax
    from flax import nnx

    from synchformer_jax.data import pipeline, records
    from synchformer_jax.eval.offset import evaluation_config, read_field
    from synchformer_jax.train.checkpoint import load_model
    from synchformer_jax.train.step import embed

    model, config = load_model(stage1)
    if config.stage != "segment_avclip":
        raise UserError(f"{stage1} holds a model of stage {config.stage}. Give a run of stage segment_avclip.")
    config = evaluation_config(config, data, split, stage="segment_avclip")
    shards = records.Shards(data, split)
    graph, state = nnx.split(model)
    forward = jax.jit(lambda state, batch: embed(config, nnx.merge(graph, state), batch)["segment"])
    kept: dict[str, list] = {}
    looked_at = 0
    for batch in pipeline.batches(config, split, train=False):
        visual, audio = (np.asarray(x, np.float32) for x in forward(state, {k: batch[k] for k in ("frames", "audio")}))
        for i in np.flatnonzero(batch["valid"]):
            clip, level = (read_field(shards, int(batch["record"][i]), name) for name in ("clip_id", "level"))
            chosen = kept.setdefault(level, [])
            if level != "none" and len(chosen) < (per_level if level else 2 * per_level):
                precision = metrics.shifted_windows(audio[i : i + 1], visual[i : i + 1], min(WINDOW, len(visual[i])))
                chosen.append((visual[i] @ audio[i].T, clip, level, float(precision["precision"][0])))
        looked_at += len(batch["record"])
        if looked_at >= most_clips:
            break
    rows = [row for level in sorted(kept) for row in kept[level]]
    if not rows:
        raise UserError(f"No clip of {data}, split {split}, could be read. Prepare the data set again.")
    result = {
        name: np.array(values)
        for name, values in zip(("similarity", "clip", "level", "precision"), zip(*rows, strict=True), strict=True)
    }
    path = Path(stage1) / FILE
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **result)
    return result
