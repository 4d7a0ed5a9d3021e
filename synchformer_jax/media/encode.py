"""Arrays to an mp4 file that every player opens: H.264 and AAC, both starting at zero seconds."""

import os
import platform
from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np

from synchformer_jax.clock import FRAME_RATE, SAMPLE_RATE
from synchformer_jax.errors import UserError
from synchformer_jax.files import atomic_path

AAC_FRAME = 1024  # samples that the AAC encoder takes at a time
AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


@cache
def x264_params() -> str:
    """One thread, and one set of vector instructions where it is known to be there, so that the bytes repeat."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        try:
            if " avx2 " in Path("/proc/cpuinfo").read_text():
                return "threads=1:asm=AVX2"
        except OSError:
            pass
    return "threads=1"


def _as_audio(audio: np.ndarray) -> np.ndarray:
    """Samples as `[N, C]` int16."""
    audio = np.asarray(audio)
    if audio.dtype != np.int16 or audio.ndim not in (1, 2):
        raise UserError(
            f"Sound must be int16 of shape [N] or [N, C], not {audio.dtype} {audio.shape}. Scale floats by 32767 first."
        )
    audio = audio[:, None] if audio.ndim == 1 else audio
    if not len(audio) or audio.shape[1] not in (1, 2):
        raise UserError(f"Sound of {len(audio)} samples and {audio.shape[1]} channels cannot be written. Give 1 or 2.")
    return np.ascontiguousarray(audio)


def write_mp4(
    path: str | os.PathLike,
    frames: Iterable[np.ndarray],
    audio: np.ndarray,
    *,
    frame_rate: float | Fraction = FRAME_RATE,
    sample_rate: int = SAMPLE_RATE,
    crf: int = 20,
    preset: str = "veryfast",
    audio_bit_rate: int = 64_000,
) -> None:
    """Writes a whole file or none; the same arrays give the same bytes.

    Frame i is shown from i / frame_rate and sample n is heard at n / sample_rate, both in seconds from the file's
    start. The AAC encoder's priming samples are cut by the file's edit list, which decoders that keep to the format
    honour.

    Args:
        path: the file to write; its folder is made.
        frames: uint8 `[H, W, 3]` RGB, H and W even; may be a generator.
        audio: int16 `[N]` or `[N, C]` with one or two channels.
        frame_rate: frames a second.
        sample_rate: samples a second, one that AAC knows.
        crf: constant quality of H.264, lower is better.
        preset: x264's trade of time for size.
        audio_bit_rate: of AAC in bits a second.

    Raises:
        UserError: there is no frame, arrays have other types or shapes, or the file cannot be written.
    """
    audio = _as_audio(audio)
    if sample_rate not in AAC_RATES:
        raise UserError(f"AAC has no {sample_rate} Hz. Resample to one of {', '.join(map(str, AAC_RATES))}.")
    rate = Fraction(frame_rate).limit_denominator(60_000)
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    with atomic_path(path) as temporary:
        try:
            with av.open(str(temporary), "w", format="mp4", options=options) as container:
                _write_streams(container, frames, audio, rate, sample_rate, crf, preset, audio_bit_rate)
        except av.error.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise UserError(f"{path} cannot be encoded: {error}. Check the sizes of frames and sound.") from error


def _write_streams(container, frames, audio, rate, sample_rate, crf, preset, audio_bit_rate) -> None:
    """Encodes both streams side by side, so that neither waits in memory for the other."""
    sound = container.add_stream("aac", rate=sample_rate, layout="mono" if audio.shape[1] == 1 else "stereo")
    sound.bit_rate, sound.options = audio_bit_rate, {"aac_coder": "fast"}
    sound.codec_context.flags |= av.codec.context.Flags.bitexact
    picture, shape, sent, count = None, None, 0, 0

    def send_sound(end: int) -> None:
        nonlocal sent
        while sent < end:
            block = audio[sent : sent + AAC_FRAME]
            frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="s16", layout=sound.layout.name)
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, sent, Fraction(1, sample_rate)
            container.mux(sound.encode(frame))
            sent += len(block)

    for count, pixels in enumerate(frames, 1):
        pixels = np.asarray(pixels)
        if picture is None:
            shape = pixels.shape
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or shape[2] != 3 or shape[0] % 2 or shape[1] % 2:
                raise UserError(
                    f"Frames must be uint8 [H, W, 3] with even sides, not {pixels.dtype} {list(shape)}. Crop or pad."
                )
            picture = container.add_stream("libx264", rate=rate)
            picture.height, picture.width, picture.pix_fmt = shape[0], shape[1], "yuv420p"
            picture.codec_context.time_base = 1 / rate
            picture.codec_context.thread_count = 1
            picture.codec_context.flags |= av.codec.context.Flags.bitexact
            picture.options = {"crf": str(crf), "preset": preset, "x264-params": x264_params()}
        if pixels.shape != shape or pixels.dtype != np.uint8:
            raise UserError(
                f"Frame {count} is {pixels.dtype} {pixels.shape}, the first uint8 {shape}. Make them alike."
            )
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = count - 1, 1 / rate
        container.mux(picture.encode(frame))
        send_sound(min(len(audio), int(count / rate * sample_rate)))
    if picture is None:
        raise UserError("There is no frame to write. Give at least one.")
    send_sound(len(audio))
    container.mux(picture.encode(None))
    container.mux(sound.encode(None))
