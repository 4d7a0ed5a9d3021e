"""Small files with a flash and a click at known times, in whatever codec and container PyAV writes."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

EVENTS = (0.6, 1.4)  # on a frame at 25, 30 and 50 pictures a second
FLASH_SEC = 0.16


def click(times: Sequence[float], sec: float, rate: int, start: float = 0.0) -> np.ndarray:
    """A Gaussian pulse, 1 ms wide, centred on each time; float `[samples]` from `start` on."""
    t = start + np.arange(round(sec * rate)) / rate
    return sum(0.7 * np.exp(-0.5 * ((t - e) / 0.5e-3) ** 2) for e in times)


def write_video(
    path: Path,
    *,
    video: str | None = "libx264",
    audio: str | None = "aac",
    stamps: np.ndarray | None = None,
    frame_rate: int = 25,
    size: tuple[int, int] = (64, 48),
    pixel_format: str | None = None,
    rate: int = 16000,
    layout: str = "mono",
    sound_from: float = 0.0,
    sec: float = 2.0,
    rotation: int = 0,
    video_options: dict | None = None,
    tracks: int = 1,
    paint: Callable[[np.ndarray, float], None] | None = None,
) -> Path:
    """Writes a video that is black but for `FLASH_SEC` from each event on, and silent but for clicks at the events."""
    stamps = np.arange(round(sec * frame_rate)) / frame_rate if stamps is None else stamps
    with av.open(str(path), "w") as out:
        if video:
            stream = out.add_stream(video, rate=frame_rate, options=video_options or {})
            stream.width, stream.height = size
            stream.pix_fmt = pixel_format or ("yuvj420p" if video == "mjpeg" else "yuv420p")
            on_grid = np.allclose(stamps * frame_rate, np.rint(stamps * frame_rate))
            base = Fraction(1, frame_rate) if on_grid else Fraction(1, 1000)
            stream.codec_context.time_base = base
            if rotation:
                stream.set_display_rotation(rotation)
        sounds = []
        for _ in range(tracks if audio else 0):
            sound = out.add_stream(audio, rate=rate, layout=layout)
            sounds.append(sound)
        if video:
            for stamp in stamps:
                lit = any(e - 1e-6 <= stamp < e + FLASH_SEC for e in EVENTS)
                picture = np.full((size[1], size[0], 3), 235 if lit else 16, np.uint8)
                if paint:
                    paint(picture, stamp)
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts, frame.time_base = round(stamp / base), base
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        for track, sound in enumerate(sounds):
            wave = click(EVENTS, sec - sound_from, rate, sound_from) * (track == 0)
            pcm = np.rint(wave * 32767).astype(np.int16)
            channels = sound.layout.nb_channels
            whole = np.repeat(pcm[:, None], channels, 1).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(whole, "s16", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, round(sound_from * rate), Fraction(1, rate)
            out.mux(sound.encode(frame))
            out.mux(sound.encode(None))
    return path


def flash_times(frames: np.ndarray, frame_rate: float = 25.0) -> np.ndarray:
    """When pictures turn bright, in seconds."""
    lit = frames.mean(axis=(1, 2, 3)) > 100
    return np.flatnonzero(lit & ~np.roll(lit, 1)) / frame_rate


def click_times(audio: np.ndarray, rate: int = 16000, count: int = len(EVENTS)) -> np.ndarray:
    """The times of the loudest pulses by a matched filter, in seconds."""
    pulse = click([0.0], 0.004, rate, -0.002)
    score = np.abs(np.convolve(audio.astype(float), pulse[::-1], mode="same"))
    found = []
    for _ in range(count):
        at = int(score.argmax())
        found.append((at + (len(pulse) + 1) // 2 - len(pulse) / 2 - 0.5 + 0.0) / rate)
        score[max(at - rate // 4, 0) : at + rate // 4] = 0
    return np.sort(found)


@pytest.fixture(scope="session")
def flash_and_click():
    """The helpers above: `write`, `flashes`, `clicks`, `events`, `click`."""

    class Helpers:
        write = staticmethod(write_video)
        flashes = staticmethod(flash_times)
        clicks = staticmethod(click_times)
        click = staticmethod(click)
        events = np.array(EVENTS)

    return Helpers
