"""One element of a batch: read a record, choose where to cut it, decode that.

What can be wrong with a record is data here, not an exception: an element carries the records it had to skip and an
error to stop with, so that they reach the training process from any thread or worker process in the order of the steps.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from synchformer_jax import clock
from synchformer_jax.data import sampling
from synchformer_jax.data.clips import ClipError, decode_audio, decode_frames
from synchformer_jax.data.features import CLIP_FRAMES, Features, num_starts
from synchformer_jax.data.records import CorruptRecord, Shards, decode_example
from synchformer_jax.errors import UserError

SKIPPED, FAILED = "skipped", "failed"  # what an element or a batch says about damage, never seen by a model
_FIELDS = {"clip_id": bytes, "video": bytes, "audio": bytes, "num_frames": int, "num_samples": int, "height": int,
           "width": int}  # fmt: skip


class Records:
    """The records of one split of one or several data sets, one after the other.

    Args:
        folders: comma-separated folders, each OUT, OUT/NAME or OUT/NAME/VERSION.
        split: the split.

    Raises:
        UserError: a data set or the split is missing.
    """

    def __init__(self, folders: str, split: str):
        names = [name.strip() for name in str(folders).split(",") if name.strip()]
        if not names:
            raise UserError(f"config.data.{split} names no folder. Set it: --config.data.{split}=FOLDER")
        self.shards = [Shards(name, split) for name in names]
        self._starts = np.cumsum([0] + [len(shards) for shards in self.shards])
        if not len(self):
            raise UserError(f"The split {split!r} of {', '.join(names)} is empty. Prepare it with more videos.")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _locate(self, index: int) -> tuple[Shards, int]:
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.shards[which], index - int(self._starts[which])

    def name(self, index: int) -> str:
        """Where a record lies, for messages."""
        shards, within = self._locate(index)
        path, record = shards.locate(within)
        return f"{path}, record {record}"

    def level(self, index: int) -> str:
        """The level of a record; "" if it has none or cannot be read."""
        shards, within = self._locate(index)
        try:
            return shards.fields(within, ["level"])["level"].decode()
        except CorruptRecord:
            return ""

    @property
    def fingerprint(self) -> int:
        """A number that changes with any record's bytes or place."""
        value = 0
        for shards in self.shards:
            value = zlib.crc32(shards.checksums().tobytes(), value)
        return value

    def __getitem__(self, index: int) -> dict:
        """The features of a record.

        Raises:
            CorruptRecord: it is damaged or lacks a field.
        """
        shards, within = self._locate(index)
        data = shards[within]
        try:
            fields = decode_example(data, _FIELDS)
        except ValueError as error:
            raise CorruptRecord(f"{self.name(index)}: {error}") from error
        wrong = [name for name, kind in _FIELDS.items() if not isinstance(fields.get(name), kind)]
        if wrong:
            raise CorruptRecord(f"{self.name(index)}: no {', '.join(wrong)} of the right kind; not a record of ours")
        return fields


