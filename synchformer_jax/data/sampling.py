"""Where to cut: pure choices of crop, offset and segments from (seed, epoch, record index).

A choice never looks at what was chosen before, so any worker on any host makes the same one. Crops lie inside the clip
or are an error: nothing is padded.
"""

import dataclasses
import math

import numpy as np

from synchformer_jax import clock
from synchformer_jax.errors import UserError

_CROP, _PIXELS, _ZOOM = 0, 1, 2  # what a stream of random numbers is for
_EVALUATION_SEED = 2401_16423  # any number that never changes; this is the paper's


@dataclasses.dataclass(frozen=True)
class Crop:
    """A stretch of picture and one of sound of the same length.

    `offset_sec > 0`: the audio is early. `target` is the class of `offset_sec`; in synchronizability 1 for pairs that
    can be synchronized. `jitter_samples` is contained in `first_sample`.
    """

    first_frame: int
    frames: int
    first_sample: int
    samples: int
    offset_sec: float = 0.0
    target: int = 0
    jitter_samples: int = 0

    def centre(self, frames: int) -> "Crop":
        """The middle `frames` of this crop, where a row of segments lies that does not fill it."""
        lead = (self.frames - frames) // 2
        return dataclasses.replace(
            self,
            first_frame=self.first_frame + lead,
            frames=frames,
            first_sample=self.first_sample + lead * clock.SAMPLES_PER_FRAME,
            samples=frames * clock.SAMPLES_PER_FRAME,
        )


