"""The cache of frozen visual features: bfloat16 in `.npy` shards, and one JSON header a split.

    FOLDER/train.json                              what it was made from, and how it is cut
    FOLDER/train-DIGEST/view0-00003-of-00012.npy   uint16 [records, starts, tokens, width], the bits of bfloat16

Start k of a record is the segment of frames 8k to 8k + 16 (or h k to h k + 2h, if segments have 2h frames), so
half-overlapping segments are neighbours in the file and a crop that starts at a multiple of half a segment is one read.
Starts beyond the end of a short clip are zero. View 0 is the
plain centre of the picture, the others are augmented; training draws one of all views for each clip and epoch.

DIGEST stands for the header: shards of another extractor or other records are never taken for these. A shard appears
whole or not at all, and no two processes write the same one, so any number of them may write a cache, in any order,
and go on where they were stopped.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np

from synchformer_jax import clock
from synchformer_jax.data import sampling
from synchformer_jax.errors import UserError
from synchformer_jax.files import atomic_path, write_json

CLIP_SEC = 10.0  # from a clip's beginning, as far as the cache goes
_NPY_HEADER = 128  # bytes before the array, as numpy.save writes it for any shape of ours
_VIEW = 2  # the stream of random numbers that chooses a view, besides those of sampling


def num_starts(clip_frames: int, length: int = clock.SEGMENT_FRAMES) -> int:
    """How many starts of segments of `length` frames lie whole in a clip, and in the first 10 s."""
    frames = min(clip_frames, clock.to_frames(CLIP_SEC))
    return max(0, (frames - length) // (length // 2) + 1)


def row(length: int = clock.SEGMENT_FRAMES) -> tuple[int, int, int]:
    """How a cached clip is cut: number of segments, frames from one to the next, and their length in frames."""
    return num_starts(clock.to_frames(CLIP_SEC), length), length // 2, length


def covered_frames(length: int = clock.SEGMENT_FRAMES) -> int:
    """Frames that the cache covers: 248 with the published segments."""
    return sampling.segments_frames(row(length)[0], 0.5, length)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a split of a cache holds.

    Attributes:
        source: which extractor made it, its fingerprint first, and how views are augmented.
        fingerprint: of the records, `pipeline.Records.fingerprint`.
        records, tokens, width: each view is `[records, starts, tokens, width]`, 30 starts with published segments.
        views: how many.
        shard_records: records in each shard but the last.
        segment_frames: of a segment.
    """

    source: str
    fingerprint: int
    records: int
    tokens: int
    width: int
    views: int = 1
    shard_records: int = 256
    segment_frames: int = clock.SEGMENT_FRAMES

    @property
    def starts(self) -> int:
        """Half-overlapping segments of a record."""
        return row(self.segment_frames)[0]

    @property
    def shards(self) -> int:
        """Shards of one view."""
        return -(-self.records // self.shard_records)

    @property
    def digest(self) -> str:
        """A short name of all of this."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()[:8]

    def rows(self, shard: int) -> range:
        """The records in a shard."""
        return range(shard * self.shard_records, min(self.records, (shard + 1) * self.shard_records))

    def shape(self, shard: int) -> tuple[int, int, int, int]:
        """Of a shard's array."""
        return len(self.rows(shard)), self.starts, self.tokens, self.width

    def bytes(self, shard: int) -> int:
        """Of a shard's array."""
        return 2 * int(np.prod(self.shape(shard)))

    def path(self, folder: str | os.PathLike, split: str, view: int, shard: int) -> Path:
        """Of a shard."""
        return Path(folder) / f"{split}-{self.digest}" / f"view{view}-{shard:05d}-of-{self.shards:05d}.npy"

    def missing(self, folder: str | os.PathLike, split: str) -> list[tuple[int, int]]:
        """(view, shard) of what is not on disk yet."""
        return [
            (view, shard)
            for view in range(self.views)
            for shard in range(self.shards)
            if not self.path(folder, split, view, shard).is_file()
        ]


def read_header(folder: str | os.PathLike, split: str) -> Header:
    """The header of a split of a cache.

    Raises:
        UserError: there is none.
    """
    path = Path(folder) / f"{split}.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no visual features of {split!r}. {_make(folder)}")
    try:
        return Header(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no header of visual features ({error}). {_make(folder)}") from error


def write_header(folder: str | os.PathLike, split: str, header: Header) -> None:
    """Names the cache that `folder` is to hold. Every process that writes shards may do it, all write the same.

    Raises:
        UserError: the folder cannot be written.
    """
    write_json(Path(folder) / f"{split}.json", dataclasses.asdict(header), indent=2)


def write_shard(
    folder: str | os.PathLike, split: str, header: Header, view: int, shard: int, values: np.ndarray
) -> None:
    """Writes one shard, whole or not at all.

    Args:
        folder, split, header: of the cache.
        view, shard: which.
        values: `[records, starts, tokens, width]`, any floating type.

    Raises:
        UserError: the values are not finite, or the disk is full.
        ValueError: they have another shape.
    """
    if values.shape != header.shape(shard):
        raise ValueError(f"shard {shard} is {header.shape(shard)}, not {values.shape}")
    if not np.isfinite(values.astype(np.float32)).all():
        raise UserError("The visual features are not finite. Give --workdir a stage-1 run whose loss is.")
    with atomic_path(header.path(folder, split, view, shard)) as path:
        np.save(path, values.astype(ml_dtypes.bfloat16).view(np.uint16))


def _make(folder: str | os.PathLike) -> str:
    return f"Make them with: python -m synchformer_jax.train.cache --workdir STAGE1 --data DATA --out {folder}"


class Features:
    """Reads the features of a split. Safe to pickle and to share between threads.

    Args:
        folder: of the cache.
        split: of the data set.
        fingerprint: of the records that it must have been made from; None takes any.

    Raises:
        UserError: there is no such cache, it is not complete, or it was made from other records.
    """

    def __init__(self, folder: str | os.PathLike, split: str, fingerprint: int | None = None):
        self.folder, self.split, self.header = Path(folder), split, read_header(folder, split)
        if fingerprint is not None and self.header.fingerprint != fingerprint:
            raise UserError(
                f"The visual features of {split!r} in {folder} were made from other records than those of config.data."
                f"{split} now. {_make(folder)}"
            )
        missing = self.header.missing(folder, split)
        if missing:
            raise UserError(
                f"{len(missing)} of {self.header.views * self.header.shards} shards of the visual features of "
                f"{split!r} in {folder} are missing, such as {self.header.path(folder, split, *missing[0]).name}. "
                "Give the command that writes them again; it goes on where it was."
            )

    def view(self, seed: int, epoch: int, record: int) -> int:
        """The view that training sees of a record in an epoch."""
        return int(sampling.random(seed, epoch, record, _VIEW).integers(self.header.views))

    def window(self, record: int, first_frame: int, segments: int, view: int = 0) -> np.ndarray:
        """Half-overlapping segments of a record from `first_frame` on, bfloat16 `[segments, tokens, width]`.

        Raises:
            ValueError: they are not in the cache.
            UserError: the shard cannot be read.
        """
        starts = self.header.starts
        start, rest = divmod(first_frame, self.header.segment_frames // 2)
        if rest or start < 0 or start + segments > starts:
            raise ValueError(f"no {segments} segments from frame {first_frame} on in a cache of {starts} starts")
        shard, row = divmod(record, self.header.shard_records)
        path = self.header.path(self.folder, self.split, view, shard)
        count = segments * self.header.tokens * self.header.width
        place = (row * starts + start) * self.header.tokens * self.header.width
        try:
            # At a known place: numpy.load parses the header each time, which Python 3.11 does not bear in threads.
            if path.stat().st_size != _NPY_HEADER + self.header.bytes(shard):
                raise ValueError(f"it has {path.stat().st_size} bytes")
            stored = np.fromfile(path, np.uint16, count, offset=_NPY_HEADER + 2 * place)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}). Remove it and write the features again.") from error
        return stored.view(ml_dtypes.bfloat16).reshape(segments, self.header.tokens, self.header.width)
