"""Batches of clips, shuffled over the whole data set, equal for any number of workers and hosts and after any resume.

Position p of a run is row p % batch_size of batch p // batch_size. Which record stands there is a permutation of each
epoch, how it is cut a pure function of (seed, epoch, record), so an iterator's state is the number of its next batch
and the damaged records seen. A host takes its rows of each batch: one after the other, the hosts' rows are the batch.

A mixture of data sets with weights gives each of them its share of every batch, to within one clip. Each is permuted by
itself and has its own epochs: a small one with a large weight comes round more often, with other crops each time.
"""

import dataclasses
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from synchformer_jax import clock
from synchformer_jax.data.clips import RGB
from synchformer_jax.data.features import Features
from synchformer_jax.data.fixed_offsets import read_table
from synchformer_jax.data.loading import FAILED, SKIPPED, Cutter, Loader, Place, Records, collate
from synchformer_jax.errors import UserError

_log = logging.getLogger(__name__)
_MAX_THREADS = 8


class Batches(Iterator[dict[str, np.ndarray]]):
    """An iterator over batches that can be stopped and gone on with anywhere.

    `len(batches)` is the number of batches of an evaluation; in training there is no end.

    Args:
        records: the records.
        loader: makes their elements.
        batch_size: of all hosts together.
        seed: of the shuffle.
        train: shuffled for ever, or once in order.
        weights: of the loader's pools in training; more than one pool needs them.
        workers: processes; with 0 threads of this process do the work.
        max_corrupt_share: of the records, above which damage ends the run.
        process, processes: this host, of how many.
        start_step: the first batch.
    """

    def __init__(
        self,
        records: Records,
        loader: Loader,
        *,
        batch_size: int,
        seed: int,
        train: bool,
        weights: Sequence[float] = (),
        workers: int,
        process: int,
        processes: int,
        start_step: int = 0,
    ):
        self.records, self.train = records, train
        self._loader, self._batch_size, self._seed, self._workers = loader, batch_size, seed, workers
        self._process, self._processes, self._weights = process, processes, weights
        self._step, self._corrupt, self._iterator = start_step, {}, None

    def __len__(self) -> int:
        if self.train:
            raise TypeError("training batches have no end")
        return -(-len(self._loader.pools[0]) // self._batch_size)

    @property
    def corrupt(self) -> dict[int, str]:
        """The damaged records met so far and what is wrong with each."""
        return dict(self._corrupt)

    def _places(self) -> grain.MapDataset:
        """What stands at each position of the run, without end."""
        pools = []
        for number, pool in enumerate(self._loader.pools):
            slots = grain.MapDataset.range(len(pool))
            if self.train:
                # Grain adds the epoch to the seed, so that seeds of pools must lie far apart.
                slots = slots.shuffle(seed=(self._seed + number * 0x9E3779B1) % 2**32)
            # The index counts on through the epochs, and thereby tells the epoch.
            pools.append(slots.repeat().map_with_index(_Turn(number, len(pool))))
        if len(pools) == 1:
            return pools[0]
        # Grain's mixture goes round in a fixed pattern, by which neighbours would always come from the same two pools.
        mixture = grain.MapDataset.mix(pools, self._weights)
        return grain.experimental.WindowShuffleMapDataset(
            mixture, window_size=self._batch_size, seed=self._seed % 2**32
        )

    def _dataset(self) -> grain.IterDataset:
        size = self._batch_size // self._processes
        rows = _Rows(self._places(), self._step, self._batch_size, self._process * size, size)
        places = grain.MapDataset.range(sys.maxsize if self.train else (len(self) - self._step) * size).map(rows)
        elements = places.map(self._loader)
        if self._workers > 0:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which callers from elsewhere never parse
            # Whole batches, so that the batches do not depend on which worker makes which.
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
            batches = elements.batch(size, drop_remainder=True, batch_fn=collate)
            return batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)).mp_prefetch(
                options, _begin_worker
            )
        threads = min(_MAX_THREADS, os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, size))
        return elements.to_iter_dataset(options).batch(size, drop_remainder=True, batch_fn=collate)

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch.

        Raises:
            StopIteration: after the last batch of an evaluation.
            UserError: a clip is too short or small for the config, or too many records are damaged.
        """
        if self._iterator is None:
            if not self.train and self._step >= len(self):
                raise StopIteration
            self._iterator = iter(self._dataset())
        batch = next(self._iterator, None)
        if batch is None:
            self.close()
            raise StopIteration
        self._note(batch.pop(SKIPPED))
        if FAILED in batch:
            raise UserError(batch[FAILED])
        self._step += 1
        # Workers hand over shared memory, which must not outlive Grain: the caller gets memory of its own.
        return {name: np.array(value) for name, value in batch.items()} if self._workers > 0 else batch

    def _note(self, skipped: dict[int, str]) -> None:
        for index in sorted(set(skipped) - set(self._corrupt)):
            self._corrupt[index] = skipped[index]
            _log.warning("Skipped a damaged record: %s", skipped[index])
        if len(self._corrupt) > self._loader.allowed:
            listed = "\n  ".join(list(self._corrupt.values())[:5])
            raise UserError(
                f"{len(self._corrupt)} of {len(self.records)} records are damaged, and config.data.max_corrupt_share "
                f"allows {self._loader.allowed}:\n  {listed}\nPrepare the data set again, or raise the share."
            )

    def get_state(self) -> dict[str, Any]:
        """What `set_state` needs to go on here; plain JSON, the same for any number of workers."""
        return {"step": self._step, "corrupt": {str(index): why for index, why in self._corrupt.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called."""
        self.close()
        self._step = int(state["step"])
        self._corrupt = {int(index): why for index, why in state.get("corrupt", {}).items()}

    def close(self) -> None:
        """Ends worker processes and threads; the iterator can go on afterwards."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
            # The exception that ended Grain's thread holds the last batch, in memory shared with a worker, in a cycle.
            gc.collect()


def _begin_worker(index: int, count: int) -> None:
    """Ctrl-C in a terminal reaches all its processes: a worker leaves it to the run, which ends its workers in order.
    But where the run is gone, its workers go too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@dataclasses.dataclass(frozen=True)
