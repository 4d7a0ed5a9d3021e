"""One video file -> one record: picture at 25 fps for fast decoding, sound without loss."""

import dataclasses
import io
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import soundfile

from data_prep.sources import Source, read_level
from synchformer_jax import clock
from synchformer_jax.data.records import encode_example
from synchformer_jax.media import decode
from synchformer_jax.media.encode import x264_params

# Below this swing either way (-60 dB of full scale) there is nothing to hear, and where no pixel changes by more in
# 0.2 s, over this share of the clip, nothing to see.
SILENT_PEAK = 33
STILL_CHANGE = 6
STILL_SHARE = 0.8
_STILL_STEP = 5  # frames between those compared
_CUT_SLACK_SEC = 1.0  # a file that is at most so much longer than its segment has been cut to it
_DAMAGED_SHARE = 0.05  # of packets lost to decoding errors


class Rejected(Exception):
    """A video cannot become a record; the message is the reason in a few words."""


@dataclasses.dataclass(frozen=True)
class PictureCodec:
    """How H.264 keeps the pictures of a record; benchmarks/codec_study.py measured what is the default here.

    Attributes:
        crf: constant quality, lower is better.
        preset, tune: x264's; "" for no tune.
        gop_frames: from one key frame to the next. Reading a crop decodes at most so many frames more than the crop.
        b_frames: in a row.
    """

    crf: int = 19
    preset: str = "veryfast"
    tune: str = "fastdecode"
    gop_frames: int = 25
    b_frames: int = 0


CODEC = PictureCodec()


@dataclasses.dataclass(frozen=True)
class ClipOptions:
    """How videos become records.

    Attributes:
        short_side: pixels of the shorter side.
        min_sec: what has less picture with sound is rejected.
        max_sec: what has more gives its first part.
    """

    short_side: int = 256
    min_sec: float = 9.0
    max_sec: float = 10.0

    def fingerprint(self) -> list:
        """Everything that the bytes of a record depend on, beside its video."""
        filters = [SILENT_PEAK, STILL_CHANGE, STILL_SHARE]
        return [2, *dataclasses.astuple(CODEC), *filters, *dataclasses.astuple(self)]

    def estimated_bytes(self) -> int:
        """About the size of a record, rather too high than too low."""
        picture = 0.06 * 1.5 * self.short_side**2 * clock.FRAME_RATE
        return int(self.max_sec * (picture + 20_000))


def encode_picture(frames: list[av.VideoFrame], codec: PictureCodec = CODEC) -> bytes:
    """A picture-only mp4 at a constant 25 fps from zero seconds; the same frames give the same bytes.

    Args:
        frames: all of one even size, format yuv420p.
        codec: how they are kept.
    """
    base = Fraction(1, clock.FRAME_RATE)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=clock.FRAME_RATE)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        stream.codec_context.time_base = base
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        stream.options = {
            "crf": str(codec.crf),
            "preset": codec.preset,
            "g": str(codec.gop_frames),
            "bf": str(codec.b_frames),
            "x264-params": f"{x264_params()}:scenecut=0:keyint={codec.gop_frames}:min-keyint={codec.gop_frames}",
        } | ({"tune": codec.tune} if codec.tune else {})
        for number, frame in enumerate(frames):
            frame = _own(frame, number, frames)
            frame.pts, frame.time_base, frame.pict_type = number, base, av.video.frame.PictureType.NONE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _own(frame: av.VideoFrame, number: int, frames: list[av.VideoFrame]) -> av.VideoFrame:
    """A repeated picture is one object, and the encoder may still hold it with its earlier time."""
    if number and frames[number - 1] is frame:
        return av.VideoFrame.from_ndarray(frame.to_ndarray(), "yuv420p")
    return frame


def _luma(frame: av.VideoFrame) -> np.ndarray:
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].astype(np.int16)


def _is_still(frames: list[av.VideoFrame]) -> bool:
    sampled = [_luma(frame) for frame in frames[::_STILL_STEP]]
    still = [np.abs(after - before).max() <= STILL_CHANGE for before, after in pairwise(sampled)]
    return sum(still) >= STILL_SHARE * len(still)


def is_silent(audio: np.ndarray) -> bool:
    """Whether int16 sound `[N]` holds nothing to hear; a constant is silent, too."""
    return np.ptp(audio.astype(np.int32)) < 2 * SILENT_PEAK


def _stretch(source: Source, options: ClipOptions) -> tuple[float, float]:
    """(start, duration) in seconds of the clip in its file."""
    if source.segment is None:
        return 0.0, options.max_sec
    start, end = source.segment
    duration = min(end - start, options.max_sec)
    # Some tools that fetch videos cut them to the segment and keep the name of the whole.
    already_cut = decode.probe(source.path).duration_sec <= end - start + min(_CUT_SLACK_SEC, start / 2)
    return (0.0 if already_cut else start), duration


def make_record(source: Source, options: ClipOptions) -> bytes:
    """The serialised record of a clip.

    Raises:
        Rejected: it is unreadable, lacks picture or sound, is too short, silent or still.
    """
    frames: list[av.VideoFrame] = []
    try:
        start, duration = _stretch(source, options)
        film = decode.read(
            source.path,
            frames.append,
            pixel_format="yuv420p",
            short_side=options.short_side,
            start_sec=start,
            duration_sec=duration,
        )
    except decode.MediaError as error:
        raise Rejected(error.reason) from error
    # The sound of a file often ends some milliseconds before its picture.
    count = min(len(frames), round(film.sound_end_sec * clock.FRAME_RATE))
    usable = count / clock.FRAME_RATE - film.sound_start_sec
    if usable < options.min_sec - 0.5 / clock.FRAME_RATE:
        raise Rejected(f"too short: {max(usable, 0):.1f} s of picture with sound")
    if film.damaged > _DAMAGED_SHARE * len(frames):
        raise Rejected(f"damaged: {film.damaged} packets cannot be decoded")
    frames, audio = frames[:count], film.audio[: count * clock.SAMPLES_PER_FRAME]
    if is_silent(audio):
        raise Rejected("silent")
    if _is_still(frames):
        raise Rejected("still picture")
    flac = io.BytesIO()
    soundfile.write(flac, audio, clock.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return encode_example(
        {
            "clip_id": source.clip_id,
            "video": encode_picture(frames),
            "audio": flac.getvalue(),
            "num_frames": count,
            "num_samples": len(audio),
            "height": frames[0].height,
            "width": frames[0].width,
            "level": read_level(source.path),
            "label": source.label,
        }
    )
