"""Writes the features of a frozen picture extractor once, so that the sync stage need not compute them at every step.

`python -m synchformer_jax.train.cache --workdir STAGE1 --data DIR --splits train,valid --out DIR`

The picture is 97% of a forward pass. One clip has 30 half-segment starts, of which a crop of 14 neighbours is one read;
the sound is still computed in the step, with its jitter. Frames are centre crops, without augmentation.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

from synchformer_jax import clock
from synchformer_jax.data import features, pipeline
from synchformer_jax.errors import UserError, exit_on_user_error
from synchformer_jax.models.config import visual_tokens
from synchformer_jax.ops.segments import segment_frames
from synchformer_jax.train import checkpoint
from synchformer_jax.train import state as states
from synchformer_jax.train.metrics_writer import Watcher

WORKDIR = flags.DEFINE_string("workdir", None, "The run whose extractor it is.")
DATA = flags.DEFINE_string("data", None, "The prepared data set.")
SPLITS = flags.DEFINE_list("splits", ["train", "valid"], "Which splits.")
OUT = flags.DEFINE_string("out", None, "Where the features go.")
STEP = flags.DEFINE_integer("step", None, "Of the checkpoint; the best by default.")
BATCH = flags.DEFINE_integer("batch_size", 8, "Clips computed together.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", 0, "Processes that decode.", lower_bound=0)
RANDOM = flags.DEFINE_bool("random_extractors", False, "Fresh weights in place of the trained ones, for a control.")
SEED = flags.DEFINE_integer("seed", None, "Of the fresh weights; the run's by default.")


def write_features(
    workdir: str | Path,
    data: str,
    splits: list[str],
    out: str | Path,
    *,
    step: int | None = None,
    batch_size: int = 8,
    workers: int = 0,
    random_extractors: bool = False,
    seed: int | None = None,
) -> None:
    """Writes `OUT/SPLIT.npy`, float16 `[records, 30, t, D]`, for each split that is not there yet.

    Args:
        workdir: of a run of any stage; its config gives the model and the frame size.
        data: a prepared data set.
        splits: such as train, valid.
        out: a folder.
        step: of the checkpoint; the best if None.
        batch_size: clips computed together.
        workers: processes that decode; 0 decodes in this one.
        random_extractors: fresh weights, those that `init.random_extractors` gives the sync stage.
        seed: of the fresh weights; the run's if None.

    Raises:
        UserError: no checkpoint, no data, a disk too small, or records that cannot be read.
    """
    if random_extractors:
        config = checkpoint.saved_config(workdir, checkpoint.choose_step(workdir, step))
        config.stage = "segment_avclip"
        model, origin = states.make_model(config, seed=seed), f"fresh weights of {workdir}"
    else:
        model, config = checkpoint.load_model(workdir, step)
        origin = f"{workdir} at step {checkpoint.choose_step(workdir, step)}"
    blueprint, arrays = states.take_apart(model)
    config.data.update({"batch_size": batch_size, "workers": workers, "visual_features": ""})
    source = f"{states.fingerprint(arrays, 'visual')} {origin}"
    extract = _extractor(blueprint)
    for split in splits:
        config.data[split] = data
        _write_split(config, split, data, Path(out), source, lambda frames: extract(arrays, frames))


def _extractor(blueprint: states.Blueprint) -> Callable[[states.Arrays, jax.Array], jax.Array]:
    @jax.jit
    def extract(arrays: states.Arrays, frames: jax.Array) -> jax.Array:
        model = blueprint.build(arrays)
        segments = segment_frames(frames, 0, features.STARTS, clock.SEGMENT_FRAMES // 2)
        pixels = segments.astype(jnp.float32) / 127.5 - 1
        return model.visual(pixels).astype(jnp.float32)

    return extract


def _write_split(config: ConfigDict, split: str, data: str, out: Path, source: str, extract: Callable) -> None:
    records = pipeline.Records(data, split)
    watcher = Watcher(f"features of {split}", len(records))
    shape = {"tokens": visual_tokens(config.model), "width": config.model.visual.width}
    try:
        with features.FeatureWriter(
            out, split, records.fingerprint, records=len(records), source=source, **shape
        ) as writer:
            done = np.zeros(len(records), bool)
            for batch in pipeline.batches(config, split, train=False, stage="clip"):
                values = np.array(extract(batch["frames"]))
                values[np.arange(features.STARTS) >= batch["starts"][:, None]] = 0
                # What is not valid stands in for a damaged record, or fills up the last batch. The sync stage skips a
                # damaged record; zeros keep its place.
                values[~batch["valid"]] = 0
                new = ~done[batch["record"]]
                writer.write(batch["record"][new], values[new])
                done[batch["record"]] = True
                watcher.line(int(done.sum()), {})
    finally:
        watcher.close()


def main(arguments: list[str]) -> None:
    """Runs what the flags describe."""
    logging.set_verbosity(logging.ERROR)  # Orbax tells at length what it does
    for flag in (WORKDIR, DATA, OUT):
        if not flag.value:
            raise UserError(f"There is no --{flag.name}. Give --workdir RUN --data DIR --out DIR.")
    write_features(
        WORKDIR.value,
        DATA.value,
        SPLITS.value,
        OUT.value,
        step=STEP.value,
        batch_size=BATCH.value,
        workers=WORKERS.value,
        random_extractors=RANDOM.value,
        seed=SEED.value,
    )


if __name__ == "__main__":
    with exit_on_user_error():
        app.run(main)
