"""One element of a batch: read a record, choose where to cut it, decode that.

What can be wrong with a record is data here, not an exception: an element carries the records it had to skip and an
error to stop with, so that they reach the training process from any thread or worker process in the order of the steps.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from synchformer_jax import clock
from synchformer_jax.data import sampling
from synchformer_jax.data.clips import RGB, ClipError, decode_audio, decode_frames
from synchformer_jax.data.features import Features, covered_frames, num_starts
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

    def clip_id(self, index: int) -> str | None:
        """The clip's name; None if it cannot be read."""
        shards, within = self._locate(index)
        try:
            return shards.fields(within, ["clip_id"])["clip_id"].decode(errors="replace")
        except CorruptRecord:
            return None

    @property
    def data_sets(self) -> list[range]:
        """The records of each data set."""
        return [range(int(start), int(end)) for start, end in itertools.pairwise(self._starts)]

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


@dataclasses.dataclass(frozen=True)
class Place:
    """What stands at one position of a run: number `slot` of `pool`, in epoch `epoch` of that pool."""

    position: int
    pool: int
    epoch: int
    slot: int


class Loader:
    """Turns a place into an element; pure but for reading files, and safe to pickle.

    Args:
        records: where from.
        pools: indices of the records that are shuffled together; a damaged one is replaced by the next of its pool.
        make: `make(epoch, index, clip, fields) -> element`.
        train: a skipped record is replaced in training, and replaced and marked not valid otherwise.
        allowed: how many records may be damaged.
    """

    def __init__(self, records: Records, pools: Sequence[Sequence[int]], make: Callable, *, train: bool, allowed: int):
        self.records, self.pools, self.make, self.train, self.allowed = records, pools, make, train, allowed

    def __call__(self, place: Place) -> dict:
        pool, skipped = self.pools[place.pool], {}
        for step in range(min(len(pool), self.allowed + 1)):
            index = int(pool[(place.slot + step) % len(pool)])
            try:
                fields = self.records[index]
                name = f"{self.records.name(index)} ({fields['clip_id'].decode(errors='replace')})"
                clip = sampling.ClipInfo(name, fields["num_frames"], fields["num_samples"])
                element = self.make(place.epoch, index, clip, fields)
            except CorruptRecord as error:
                skipped[index] = str(error)
            except ClipError as error:
                skipped[index] = f"{self.records.name(index)}: {error}"
            except UserError as error:
                return {SKIPPED: skipped, FAILED: str(error)}
            else:
                element["record"] = np.int64(index if self.train else pool[place.slot])
                if not self.train:
                    element["valid"] = np.bool_(place.position < len(pool) and not skipped)
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
        length: frames of a segment.
        size: side of the square of pixels.
        grid: offsets of the classes.
        jitter_sec: of the sound in training.
        train: random or fixed choices.
        pixels: the form that frames travel in, `clips.RGB` or `clips.PLANES`.
        upscale: share of clips of which a smaller square is scaled up; such a cutter adds "zoom" to elements.
        features: the cached visual features, in place of frames in stage "sync".
        view: in stage "clip", 0 for the middle of the picture, else the number of a random crop.
        fixed_offsets: (offset_sec, vstart_sec) by clip_id, of a published table, in place of our own choice.
    """

    def __init__(
        self,
        stage: str,
        *,
        seed: int,
        segments: int,
        length: int = clock.SEGMENT_FRAMES,
        size: int,
        grid: np.ndarray,
        jitter_sec: float,
        train: bool,
        pixels: str = RGB,
        upscale: float = 0.0,
        features: Features | None = None,
        fixed_offsets: Mapping[str, tuple[float, float]] | None = None,
        view: int = 0,
    ):
        self.stage, self.seed, self.segments, self.size = stage, seed, segments, size
        self.length = length
        self.grid, self.jitter_sec, self.train, self.features = grid, jitter_sec, train, features
        self.pixels, self.upscale, self.fixed_offsets = pixels, upscale if train else 0.0, fixed_offsets
        self.view = view

    def __call__(self, epoch: int, index: int, clip: sampling.ClipInfo, fields: dict) -> dict:
        if self.stage == "clip":
            return self._whole(epoch, index, clip, fields)
        crop = self.fixed(clip, fields) if self.fixed_offsets is not None else self.crop(epoch, index, clip)
        element = {"audio": decode_audio(fields["audio"], crop.first_sample, crop.samples)}
        if self.features is not None:
            view = self.features.view(self.seed, epoch, index) if self.train else 0
            element["visual"] = self.features.window(index, crop.first_frame, self.segments, view)
        else:
            element |= self._frames(epoch, index, clip, fields, crop.first_frame, crop.frames)
        if self.stage != "segment_avclip":
            element |= {"target": np.int32(crop.target), "offset_sec": np.float32(crop.offset_sec)}
        return element

    def crop(self, epoch: int, index: int, clip: sampling.ClipInfo) -> sampling.Crop:
        """Where the element is cut, exactly as its segments cover it."""
        args = (self.seed, epoch, index, clip)
        how = {"jitter_sec": self.jitter_sec, "train": self.train}
        if self.stage == "segment_avclip":
            return sampling.stage1_crop(*args, segments=self.segments, length=self.length, **how)
        if self.stage == "synchronizability":
            return sampling.synchronizability_crop(
                *args, grid=self.grid, segments=self.segments, length=self.length, **how
            )
        frames = sampling.segments_frames(self.segments, 0.5, self.length)
        if self.features is not None:
            # The cache knows segments at multiples of half a segment only; the row of segments itself is the crop.
            stride = self.length // 2
            # A clip may last longer than the cache, which ends after 248 frames.
            most = min(clip.num_frames, covered_frames(self.length))
            clip = sampling.ClipInfo(clip.name, most, clip.num_samples)
            return sampling.sync_crop(*args[:3], clip, grid=self.grid, crop_frames=frames, stride=stride, **how)
        whole = max(clock.to_frames(clock.SYNC_CROP_SEC), frames)
        return sampling.sync_crop(*args, grid=self.grid, crop_frames=whole, **how).centre(frames)

    def fixed(self, clip: sampling.ClipInfo, fields: dict) -> sampling.Crop:
        """The crop that the table gives this clip, exactly as its segments cover it.

        Raises:
            ClipError: the crop does not lie in the clip.
        """
        offset_sec, start_sec = self.fixed_offsets[fields["clip_id"].decode(errors="replace")]
        crop = sampling.temporal_crop(offset_sec, start_sec, self.grid)
        if crop.first_frame + crop.frames > clip.num_frames or crop.first_sample + crop.samples > clip.num_samples:
            raise ClipError(f"the crop at {start_sec} s with offset {offset_sec} s does not lie in {clip.name}")
        frames = sampling.segments_frames(self.segments, 0.5, self.length)
        if frames > crop.frames:
            raise UserError(
                f"{self.segments} segments of {self.length} frames last {frames / clock.FRAME_RATE:.2f} s; crops of "
                f"config.data.fixed_offsets last {crop.frames / clock.FRAME_RATE:.2f} s. Set fewer model.segments, or "
                "leave the table out."
            )
        return crop.centre(frames)

    def _frames(self, epoch, index, clip, fields, first: int, count: int) -> dict:
        args = (self.seed, epoch, index, fields["height"], fields["width"], self.size)
        if self.upscale:
            top, left, zoom = sampling.zoomed_square(*args, self.upscale, name=clip.name)
            element = {"zoom": np.array(zoom, np.int32)}
        else:
            (top, left), element = sampling.square(*args, train=self.train, name=clip.name), {}
        frames = decode_frames(fields["video"], first, count, (top, left, self.size), self.pixels)
        return element | {"frames": frames}

    def _whole(self, epoch, index, clip, fields) -> dict:
        clip.require(self.length, "a segment")
        covered = covered_frames(self.length)
        count = min(clip.num_frames, covered)
        frames = np.zeros((covered, self.size, self.size, 3), np.uint8)
        place = (self.seed, self.view, index, fields["height"], fields["width"], self.size)
        top, left = sampling.square(*place, train=self.view > 0, name=clip.name)
        frames[:count] = decode_frames(fields["video"], 0, count, (top, left, self.size))
        return {"frames": frames, "starts": np.int32(num_starts(count, self.length))}
