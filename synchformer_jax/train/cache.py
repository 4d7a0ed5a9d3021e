"""Writes the features of a frozen picture extractor once, so that the sync stage need not compute them at every step.

`python -m synchformer_jax.train.cache --workdir STAGE1 --data DIR --splits train,valid --out DIR`

The picture is 97% of a forward pass. One clip has 30 half-segment starts, of which a crop of 14 neighbours is one read;
the sound is still computed in the step, with its jitter and augmentation. `--views 4` writes, besides the plain centre
of the picture, three views with random crop and flip (and colour, by flag), so that training sees more than one.

`--dry_run` tells how many bytes it will be: at full size 369 kB a clip and view, 0.6 TB for 1.6 million clips. Started
again, it does what is missing. On several hosts each writes every n-th shard: `--part=I/N`, or `--distributed` where
JAX must know all hosts, as on TPU pods.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from synchformer_jax.data import features, pipeline
from synchformer_jax.errors import UserError, exit_on_user_error
from synchformer_jax.files import require_disk
from synchformer_jax.models.config import visual_tokens
from synchformer_jax.ops.segments import segment_frames
from synchformer_jax.train import checkpoint, distributed
from synchformer_jax.train import state as states
from synchformer_jax.train.inputs import coloured
from synchformer_jax.train.metrics_writer import Watcher

WORKDIR = flags.DEFINE_string("workdir", None, "The run whose extractor it is.")
DATA = flags.DEFINE_string("data", None, "The prepared data set.")
SPLITS = flags.DEFINE_list("splits", ["train", "valid"], "Which splits.")
OUT = flags.DEFINE_string("out", None, "Where the features go.")
STEP = flags.DEFINE_integer("step", None, "Of the checkpoint; the best by default.")
BATCH = flags.DEFINE_integer("batch_size", 8, "Clips computed together.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", 0, "Processes that decode.", lower_bound=0)
RANDOM = flags.DEFINE_bool("random_extractors", False, "Fresh weights in place of the trained ones, for a control.")
SEED = flags.DEFINE_integer("seed", None, "Of fresh weights and views; the run's by default.")
VIEWS = flags.DEFINE_integer("views", 1, "Views of each training clip; the first is plain.", lower_bound=1)
FLIP = flags.DEFINE_float("flip", 0.5, "Share of the other views that are mirrored.", 0, 1)
COLOUR = flags.DEFINE_float("colour_jitter", 0.0, "Share of the other views whose colours change.", 0, 1)
GREY = flags.DEFINE_float("greyscale", 0.0, "Share of the other views without colour.", 0, 1)
PART = flags.DEFINE_string("part", "0/1", "This process among several: I/N writes every N-th shard from I on.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only tell what would be written.")
distributed.define_flags()

SHARD_RECORDS = 256  # at most; 94 MB at full size


@dataclasses.dataclass(frozen=True)
class Views:
    """How many views a training clip has, and the shares of those after the first that change."""

    count: int = 1
    flip: float = 0.5
    colour_jitter: float = 0.0
    greyscale: float = 0.0

    def __str__(self) -> str:
        return f"flip {self.flip} colour_jitter {self.colour_jitter} greyscale {self.greyscale}"


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
    views: Views = Views(),
    part: tuple[int, int] = (0, 1),
    dry_run: bool = False,
) -> None:
    """Writes the shards of each split that are not there yet (`data.features`).

    Args:
        workdir: of a run of any stage; its config gives the model and the frame size.
        data: a prepared data set.
        splits: such as train, valid; only "train" has more than one view.
        out: a folder.
        step: of the checkpoint; the best if None.
        batch_size: clips computed together.
        workers: processes that decode; 0 decodes in this one.
        random_extractors: fresh weights, those that `init.random_extractors` gives the sync stage.
        seed: of the fresh weights and of the views; the run's if None.
        views: of training clips.
        part: (I, N): of N processes this one is I.
        dry_run: only tell what is missing and its size.

    Raises:
        UserError: no checkpoint, no data, a disk too small, or records that cannot be read.
    """
    if not 0 <= part[0] < part[1]:
        raise UserError(f"--part={part[0]}/{part[1]} cannot be. Give I/N with I from 0 to N - 1.")
    devices = jax.local_devices()
    if batch_size % len(devices):
        raise UserError(f"--batch_size={batch_size} does not divide over {len(devices)} devices. Give a multiple.")
    if random_extractors:
        config = checkpoint.saved_config(workdir, checkpoint.choose_step(workdir, step))
        config.stage = "segment_avclip"
        model, origin = states.make_model(config, seed=seed), f"fresh weights of {workdir}"
    else:
        model, config = checkpoint.load_model(workdir, step)
        origin = f"{workdir} at step {checkpoint.choose_step(workdir, step)}"
    config.seed = config.seed if seed is None else seed
    config.data.update({"batch_size": batch_size, "workers": workers, "visual_features": ""})
    blueprint, arrays = states.take_apart(model)
    source = f"{states.fingerprint(arrays, 'visual')} {origin}"
    extract = make_extractor(blueprint, arrays, config.seed, views, devices)
    for split in splits:
        config.data[split] = data
        records = pipeline.Records(data, split)
        count = views.count if split == "train" else 1
        header = features.Header(
            source if count == 1 else f"{source}, views of seed {config.seed}: {views}",
            records.fingerprint,
            len(records),
            visual_tokens(config.model),
            config.model.visual.width,
            count,
            batch_size * max(1, SHARD_RECORDS // batch_size),  # whole batches
            config.model.visual.frames,
        )
        _write_split(config, split, header, Path(out), extract, part, dry_run)


def make_extractor(
    blueprint: states.Blueprint, arrays: states.Arrays, seed: int, views: Views, devices: list[jax.Device]
) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    """`(frames uint8 [B, 248, P, P, 3], record [B], view)` gives bfloat16 `[B, starts, tokens, width]`.

    How a view looks depends on seed, view and record alone. The batch is cut over `devices`.
    """
    mesh = Mesh(np.asarray(devices), ("data",))
    cut, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    arrays = jax.device_put(arrays, whole)

    def on_each_device(arrays: states.Arrays, frames: jax.Array, record: jax.Array, view: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), view)

        def pixels(clip: tuple[jax.Array, jax.Array]) -> jax.Array:
            frames, own = clip[0], jax.random.fold_in(key, clip[1])
            return jax.lax.cond(view > 0, lambda: coloured(views, frames, own), lambda: coloured(views, frames, None))

        model = blueprint.build(arrays)
        segments = segment_frames(jax.lax.map(pixels, (frames, record)), 0, *features.row(model.visual.frames))
        return model.visual(segments).astype(jnp.bfloat16)

    specs = {"in_specs": (whole.spec, cut.spec, cut.spec, whole.spec), "out_specs": cut.spec}
    compiled = jax.jit(jax.shard_map(on_each_device, mesh=mesh, check_vma=False, **specs))

    def extract(frames: np.ndarray, record: np.ndarray, view: int) -> np.ndarray:
        frames, record = jax.device_put((frames, record.astype(np.int32)), cut)
        return np.array(compiled(arrays, frames, record, np.int32(view)))

    return extract


def _write_split(
    config: ConfigDict,
    split: str,
    header: features.Header,
    out: Path,
    extract: Callable,
    part: tuple[int, int],
    dry_run: bool,
) -> None:
    mine = [(view, shard) for view, shard in header.missing(out, split) if _number(header, view, shard, part)]
    size = sum(header.bytes(shard) for _, shard in mine)
    if dry_run:
        whole = header.views * sum(map(header.bytes, range(header.shards)))
        print(
            f"{split}: {header.records} clips, {header.views} view(s), {header.views * header.shards} shards, "
            f"{whole / 1e9:.3f} GB; missing in this part: {len(mine)} shards, {size / 1e9:.3f} GB."
        )
        return
    require_disk(out, size)
    features.write_header(out, split, header)
    if part[0] == 0:
        for old in out.glob(f"{split}-*"):  # of another extractor, views or records
            if old.is_dir() and old.name != f"{split}-{header.digest}":
                shutil.rmtree(old)
    watcher = Watcher(f"features of {split}", sum(len(header.rows(shard)) for _, shard in mine))
    done = 0
    try:
        for view, shard, batches in _batches(config, split, header, mine):
            values = np.zeros(header.shape(shard), jnp.bfloat16)
            rows = header.rows(shard)
            for number, batch in enumerate(batches, 1):
                new = np.array(extract(batch["frames"], batch["record"], view))
                new[np.arange(header.starts) >= batch["starts"][:, None]] = 0
                # What is not valid stands in for a damaged record, or fills up the last batch. The sync stage skips a
                # damaged record; zeros keep its place.
                values[batch["record"][batch["valid"]] - rows.start] = new[batch["valid"]]
                watcher.line(done + min(number * config.data.batch_size, len(rows)), {})
            done += len(rows)
            features.write_shard(out, split, header, view, shard, values)
    finally:
        watcher.close()


def _number(header: features.Header, view: int, shard: int, part: tuple[int, int]) -> bool:
    return (view * header.shards + shard) % part[1] == part[0]


def _batches(
    config: ConfigDict, split: str, header: features.Header, shards: list[tuple[int, int]]
) -> Iterator[tuple[int, int, Iterator[dict[str, np.ndarray]]]]:
    """For each shard the batches of its records; neighbouring shards share a loader."""
    size = config.data.batch_size
    loader, following = None, None
    try:
        for view, shard in shards:
            first = header.rows(shard).start // size
            if (view, first) != following:
                if loader is not None:
                    loader.close()
                loader = pipeline.batches(
                    config, split, train=False, stage="clip", start_step=first, view=view, process=0, processes=1
                )
            count = -(-len(header.rows(shard)) // size)
            following = view, first + count
            yield view, shard, (next(loader) for _ in range(count))
    finally:
        if loader is not None:
            loader.close()


def main(arguments: list[str]) -> None:
    """Runs what the flags describe."""
    logging.set_verbosity(logging.ERROR)  # Orbax tells at length what it does
    for flag in (WORKDIR, DATA, OUT):
        if not flag.value:
            raise UserError(f"There is no --{flag.name}. Give --workdir RUN --data DIR --out DIR.")
    try:
        part, parts = (int(number) for number in PART.value.split("/"))
    except ValueError:
        raise UserError(f"--part={PART.value} cannot be read. Give I/N, such as 0/4.") from None
    distributed.join_by_flags()
    if jax.process_count() > 1:
        part, parts = jax.process_index(), jax.process_count()
    try:
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
            views=Views(VIEWS.value, FLIP.value, COLOUR.value, GREY.value),
            part=(part, parts),
            dry_run=DRY_RUN.value,
        )
    except Exception as error:
        distributed.end_all(error)
        raise


if __name__ == "__main__":
    with exit_on_user_error():
        app.run(main)
