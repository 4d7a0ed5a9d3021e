"""A video file -> picture at a constant rate and sound, aligned by presentation time stamps.

Time zero is the first picture that is shown. Whatever shifts picture against sound in the file is honoured: edit lists,
encoder delay (AAC priming) where the container states it, streams that start late, negative start times, B-frames,
gaps. Picture at a variable or other rate is resampled by nearest time stamp. AVI stores no presentation times: there
the pictures take the times of their packets in turn.

Not every container states encoder delay. MP4, MOV, Matroska and WebM do, and it is cut off; MPEG-TS gives the delayed
samples their own, earlier time stamps, which comes to the same. AVI states nothing: there sound in AAC or MP3 stays
late by the encoder's delay (1,024 samples of AAC, 1,105 of LAME's MP3), and no reader can know.
"""

import contextlib
import dataclasses
import heapq
import os
from collections.abc import Callable

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from synchformer_jax import clock
from synchformer_jax.media.probe import (
    MediaError,
    MediaInfo,
    open_media,
    picture_stream,
    probe,
    quarter_turns,
    shown_size,
    sound_stream,
    source_name,
)
from synchformer_jax.media.sound import Sound

__all__ = ["Clip", "Film", "MediaError", "MediaInfo", "decode", "probe", "read", "scaled_size"]

# Seeking pays from here on; before it, decoding from the start is exact and as fast.
_SEEK_FROM_SEC = 6.0
# A seek lands this much earlier, so that sound that lies before its picture in the file is read too.
_SEEK_MARGIN_SEC = 2.0
_EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # the same pixels on every processor
# For RGB the published models were fed what libav's plain conversion gives, which is a quarter of a level brighter than
# the accurate one on average: enough to move their logits by 0.02.
_PUBLISHED = Interpolation.BITEXACT


@dataclasses.dataclass(frozen=True)
class Clip:
    """A decoded piece of video.

    Attributes:
        frames: uint8 `[T, H, W, 3]`, RGB; frame i is the picture at i / frame_rate seconds.
        audio: int16 `[N]`, one channel; sample i is the sound at i / sample_rate seconds. `N / sample_rate` is
            `T / frame_rate`; silence stands where the file has no sound.
        frame_rate, sample_rate: in Hz.
        sound_start_sec, sound_end_sec: the part of the clip for which the file has sound.
        damaged: how many packets could not be decoded.
    """

    frames: np.ndarray
    audio: np.ndarray
    frame_rate: float
    sample_rate: int
    sound_start_sec: float = 0.0
    sound_end_sec: float = 0.0
    damaged: int = 0


