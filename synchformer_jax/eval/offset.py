"""Offsets of held-out clips: the whole model, from frames, against the fixed offset of each clip."""

import copy
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from synchformer_jax.data import pipeline, records
from synchformer_jax.errors import UserError
from synchformer_jax.eval.summary import summarise
from synchformer_jax.train.step import classify


def sync_forward(model: nnx.Module, config: ConfigDict) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A compiled function of (frames uint8 `[B, T, H, W, 3]`, audio int16 `[B, N]`) to logits float32 `[B, C]`.

    Of longer crops the middle counts, as published.
    """
    graph, state = nnx.split(model)

    @jax.jit
    def forward(state: nnx.State, frames: Array, audio: Array) -> Array:
        return classify(config, nnx.merge(graph, state), {"frames": frames, "audio": audio}, None, ())

    return lambda frames, audio: np.asarray(forward(state, jnp.asarray(frames), jnp.asarray(audio)), np.float32)


def evaluate(
    model: nnx.Module,
    config: ConfigDict,
    data: str,
    split: str = "test",
    by: str | None = None,
    on_clips: Callable[[int, int], None] | None = None,
    fixed_offsets: str = "",
) -> dict:
    """Predicts the offset of every clip of a split once, at an offset fixed by the clip's index or by a table.

    Args:
        model: a `Synchformer`.
        config: the configuration it was trained by.
        data: folder of the prepared data set.
        split: its split.
        by: a text field of the records (such as "level") to give the metrics by; clips without it are "other".
        on_clips: called with (clips done, clips in all) after every batch.
        fixed_offsets: published tables (`data.fixed_offsets`) with commas between; clips without a row are left out.

    Returns:
        What `summarise` gives, with `data`, `split`, `seconds`, `clips_per_sec`, `device`.

    Raises:
        UserError: the data set or the split is missing, or no record of it can be read.
    """
    config = evaluation_config(config, data, split, fixed_offsets=fixed_offsets)
    shards = records.Shards(data, split)
    if by:
        read_field(shards, 0, by)  # tells early if there is no such field
    forward = sync_forward(model, config)
    results: dict[int, tuple[int, np.ndarray]] = {}
    started = time.perf_counter()
    for batch in pipeline.batches(config, split, train=False):
        logits = forward(batch["frames"], batch["audio"])
        for i in np.flatnonzero(batch["valid"]):  # the rest pads the last batch or stands in for damaged records
            results[int(batch["record"][i])] = int(batch["target"][i]), logits[i]
        if on_clips:
            on_clips(len(results), len(shards))
    if not results:
        raise UserError(f"No clip of {data}, split {split}, could be read. Prepare the data set again.")
    seconds = time.perf_counter() - started
    order = sorted(results)
    clips = [read_field(shards, record, "clip_id") or str(record) for record in order]
    groups = [read_field(shards, record, by) or "other" for record in order] if by else None
    result = summarise(
        np.stack([results[record][1] for record in order]),
        np.array([results[record][0] for record in order]),
        clips,
        groups,
        by,
    )
    return result | {
        "data": str(data),
        "split": split,
        "seconds": round(seconds, 2),
        "clips_per_sec": round(len(order) / seconds, 3),
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
    }


def evaluation_config(
    config: ConfigDict, data: str, split: str, stage: str = "sync", fixed_offsets: str = ""
) -> ConfigDict:
    """The configuration to read whole clips of a split, without cached features."""
    config = copy.deepcopy(config)
    with config.unlocked():
        config.stage = stage
        config.data[split] = str(data)
        config.data.visual_features = ""
        config.data.fixed_offsets = fixed_offsets
    return config


def read_field(shards: records.Shards, record: int, name: str) -> str:
    """A text field of a record.

    Raises:
        UserError: the records have no such field.
    """
    try:
        value = shards.fields(record, [name])[name]
    except records.CorruptRecord as error:
        raise UserError(f"{error}. Give --by a text field that the records have, such as level.") from error
    return value.decode() if isinstance(value, bytes) else str(value)
