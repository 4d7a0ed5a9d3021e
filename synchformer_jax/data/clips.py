"""Stretches of the picture and the sound of one record, decoding no more than is asked for.

The picture of a record is H.264 at a constant 25 fps from time zero with short GOPs, so a stretch starts one seek and
at most one GOP away. Frames leave as the decoder's own planes, which cost nothing but a copy, or as RGB: then cropped
frames are stacked into one tall picture, which one call turns into RGB, as a call for every small frame would take
longer than decoding it.
"""

import io

import av
import numpy as np
import soundfile
from av.video.reformatter import ColorRange, Colorspace

from synchformer_jax import clock

RGB, PLANES = "rgb", "yuv420"  # forms that pixels travel in
_STACK_PIXELS = 1 << 18  # of frames turned into RGB together


class ClipError(Exception):
    """The media of a record does not hold what the record says."""


def decode_frames(
    video: bytes, first: int, count: int, square: tuple[int, int, int] | None = None, pixels: str = RGB
) -> np.ndarray:
    """Frames `first` to `first + count`: as RGB uint8 `[count, H, W, 3]`, or as planes uint8 `[count, 1.5 H W]`.

    Planes are YUV 4:2:0 of ITU-R BT.601 in limited range, as the records hold them: the luma, row by row, then the
    quarter-size blue and red differences (I420). `ops.colour.planes_to_rgb` turns them into RGB.

    Args:
        video: a file with one video stream at 25 fps.
        first: number of the first frame.
        count: how many.
        square: (top, left, size) of the pixels wanted, top and left even; all pixels if None.
        pixels: `RGB` or `PLANES`; the latter need even numbers for `square`.

    Raises:
        ClipError: the stretch is not in the file, or the file is broken.
    """
    if first < 0:
        raise ClipError(f"no frame {first} in the picture")
    try:
        with av.open(io.BytesIO(video)) as container:
            if not container.streams.video:
                raise ClipError("no video stream")
            return _decode(container, container.streams.video[0], first, count, square, pixels)
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise ClipError(f"the picture cannot be decoded ({error})") from error