@dataclasses.dataclass(frozen=True)
class Film:
    """What `read` finds beside the pictures; as in `Clip`."""

    pictures: int
    audio: np.ndarray
    sound_start_sec: float
    sound_end_sec: float
    damaged: int


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height, both even, after scaling the shorter side to `short_side`; unchanged if that is None."""
    if short_side is None:
        return width, height
    scale = short_side / min(width, height)
    return tuple(max(2 * round(side * scale / 2), 2) for side in (width, height))


class _Pictures:
    """Takes decoded pictures in order of time and shows the nearest one at every tick of a constant rate."""

    def __init__(self, stream: av.VideoStream, show: Callable[[av.VideoFrame], None], frame_rate: float):
        self._stream, self._show, self._rate = stream, show, frame_rate
        self._last: tuple[float, av.VideoFrame] | None = None
        self._gap = float(1 / stream.guessed_rate) if stream.guessed_rate else 1 / frame_rate
        # In AVI packets are stamped in order of decoding; what libav makes of B-frames there is out of order.
        self._queue: list[int] | None = [] if stream.container.format.name == "avi" else None
        self.zero: float | None = None  # the file's time of the first picture
        self.first_sec = float("inf")  # of the first picture that came, which after a seek is not the file's first
        self.start_sec, self.limit, self.count = 0.0, float("inf"), 0

    @property
    def done(self) -> bool:
        return self.count >= self.limit

    def _show_until(self, sec: float, inclusive: bool) -> None:
        """Shows the last picture at all ticks up to a time after zero."""
        while not self.done:
            tick = self.start_sec + self.count / self._rate
            if tick > sec + 1e-6 if inclusive else tick > sec - 0.9 / self._rate:
                break
            self._show(self._last[1])
            self.count += 1

    def announce(self, packet: av.Packet) -> None:
        """Takes note of a packet that was decoded, before its pictures come."""
        if self._queue is not None and packet.dts is not None:
            heapq.heappush(self._queue, packet.dts)

    def add(self, frame: av.VideoFrame) -> None:
        stamp = frame.pts if frame.pts is not None else frame.dts
        if self._queue:
            stamp = heapq.heappop(self._queue)
        if stamp is not None and frame.time_base:
            sec = float(stamp * frame.time_base)
        else:
            sec = self._last[0] + self._gap if self._last else 0.0
        if self.zero is None:
            self.zero = sec
        sec -= self.zero
        self.first_sec = min(self.first_sec, sec)
        if self._last is not None:
            if sec <= self._last[0]:
                return  # a time stamp that goes back cannot be shown
            self._show_until((self._last[0] + sec) / 2, inclusive=True)
            self._gap = sec - self._last[0]
        self._last = (sec, frame)

    def finish(self) -> None:
        """Shows the last picture for as long as the file says, if that is plausible."""
        if self._last is not None:
            frame = self._last[1]
            length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            self._show_until(self._last[0] + (length if 0 < length <= 1 else min(self._gap, 1.0)), inclusive=False)


class _Converter:
    """Turns, scales and recodes pictures; the size is that of the first one, whatever comes later."""

    def __init__(self, stream: av.VideoStream, short_side: int | None, pixel_format: str):
        self._stream, self._short_side, self._format = stream, short_side, pixel_format
        self._size: tuple[int, int] | None = None
        self._reformatter = VideoReformatter()
        self._cached: tuple[av.VideoFrame, av.VideoFrame] | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        if self._cached is not None and self._cached[0] is frame:
            return self._cached[1]
        if self._size is None:
            self._size = scaled_size(*shown_size(frame, self._stream), self._short_side)
        turns = quarter_turns(frame)
        kernel = Interpolation.AREA if self._size[1] < frame.height else Interpolation.BICUBIC
        made = self._convert(frame, self._size, "rgb24" if turns else self._format, kernel)
        if turns:
            turned = np.ascontiguousarray(np.rot90(made.to_ndarray(), turns))
            made = self._convert(av.VideoFrame.from_ndarray(turned), (turned.shape[1], turned.shape[0]), self._format)
        self._cached = (frame, made)
        return made

    def _convert(self, frame, size, pixel_format, kernel=Interpolation.BICUBIC) -> av.VideoFrame:
        yuv = {"dst_colorspace": Colorspace.ITU601, "dst_color_range": ColorRange.MPEG}
        return self._reformatter.reformat(
            frame,
            *size,
            pixel_format,
            interpolation=kernel | (_PUBLISHED if pixel_format == "rgb24" else _EXACT),
            threads=1,
            **(yuv if "yuv" in pixel_format else {}),
        )


def read(
    source: str | os.PathLike | bytes,
    show: Callable[[av.VideoFrame], None],
    *,
    pixel_format: str = "rgb24",
    frame_rate: float = float(clock.FRAME_RATE),
    sample_rate: int = clock.SAMPLE_RATE,
    short_side: int | None = None,
    start_sec: float = 0.0,
    duration_sec: float | None = None,
) -> Film:
    """Decodes as `decode` does but hands over one picture after the other, so that none need be kept.

    Args:
        show: called with each picture in turn; the same object comes again where a picture is repeated.
        pixel_format: libav's name, such as "rgb24" or "yuv420p" (BT.601, limited range).

    Raises:
        MediaError: see `decode`.
    """
    options = (pixel_format, frame_rate, sample_rate, short_side, start_sec, duration_sec)
    film = _read(source, show, *options, seek=True) if start_sec > _SEEK_FROM_SEC else None
    return film if film is not None else _read(source, show, *options, seek=False)


def _read(
    source, show, pixel_format, frame_rate, sample_rate, short_side, start_sec, duration_sec, *, seek
) -> Film | None:
    """`read`; None if seeking led past the wanted start, before anything was shown."""
    name = source_name(source)
    with open_media(source) as container:
        video, audio = picture_stream(container), sound_stream(container)
        if video is None:
            raise MediaError(name, "no picture", "Give a file with a video stream.")
        if audio is None:
            raise MediaError(name, "no sound", "Give a file with an audio stream.")
        video.codec_context.thread_count = audio.codec_context.thread_count = 1
        convert = _Converter(video, short_side, pixel_format)
        pictures = _Pictures(video, lambda frame: show(convert(frame)), frame_rate)
        pictures.start_sec = start_sec
        if duration_sec is not None:
            pictures.limit = max(round(duration_sec * frame_rate), 0)
        if seek:
            pictures.zero = _first_picture_sec(container, video)
            if pictures.zero is None:
                return None
            try:
                container.seek(int((pictures.zero + start_sec - _SEEK_MARGIN_SEC) * av.time_base))
            except av.FFmpegError:
                return None
        sound, damaged = Sound(), 0
        for packet in container.demux(video, audio):
            wanted = pictures.start_sec + pictures.limit / frame_rate
            heard = pictures.zero is not None and sound.end_sec > pictures.zero + wanted + 0.5
            if pictures.done and heard:
                break
            if pictures.done if packet.stream is video else heard:
                continue
            try:
                decoded = packet.decode()
            except av.error.InvalidDataError:
                damaged += 1
                continue
            if packet.stream is video:
                pictures.announce(packet)
            for frame in decoded:
                (pictures if packet.stream is video else sound).add(frame)
            if seek and start_sec + 1e-6 < pictures.first_sec < float("inf"):
                return None
            if pictures.zero is not None:
                sound.drop_before(pictures.zero + start_sec)
        pictures.finish()
        if pictures.zero is None:
            raise MediaError(name, "no picture could be decoded", "Check that it plays elsewhere, or fetch it again.")
        if not pictures.count and pictures.limit:
            raise MediaError(
                name, f"the picture ends before {start_sec:.2f} s", "Give an earlier start or a longer video."
            )
        if sound.end_sec == float("-inf") and not seek:
            raise MediaError(name, "no sound could be decoded", "Check that it plays elsewhere, or fetch it again.")
        samples = round(pictures.count / frame_rate * sample_rate)
        heard = sound.cut(pictures.zero + start_sec, samples, sample_rate)
        return Film(pictures.count, *heard, damaged)


def _first_picture_sec(container: av.container.InputContainer, video: av.VideoStream) -> float | None:
    pictures = _Pictures(video, lambda frame: None, 1.0)
    for packet in container.demux(video):
        with contextlib.suppress(av.error.InvalidDataError):
            decoded = packet.decode()
            pictures.announce(packet)
            for frame in decoded:
                pictures.add(frame)
                return pictures.zero
    return None


def decode(
    source: str | os.PathLike | bytes,
    *,
    frame_rate: float = float(clock.FRAME_RATE),
    sample_rate: int = clock.SAMPLE_RATE,
    short_side: int | None = None,
    start_sec: float = 0.0,
    duration_sec: float | None = None,
) -> Clip:
    """Decodes a video, or a piece of it, to arrays.

    Args:
        source: a path, or a whole file as bytes.
        frame_rate: of the pictures returned; each is the file's picture nearest in time.
        sample_rate: of the sound returned, in Hz.
        short_side: scales the shorter side to so many pixels (both sides even); None keeps the size.
        start_sec: where to start, in seconds after the first picture.
        duration_sec: how much to decode; None, or more than there is, decodes to the end of the picture.

    Raises:
        MediaError: the file is missing, empty, unreadable, has no picture or no sound, or ends before `start_sec`.
    """
    frames: list[np.ndarray] = []
    film = read(
        source,
        lambda frame: frames.append(frame.to_ndarray()),
        frame_rate=frame_rate,
        sample_rate=sample_rate,
        short_side=short_side,
        start_sec=start_sec,
        duration_sec=duration_sec,
    )
    return Clip(
        frames=np.stack(frames) if frames else np.zeros((0, 0, 0, 3), np.uint8),
        audio=film.audio,
        frame_rate=frame_rate,
        sample_rate=sample_rate,
        sound_start_sec=film.sound_start_sec,
        sound_end_sec=film.sound_end_sec,
        damaged=film.damaged,
    )
