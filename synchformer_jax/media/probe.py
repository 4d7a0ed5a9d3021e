"""What a media file holds, and how to open one without surprises."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path

import av

from synchformer_jax.errors import UserError


class MediaError(UserError):
    """A file cannot serve as a video with sound.

    Attributes:
        reason: the cause in a few words, without the file's name, such as "no sound"; reports group by it.
    """

    def __init__(self, name: str, reason: str, fix: str):
        super().__init__(f"{name}: {reason}. {fix}")
        self.reason = reason
        self._parts = (name, reason, fix)

    def __reduce__(self):
        """Errors travel between processes by their arguments."""
        return type(self), self._parts


@dataclasses.dataclass(frozen=True)
class MediaInfo:
    """A file as its header describes it; headers lie, so what counts is what `decode.decode` finds.

    Attributes:
        duration_sec: of the picture where the file says so, else of the file; 0 if it says neither.
        width, height: in pixels as shown, that is after rotation and with square pixels; 0 without a picture.
        frame_rate: frames a second on average; 0 if unknown.
        sample_rate, channels: of the sound; 0 without one.
        start_sec: the file's own time at which the picture starts. All times of this package count from there.
    """

    duration_sec: float = 0.0
    width: int = 0
    height: int = 0
    frame_rate: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    has_video: bool = False
    has_audio: bool = False
    video_codec: str = ""
    audio_codec: str = ""
    start_sec: float = 0.0


def source_name(source: str | os.PathLike | bytes) -> str:
    """How messages call a source."""
    return f"{len(source)} bytes of video" if isinstance(source, bytes) else str(source)


@contextlib.contextmanager
def open_media(source: str | os.PathLike | bytes) -> Iterator[av.container.InputContainer]:
    """Opens a file, or bytes that hold one.

    Raises:
        MediaError: it is missing, empty or of no known format; also for any such error inside the block.
    """
    name = source_name(source)
    if not isinstance(source, bytes):
        path = Path(source)
        if not path.is_file():
            raise MediaError(name, "no such file", "Check the path.")
        if not path.stat().st_size:
            raise MediaError(name, "the file is empty", "Fetch it again.")
    try:
        # A path could name a protocol, such as "concat:"; "file:" takes any name as it stands.
        target = io.BytesIO(source) if isinstance(source, bytes) else f"file:{Path(source)}"
        with av.open(target, metadata_errors="replace") as container:
            yield container
    except (av.FFmpegError, UnicodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise MediaError(
            name, f"it cannot be read as a video ({cause})", "Check that it plays elsewhere, or fetch it again."
        ) from error


def picture_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The stream of moving pictures; covers and thumbnails do not count."""
    still = av.stream.Disposition.attached_pic | av.stream.Disposition.still_image
    best = container.streams.best("video")
    ordered = ([best] if best else []) + list(container.streams.video)
    return next((s for s in ordered if not s.disposition & still and s.codec_context is not None), None)


def sound_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    """The main stream of sound: of several tracks the one that players choose."""
    best = container.streams.best("audio")
    return best if best is not None and best.codec_context is not None else None


def shown_size(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """Width and height of a picture with square pixels, before rotation."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 0.1 < aspect < 10:
        aspect = 1.0
    return max(round(frame.width * aspect), 1), frame.height


def quarter_turns(frame: av.VideoFrame) -> int:
    """By how many quarter turns, counter-clockwise, the picture must be turned to be shown."""
    return round(frame.rotation / 90) % 4


def probe(source: str | os.PathLike | bytes) -> MediaInfo:
    """Reads a file's header and first picture; milliseconds even for long files.

    Raises:
        MediaError: the file cannot be read at all. A missing stream is no error here.
    """
    with open_media(source) as container:
        video, audio = picture_stream(container), sound_stream(container)
        info = {"duration_sec": (container.duration or 0) / av.time_base}
        if audio is not None:
            info |= {
                "has_audio": True,
                "audio_codec": audio.codec_context.name,
                "sample_rate": audio.codec_context.sample_rate or 0,
                "channels": audio.codec_context.channels,
            }
        if video is not None:
            if video.duration and video.time_base:
                info["duration_sec"] = float(video.duration * video.time_base)
            frame = None
            # A damaged start gives errors until the first key frame that can be decoded.
            for packet in container.demux(video):
                with contextlib.suppress(av.error.InvalidDataError):
                    frame = next(iter(packet.decode()), None)
                if frame is not None:
                    break
            if frame is not None:
                width, height = shown_size(frame, video)
                if quarter_turns(frame) % 2:
                    width, height = height, width
                info |= {
                    "has_video": True,
                    "video_codec": video.codec_context.name,
                    "width": width,
                    "height": height,
                    "frame_rate": float(video.average_rate or video.guessed_rate or 0),
                    "start_sec": frame.time or 0.0,
                }
    return MediaInfo(**info)