class Loader:
    """Turns (position, record) into an element; pure but for reading files, and safe to pickle.

    Args:
        records: where from.
        make: `make(epoch, index, clip, fields) -> element`.
        train: a skipped record is replaced in training, and replaced and marked not valid otherwise.
        allowed: how many records may be damaged.
    """

    def __init__(self, records: Records, make: Callable, *, train: bool, allowed: int):
        self.records, self.make, self.train, self.allowed = records, make, train, allowed

    def __call__(self, place: tuple[int, int]) -> dict:
        position, wanted = place
        total, skipped = len(self.records), {}
        for step in range(min(total, self.allowed + 1)):
            index = (wanted + step) % total
            try:
                fields = self.records[index]
                name = f"{self.records.name(index)} ({fields['clip_id'].decode(errors='replace')})"
                clip = sampling.ClipInfo(name, fields["num_frames"], fields["num_samples"])
                element = self.make(position // total, index, clip, fields)
            except CorruptRecord as error:
                skipped[index] = str(error)
            except ClipError as error:
                skipped[index] = f"{self.records.name(index)}: {error}"
            except UserError as error:
                return {SKIPPED: skipped, FAILED: str(error)}
            else:
                element["record"] = np.int64(index if self.train else wanted)
                if not self.train:
                    element["valid"] = np.bool_(position < total and not skipped)
                return element | {SKIPPED: skipped}
        return {SKIPPED: skipped, FAILED: "No record can be read. Prepare the data set again."}


def collate(elements: Sequence[dict]) -> dict:
    """Stacks elements; what they say about damage is joined."""
    skipped = {index: reason for element in elements for index, reason in element[SKIPPED].items()}
    failed = [element[FAILED] for element in elements if FAILED in element]
    if failed:
        return {SKIPPED: skipped, FAILED: failed[0]}
    names = [name for name in elements[0] if name != SKIPPED]
    return {name: np.stack([element[name] for element in elements]) for name in names} | {SKIPPED: skipped}


class Cutter:
    """Makes the element of a stage: `cutter(epoch, index, clip, fields)`.

    Args:
        stage: "segment_avclip", "sync", "synchronizability", or "clip" for all that the feature cache covers.
        seed: of the run.
        segments: how many a row has.
        size: side of the square of pixels.
        grid: offsets of the classes.
        jitter_sec: of the sound in training.
        train: random or fixed choices.
        features: the cached visual features, in place of frames in stage "sync".
        view: in stage "clip", 0 for the middle of the picture, else the number of a random crop.
    """

    def __init__(
        self,
        stage: str,
        *,
        seed: int,
        segments: int,
        size: int,
        grid: np.ndarray,
        jitter_sec: float,
        train: bool,
        features: Features | None = None,
        view: int = 0,
    ):
        self.stage, self.seed, self.segments, self.size = stage, seed, segments, size
        self.grid, self.jitter_sec, self.train, self.features = grid, jitter_sec, train, features
        self.view = view

    def __call__(self, epoch: int, index: int, clip: sampling.ClipInfo, fields: dict) -> dict:
        if self.stage == "clip":
            return self._whole(epoch, index, clip, fields)
        crop = self.crop(epoch, index, clip)
        element = {"audio": decode_audio(fields["audio"], crop.first_sample, crop.samples)}
        if self.features is not None:
            view = self.features.view(self.seed, epoch, index) if self.train else 0
            element["visual"] = self.features.window(index, crop.first_frame, self.segments, view)
        else:
            element["frames"] = self._frames(epoch, index, clip, fields, crop.first_frame, crop.frames)
        if self.stage != "segment_avclip":
            element |= {"target": np.int32(crop.target), "offset_sec": np.float32(crop.offset_sec)}
        return element

    def crop(self, epoch: int, index: int, clip: sampling.ClipInfo) -> sampling.Crop:
        """Where the element is cut, exactly as its segments cover it."""
        args = (self.seed, epoch, index, clip)
        how = {"jitter_sec": self.jitter_sec, "train": self.train}
        if self.stage == "segment_avclip":
            return sampling.stage1_crop(*args, segments=self.segments, **how)
        if self.stage == "synchronizability":
            return sampling.synchronizability_crop(*args, grid=self.grid, segments=self.segments, **how)
        frames = sampling.segments_frames(self.segments, 0.5)
        if self.features is not None:
            # The cache knows segments at multiples of half a segment only; the row of segments itself is the crop.
            stride = sampling.HALF_SEGMENT_FRAMES
            # A clip may last longer than the cache, which ends after 248 frames.
            most = min(clip.num_frames, CLIP_FRAMES)
            clip = sampling.ClipInfo(clip.name, most, clip.num_samples)
            return sampling.sync_crop(*args[:3], clip, grid=self.grid, crop_frames=frames, stride=stride, **how)
        whole = max(clock.to_frames(clock.SYNC_CROP_SEC), frames)
        return sampling.sync_crop(*args, grid=self.grid, crop_frames=whole, **how).centre(frames)

    def _frames(self, epoch, index, clip, fields, first: int, count: int) -> np.ndarray:
        height, width = fields["height"], fields["width"]
        top, left = sampling.square(self.seed, epoch, index, height, width, self.size, train=self.train, name=clip.name)
        return decode_frames(fields["video"], first, count, (top, left, self.size))

    def _whole(self, epoch, index, clip, fields) -> dict:
        clip.require(clock.SEGMENT_FRAMES, "a segment")
        count = min(clip.num_frames, CLIP_FRAMES)
        frames = np.zeros((CLIP_FRAMES, self.size, self.size, 3), np.uint8)
        place = (self.seed, self.view, index, fields["height"], fields["width"], self.size)
        top, left = sampling.square(*place, train=self.view > 0, name=clip.name)
        frames[:count] = decode_frames(fields["video"], 0, count, (top, left, self.size))
        return {"frames": frames, "starts": np.int32(num_starts(count))}