class _Turn:
    """Names the slot that stands at an index of a pool."""

    pool: int
    length: int

    def __call__(self, index: int, slot: int) -> Place:
        return Place(index, self.pool, index // self.length, slot)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The places of one host: `size` rows from `first` on of each batch, from batch `step` on."""

    places: grain.MapDataset
    step: int
    batch_size: int
    first: int
    size: int

    def __call__(self, index: int) -> Place:
        batch, row = divmod(index, self.size)
        position = (self.step + batch) * self.batch_size + self.first + row
        return dataclasses.replace(self.places[position], position=position)


def batches(
    config,
    split: str,
    *,
    train: bool,
    start_step: int = 0,
    stage: str | None = None,
    view: int = 0,
    process: int | None = None,
    processes: int | None = None,
) -> Batches:
    """The batches of `config.stage` (B clips on this host, S segments, P pixels, N samples).

    - "segment_avclip": frames uint8 `[B, 16 S, P, P, 3]`, audio int16 `[B, 10240 S]`. With `config.data.pixels`
      "yuv420" frames are planes, `[B, 16 S, 1.5 P P]`, here and in the later stages.
    - "sync": frames `[B, 120, P, P, 3]` and audio `[B, 76800]` for 14 segments; target int32 `[B]`, the class of
      offset_sec float32 `[B]`. With `config.data.visual_features` bfloat16 visual `[B, S, tokens, width]` for frames.
    - "synchronizability": as sync with 13 segments: frames `[B, 112, ...]`, audio `[B, 71680]`; target 0 or 1.
    - "clip": frames `[B, 248, P, P, 3]` from the start, black after a clip's end, and starts int32 `[B]`, how many
      half-segment starts lie in the clip.

    Always record int64 `[B]`; in evaluation also valid bool `[B]`: False for the padding of the last batch and for a
    damaged record, whose place another one takes. In training with `config.augment.upscale` zoom int32 `[B, 3]`: top,
    left and side of the part of the square that is to be scaled up.

    With `config.data.fixed_offsets`, published tables, evaluation of stage "sync" takes from each clip the crop of its
    row, always from frames: cached features lie between such starts. Clips without a row are left out, with a warning.

    Args:
        config: of the run; seed, stage, data, augment.upscale, model.segments, model.visual.frames and
            model.head.classes are read.
        split: "train", "valid" or "test": the folders are `config.data.<split>`.
        train: shuffled for ever with random crops, or each record once, in order, with fixed choices.
        start_step: the first batch.
        stage: in place of `config.stage`.
        view: of stage "clip": 0 for the middle of the picture, else the number of a random crop.
        process, processes: in place of JAX's.

    Raises:
        UserError: no such data, no such table, weights that do not fit, or a batch that cannot be divided over the
            hosts. Iteration raises it for clips that are too short or small, and for too many damaged records.
    """
    if process is None or processes is None:
        import jax

        process, processes = jax.process_index(), jax.process_count()
    data, stage = config.data, stage or config.stage
    records = Records(data[split], split)
    if data.batch_size < 1 or data.batch_size % processes:
        raise UserError(
            f"config.data.batch_size={data.batch_size} cannot be divided over {processes} hosts. Choose a multiple."
        )
    if train and len(records) < data.batch_size:
        _log.warning("%s holds %d records, fewer than a batch of %d: batches repeat records.",
                     data[split], len(records), data.batch_size)  # fmt: skip
    fixed = _fixed_offsets(config, stage) if not train else None
    cutter = Cutter(
        stage,
        seed=config.seed,
        segments=config.model.segments,
        length=config.model.visual.frames,
        size=data.size,
        grid=_grid(config, stage),
        jitter_sec=data.get("jitter_sec", 0.05),
        train=train,
        pixels=data.get("pixels", RGB),
        upscale=config.get("augment", {}).get("upscale", 0.0),
        features=_features(config, stage, split, records) if fixed is None else None,
        fixed_offsets=fixed,
        view=view,
    )
    weights = tuple(data.get("weights", ())) if train else ()
    pools = [range(len(records))] if fixed is None else [_with_row(records, fixed, config)]
    if weights:
        pools = records.data_sets
        if len(weights) != len(pools) or min(weights) <= 0:
            raise UserError(
                f"config.data.weights={weights} does not fit the {len(pools)} data sets of config.data.{split}. "
                "Give one positive number for each."
            )
    share = data.get("max_corrupt_share", 0.01)
    # A small data set may lose one record; share 0 allows none.
    allowed = max(1, int(share * len(records))) if share > 0 else 0
    return Batches(
        records,
        Loader(records, pools, cutter, train=train, allowed=allowed),
        batch_size=data.batch_size,
        seed=config.seed,
        train=train,
        weights=weights,
        workers=data.get("workers", 0),
        process=process,
        processes=processes,
        start_step=start_step,
    )


def _fixed_offsets(config, stage: str) -> dict[str, tuple[float, float]] | None:
    """The rows of all tables of `config.data.fixed_offsets`, by clip_id."""
    paths = [path.strip() for path in config.data.get("fixed_offsets", "").split(",") if path.strip()]
    if not paths or stage != "sync":
        return None
    rows: dict[str, tuple[float, float]] = {}
    for path in paths:
        table = read_table(path)
        if different := [clip for clip in table.keys() & rows if table[clip] != rows[clip]]:
            raise UserError(
                f"{path} and an earlier table of config.data.fixed_offsets disagree on {sorted(different)[0]}. "
                "Leave one of them out."
            )
        rows |= table
    return rows


def _with_row(records: Records, rows: dict[str, tuple[float, float]], config) -> list[int]:
    """The records that have a row. One whose name cannot be read stays, to be counted as damaged."""
    names = [records.clip_id(index) for index in range(len(records))]
    kept = [index for index, name in enumerate(names) if name is None or name in rows]
    without = [name for name in names if name is not None and name not in rows]
    if len(without) == len(names):
        raise UserError(
            f"config.data.fixed_offsets={config.data.fixed_offsets} has a row for none of the {len(names)} clips, such "
            f"as {names[0]!r}. Give the table of this data set, or leave the field empty."
        )
    if without:
        _log.warning("%d of %d clips have no row in %s and are left out: %s%s", len(without), len(names),
                     config.data.fixed_offsets, ", ".join(without[:5]), " ..." if len(without) > 5 else "")  # fmt: skip
    return kept


def _grid(config, stage: str) -> np.ndarray:
    return clock.offset_grid(config.model.head.classes) if stage == "sync" else clock.offset_grid()


def _features(config, stage: str, split: str, records: Records) -> Features | None:
    folder = config.data.get("visual_features", "")
    return Features(folder, split, records.fingerprint) if folder and stage == "sync" else None


def levels(config, split: str) -> list[str]:
    """The level of each record of a split, in the order of `record`; "" where it has none."""
    records = Records(config.data[split], split)
    return [records.level(index) for index in range(len(records))]