@dataclasses.dataclass(frozen=True)
class ClipInfo:
    """What the choices need to know of a record; `name` is for messages."""

    name: str
    num_frames: int
    num_samples: int

    @property
    def frames(self) -> int:
        """Frames that have both picture and sound."""
        return min(self.num_frames, self.num_samples // clock.SAMPLES_PER_FRAME)

    def require(self, frames: int, what: str) -> None:
        """Raises `UserError` if the clip is shorter than `frames`."""
        if self.frames < frames:
            raise UserError(
                f"{self.name} lasts {self.frames / clock.FRAME_RATE:.2f} s and {what} needs "
                f"{frames / clock.FRAME_RATE:.2f} s. Prepare the data set with --min-sec "
                f"{frames / clock.FRAME_RATE:.2f} or longer."
            )


def random(seed: int, epoch: int, index: int, purpose: int = _CROP) -> np.random.Generator:
    """The random numbers of one record in one epoch."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, index], counter=[0, 0, epoch, purpose]))


def temporal_crop(
    offset_sec: float, video_start_sec: float, grid: np.ndarray, crop_sec: float = clock.SYNC_CROP_SEC
) -> Crop:
    """The crop of a row of a published table of fixed offsets.

    Numbers are cut off, not rounded, as the published evaluation does: 4.64 s becomes frame 115 (4.64 * 25 is just
    under 116 in binary) while its sound starts at 4.64 s. Choices of our own do not pass through here and are exact.

    Args:
        offset_sec: of the row; rounded to 0.01 s as published.
        video_start_sec: where the picture starts.
        grid: ascending offsets of the classes, `[classes]`.
        crop_sec: how long the crop lasts.
    """
    offset_sec = round(float(offset_sec), 2)
    first_frame = int(video_start_sec * clock.FRAME_RATE)
    first_sample = int((video_start_sec + offset_sec) * clock.SAMPLE_RATE)
    frames = int(crop_sec * clock.FRAME_RATE)
    return Crop(
        first_frame=first_frame,
        frames=frames,
        # A start just before the file is a rounding of the table's video start, never more than a frame.
        first_sample=0 if -clock.SAMPLES_PER_FRAME <= first_sample < 0 else first_sample,
        samples=frames * clock.SAMPLES_PER_FRAME,
        offset_sec=offset_sec,
        target=clock.nearest_class(offset_sec, grid),
    )


def jittered(crop: Crop, clip: ClipInfo, jitter_sec: float, rng: np.random.Generator) -> Crop:
    """`crop` with its sound moved by up to `jitter_sec` either way, evenly, inside the clip."""
    most = int(jitter_sec * clock.SAMPLE_RATE)
    before = min(crop.first_sample, most)
    after = min(clip.num_samples - crop.samples - crop.first_sample, most)
    jitter = int(rng.integers(-before, after + 1)) if most > 0 else 0
    return dataclasses.replace(crop, first_sample=crop.first_sample + jitter, jitter_samples=jitter)


def segments_frames(segments: int, step: float = 1.0, length: int = clock.SEGMENT_FRAMES) -> int:
    """Frames that a row of segments of `length` frames covers, each `step` segments after the one before it."""
    return (segments - 1) * int(step * length) + length


def segment_starts(
    clip_frames: int, segments: int | None = None, step: float = 1.0, length: int = clock.SEGMENT_FRAMES
) -> tuple[np.ndarray, np.ndarray]:
    """First frame and first sample of each segment of a row in the middle of a clip, int `[segments]` each.

    Args:
        clip_frames: the clip's length.
        segments: how many; as many as fit if None.
        step: from one segment to the next, in segments.
        length: frames of a segment.

    Raises:
        ValueError: they do not fit.
    """
    stride = int(step * length)
    fit = (clip_frames - length) // stride + 1
    segments = fit if segments is None else segments
    if not 0 < segments <= fit:
        raise ValueError(f"{segments} segments do not fit {clip_frames} frames")
    first = (clip_frames - segments_frames(segments, step, length)) // 2
    frames = first + stride * np.arange(segments)
    return frames, frames * clock.SAMPLES_PER_FRAME


def stage1_crop(
    seed: int,
    epoch: int,
    index: int,
    clip: ClipInfo,
    *,
    segments: int = 14,
    length: int = clock.SEGMENT_FRAMES,
    jitter_sec: float = 0.05,
    train: bool = True,
) -> Crop:
    """Adjacent segments for contrastive learning: anywhere in training, in the middle otherwise; sound jittered.

    Raises:
        UserError: the clip is too short.
    """
    frames = segments_frames(segments, length=length)
    clip.require(frames, f"a row of {segments} segments")
    rng = random(seed, epoch, index)
    spare = clip.frames - frames
    start = int(rng.integers(spare + 1)) if train else spare // 2
    crop = Crop(start, frames, start * clock.SAMPLES_PER_FRAME, frames * clock.SAMPLES_PER_FRAME)
    return jittered(crop, clip, jitter_sec, rng) if train else crop


def _start(rng: np.random.Generator, clip: ClipInfo, crop_frames: int, offset_sec: float, stride: int) -> int:
    """An even choice among the starts, multiples of `stride`, that keep picture and sound inside the clip."""
    offset = offset_sec * clock.FRAME_RATE
    # The margins swallow the binary fraction of 1.4 * 25, which is 35.
    low = math.ceil(max(0.0, -offset) - 1e-6)
    high = math.floor(clip.frames - crop_frames - max(0.0, offset) + 1e-6)
    low, high = -(-low // stride), high // stride
    if high < low:
        need = crop_frames + math.ceil(abs(offset) - 1e-6) + stride - 1
        clip.require(need, f"an offset of {offset_sec:+.2f} s")
    return stride * int(rng.integers(low, high + 1))


def _offset_crop(rng, clip: ClipInfo, crop_frames: int, offset_sec: float, target: int, stride: int) -> Crop:
    start = _start(rng, clip, crop_frames, offset_sec, stride)
    samples = crop_frames * clock.SAMPLES_PER_FRAME
    first_sample = start * clock.SAMPLES_PER_FRAME + clock.to_samples(offset_sec)
    return Crop(start, crop_frames, first_sample, samples, offset_sec, target)


def fixed_class(index: int, classes: int = clock.OFFSET_CLASSES) -> int:
    """The offset class of a record in evaluation: neighbours differ widely and each run of `classes` has all.

    Eight steps a record spread the 21 classes; the step is moved to a neighbour that shares no divisor with `classes`.
    """
    step = next(step for step in range(8, 8 + classes) if math.gcd(step, classes) == 1)
    return (index * step + 5) % classes


def sync_crop(
    seed: int,
    epoch: int,
    index: int,
    clip: ClipInfo,
    *,
    grid: np.ndarray,
    crop_frames: int = 125,
    stride: int = 1,
    jitter_sec: float = 0.05,
    train: bool = True,
) -> Crop:
    """A crop whose sound is off by one of the grid's offsets (paper, section 3.2).

    In training the class, the start and the jitter are drawn evenly; in evaluation the class follows from `index`, the
    start from `index` alone too, and there is no jitter, so that every evaluation asks the same questions.

    Args:
        grid: ascending offsets of the classes in seconds, `[classes]`.
        crop_frames: 125 (5 s) as published.
        stride: the picture starts at a multiple of this many frames.

    Raises:
        UserError: the clip is too short for the crop and its offset.
    """
    rng = random(seed, epoch, index) if train else random(_EVALUATION_SEED, 0, index)
    target = int(rng.integers(len(grid))) if train else fixed_class(index, len(grid))
    crop = _offset_crop(rng, clip, crop_frames, round(float(grid[target]), 2), target, stride)
    return jittered(crop, clip, jitter_sec, rng) if train else crop


def synchronizability_crop(
    seed: int,
    epoch: int,
    index: int,
    clip: ClipInfo,
    *,
    grid: np.ndarray,
    segments: int = 13,
    length: int = clock.SEGMENT_FRAMES,
    jitter_sec: float = 0.05,
    train: bool = True,
) -> Crop:
    """Half the crops offset by one of the grid's offsets (target 1), half by a whole crop (target 0; section 3.4).

    In evaluation the halves alternate with `index`.

    Raises:
        UserError: the clip is too short: it takes two crops.
    """
    frames = segments_frames(segments, 0.5, length)
    rng = random(seed, epoch, index) if train else random(_EVALUATION_SEED, 1, index)
    target = int(rng.integers(2)) if train else index % 2
    if target:
        offset = grid[int(rng.integers(len(grid)))] if train else grid[fixed_class(index // 2, len(grid))]
    else:
        offset = frames / clock.FRAME_RATE * (2 * int(rng.integers(2)) - 1)
    crop = _offset_crop(rng, clip, frames, round(float(offset), 2), target, 1)
    return jittered(crop, clip, jitter_sec, rng) if train else crop


def square(
    seed: int, epoch: int, index: int, height: int, width: int, size: int, *, train: bool = True, name: str = "A clip"
) -> tuple[int, int]:
    """Top and left of the square that is cut out of the picture: anywhere in training, the middle otherwise.

    Both are even, because two rows and columns share their colour in the records.

    Raises:
        UserError: the picture is smaller than the square.
    """
    if min(height, width) < size:
        raise UserError(
            f"{name} is {width}x{height} and config.data.size asks for {size}x{size} pixels. "
            f"Prepare the data set with --short-side {size} or larger, or set config.data.size={min(height, width)}."
        )
    if not train:
        return (height - size) // 2 & ~1, (width - size) // 2 & ~1
    rng = random(seed, epoch, index, _PIXELS)
    return 2 * int(rng.integers((height - size) // 2 + 1)), 2 * int(rng.integers((width - size) // 2 + 1))


def zoomed_square(
    seed: int, epoch: int, index: int, height: int, width: int, size: int, share: float, *, name: str = "A clip"
) -> tuple[int, int, tuple[int, int, int]]:
    """Like `square` in training, but in a random share of clips a smaller square is scaled up to `size`.

    The smaller one lies anywhere in the picture too; a square of `size` around it travels, and the device scales.

    Returns:
        top, left of the square, and (top, left, side) of what is seen of it: (0, 0, size) where nothing is scaled.

    Raises:
        UserError: the picture is smaller than the square.
    """
    top, left = square(seed, epoch, index, height, width, size, name=name)
    rng = random(seed, epoch, index, _ZOOM)
    if rng.random() >= share:
        return top, left, (0, 0, size)
    side = smaller_side(size)
    corner = [int(rng.integers(extent - side + 1)) for extent in (height, width)]
    top, left = (
        min(max(0, place - (size - side) // 2), extent - size) & ~1
        for place, extent in zip(corner, (height, width), strict=True)
    )
    return top, left, (corner[0] - top, corner[1] - left, side)


def smaller_side(size: int) -> int:
    """Side of the square that is scaled up to `size`: 192 for 224, as published."""
    return round(size * 192 / 224)