def _decode(container, stream, first: int, count: int, square, pixels: str) -> np.ndarray:
    stream.thread_type = "NONE"  # clips are decoded side by side already
    scale = 25 * stream.time_base.numerator
    denominator = stream.time_base.denominator
    if first:
        container.seek(first * denominator // scale, stream=stream, backward=True)
    store, filled = None, 0
    for frame in container.decode(stream):
        number = (2 * frame.pts * scale + denominator) // (2 * denominator)
        if number < first:
            continue
        if number != first + filled:
            raise ClipError(f"frame {first + filled} is missing from the picture")
        if store is None:
            store = _store(frame, _region(frame, square), count, pixels)
        store.add(frame)
        filled += 1
        if filled == count:
            store.flush()
            return store.out
    raise ClipError(f"the picture ends at frame {first + filled}, before frame {first + count}")


def _store(frame: av.VideoFrame, region: tuple[int, int, int, int], count: int, pixels: str):
    even = not any(number % 2 for number in region)
    if pixels == PLANES:
        if not even:
            raise ValueError(f"planes have no {region[2]}x{region[3]} pixels at {region[:2]}: all must be even")
        return _Planes(region, count)
    if even and frame.format.name in ("yuv420p", "yuvj420p"):
        return _Stack(frame, region, count)
    return _Pictures(region, count)


class _Planes:
    """Copies cropped planes; frames in other formats are turned into this one first."""

    def __init__(self, region: tuple[int, int, int, int], count: int):
        top, left, height, width = region
        self.out, self.filled, at = np.empty((count, height * width * 3 // 2), np.uint8), 0, 0
        self.parts = []
        for scale in (1, 2, 2):
            rows, columns = height // scale, width // scale
            target = self.out[:, at : at + rows * columns].reshape(count, rows, columns)
            place = slice(top // scale, top // scale + rows), slice(left // scale, left // scale + columns)
            self.parts.append((target, place))
            at += rows * columns

    def add(self, frame: av.VideoFrame) -> None:
        if frame.format.name != "yuv420p":
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG)
        for (target, place), plane in zip(self.parts, frame.planes, strict=True):
            target[self.filled] = _pixels(plane)[place]
        self.filled += 1

    def flush(self) -> None:
        """Nothing waits."""


class _Pictures:
    """Turns frames into RGB one by one: any format, any region."""

    def __init__(self, region: tuple[int, int, int, int], count: int):
        top, left, height, width = region
        self.out, self.filled = np.empty((count, height, width, 3), np.uint8), 0
        self.place = slice(top, top + height), slice(left, left + width)

    def add(self, frame: av.VideoFrame) -> None:
        self.out[self.filled] = frame.to_ndarray(format="rgb24")[self.place]
        self.filled += 1

    def flush(self) -> None:
        """Nothing waits."""


class _Stack:
    """Gathers cropped YUV 4:2:0 frames one below the other and turns them into RGB together, as fits a cache."""

    def __init__(self, frame: av.VideoFrame, region: tuple[int, int, int, int], count: int):
        top, left, self.height, width = region
        self.out, self.filled, self.waiting = np.empty((count, self.height, width, 3), np.uint8), 0, 0
        self.most = min(count, max(1, _STACK_PIXELS // (self.height * width)))
        self.frame = av.VideoFrame(width, self.height * self.most, frame.format.name)
        self.frame.colorspace, self.frame.color_range = frame.colorspace, frame.color_range
        self.targets = [
            (
                _pixels(plane),
                self.height // scale,
                slice(top // scale, (top + self.height) // scale),
                slice(left // scale, (left + width) // scale),
            )
            for plane, scale in zip(self.frame.planes, (1, 2, 2), strict=True)
        ]

    def add(self, frame: av.VideoFrame) -> None:
        for (target, rows, vertical, horizontal), plane in zip(self.targets, frame.planes, strict=True):
            target[self.waiting * rows : (self.waiting + 1) * rows] = _pixels(plane)[vertical, horizontal]
        self.waiting += 1
        if self.waiting == self.most:
            self.flush()

    def flush(self) -> None:
        """Turns into RGB what waits."""
        done = self.frame.to_ndarray(format="rgb24")[: self.waiting * self.height]
        self.out[self.filled : self.filled + self.waiting] = done.reshape(self.waiting, *self.out.shape[1:])
        self.filled, self.waiting = self.filled + self.waiting, 0


def _pixels(plane) -> np.ndarray:
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _region(frame, square) -> tuple[int, int, int, int]:
    if square is None:
        return 0, 0, frame.height, frame.width
    top, left, size = square
    if top < 0 or left < 0 or top + size > frame.height or left + size > frame.width:
        raise ClipError(f"a square of {size} pixels at ({top}, {left}) is not in {frame.width}x{frame.height}")
    return top, left, size, size


def decode_audio(audio: bytes, first: int, count: int) -> np.ndarray:
    """Samples `first` to `first + count` of a mono 16 kHz FLAC file, int16 `[count]`.

    Raises:
        ClipError: the stretch is not in the file, or the file is broken.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(audio)) as file:
            if file.samplerate != clock.SAMPLE_RATE or file.channels != 1:
                raise ClipError(f"the sound is {file.samplerate} Hz with {file.channels} channels, not 16 kHz mono")
            if first < 0 or first + count > file.frames:
                raise ClipError(f"no samples {first} to {first + count} in a sound of {file.frames}")
            file.seek(first)
            samples = file.read(count, dtype="int16")
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise ClipError(f"the sound cannot be decoded ({error})") from error
    if len(samples) != count:
        raise ClipError(f"the sound ends {count - len(samples)} samples early")
    return samples
