"""The cache of frozen visual features: one `.npy` file and one JSON header a split.

    FOLDER/train.npy    float16 [records, starts, tokens, width]
    FOLDER/train.json   what it was made from

Start k of a record is the segment of frames 8k to 8k + 16, so half-overlapping segments are neighbours in the file and
a crop that starts at a multiple of 8 frames is one read. Starts beyond the end of a short clip are zero.
"""

import contextlib
import json
import os
from pathlib import Path

import numpy as np

from synchformer_jax import clock
from synchformer_jax.data.sampling import HALF_SEGMENT_FRAMES
from synchformer_jax.errors import UserError
from synchformer_jax.files import atomic_path, require_disk

STARTS = 30  # half-segment starts in 10 s
CLIP_FRAMES = HALF_SEGMENT_FRAMES * (STARTS - 1) + clock.SEGMENT_FRAMES  # 248, what they cover


def num_starts(clip_frames: int) -> int:
    """How many of the starts lie whole in a clip."""
    return min(STARTS, max(0, (clip_frames - clock.SEGMENT_FRAMES) // HALF_SEGMENT_FRAMES + 1))


def read_header(folder: str | os.PathLike, split: str | None = None) -> dict:
    """The header of a split of a cache, or of all splits: "source", "fingerprint", "shape".

    Raises:
        UserError: there is none, or the splits come from different extractors.
    """
    headers = []
    for path in sorted(Path(folder).glob(f"{split or '*'}.json")):
        try:
            headers.append(json.loads(path.read_text()))
            if not {"source", "fingerprint", "shape"} <= set(headers[-1]):
                raise ValueError("fields are missing")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} is no header of visual features ({error}). {_make(folder)}") from error
    if not headers:
        raise UserError(f"{folder} holds no visual features{f' of {split!r}' if split else ''}. {_make(folder)}")
    if len({header["source"] for header in headers}) > 1:
        raise UserError(f"The splits in {folder} come from different extractors. {_make(folder)}")
    return headers[0]


def _make(folder: str | os.PathLike) -> str:
    return f"Make them with: python -m synchformer_jax.train.cache --workdir STAGE1 --data DATA --out {folder}"


class FeatureWriter:
    """Writes the features of a split, in any order of records, whole or not at all.

    with FeatureWriter(folder, "train", fingerprint, records=1000, tokens=8, width=768) as writer:
        writer.write(range(32), features)

    Args:
        folder: of the cache.
        split: of the data set.
        fingerprint: of the records, `pipeline.Records.fingerprint`.
        records, tokens, width: the cache is `[records, 30, tokens, width]`.
        source: which extractor made them, for the reader to check.

    Raises:
        UserError: the disk is too small or cannot be written, or not all records were written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str,
        fingerprint: int,
        *,
        records: int,
        tokens: int,
        width: int,
        source: str = "",
    ):
        self.path = Path(folder) / f"{split}.npy"
        self.shape = (records, STARTS, tokens, width)
        self.header = {"fingerprint": fingerprint, "shape": list(self.shape), "source": source}

    def __enter__(self) -> "FeatureWriter":
        require_disk(self.path.parent, 2 * int(np.prod(self.shape)))
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            stack.push(self._finish)
            self._array = np.lib.format.open_memmap(temporary, "w+", np.float16, self.shape)
            self._done = np.zeros(self.shape[0], bool)
            self._stack = stack.pop_all()
        return self

    def write(self, records, features: np.ndarray) -> None:
        """Stores `features`, `[n, starts, tokens, width]`, of the n records with the given indices."""
        records = np.asarray(records)
        with np.errstate(over="ignore"):
            features = np.asarray(features).astype(np.float16)
        if not np.isfinite(features).all():
            raise UserError("The visual features are not finite in float16. The fix: use a stage-1 run whose loss is.")
        self._array[records, : features.shape[1]] = features
        self._done[records] = True

    def _finish(self, kind: type | None, *_) -> None:
        if kind is None:
            if not self._done.all():
                missing = np.flatnonzero(~self._done)
                raise UserError(
                    f"{len(missing)} of {len(self._done)} records of {self.path} were not written "
                    f"(first: {missing[:5].tolist()}). Write the cache again."
                )
            self._array.flush()
            with atomic_path(self.path.with_suffix(".json")) as temporary:
                temporary.write_text(json.dumps(self.header, indent=2) + "\n")
        del self._array

    def __exit__(self, *error) -> bool | None:
        return self._stack.__exit__(*error)


class Features:
    """Reads the features of a split. Safe to pickle and to share between threads.

    Raises:
        UserError: there is no such cache, or it was made from other records.
    """

    def __init__(self, folder: str | os.PathLike, split: str, fingerprint: int | None = None):
        self.path = Path(folder) / f"{split}.npy"
        header, make = read_header(folder, split), _make(folder)
        try:
            self._array = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} holds no visual features of {split!r} ({error}). {make}") from error
        if list(self._array.shape) != header["shape"]:
            raise UserError(
                f"{self.path} is {list(self._array.shape)}, not {header['shape']} as its header says. {make}"
            )
        if fingerprint is not None and header["fingerprint"] != fingerprint:
            raise UserError(f"{self.path} was made from other records than those of {split!r} now. {make}")
        self.header = header

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(records, starts, tokens, width)"""
        return self._array.shape

    def window(self, record: int, first_frame: int, segments: int) -> np.ndarray:
        """Half-overlapping segments of a record from `first_frame` on, float16 `[segments, tokens, width]`.

        Raises:
            ValueError: they are not in the cache.
        """
        start, rest = divmod(first_frame, HALF_SEGMENT_FRAMES)
        if rest or start < 0 or start + segments > self.shape[1]:
            raise ValueError(f"no {segments} segments from frame {first_frame} on in a cache of {self.shape[1]} starts")
        return np.array(self._array[record, start : start + segments])

    def __getstate__(self) -> dict:
        return {"path": self.path, "header": self.header}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._array = np.load(self.path, mmap_mode="r")
