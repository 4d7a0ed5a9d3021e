"""One crop of a video file as the models see it: 5 s, the audio shifted by an offset (the published test-time path)."""

import math
import os
from typing import NamedTuple

import numpy as np

from synchformer_jax import clock
from synchformer_jax.data import sampling
from synchformer_jax.errors import UserError
from synchformer_jax.media import decode


class Crop(NamedTuple):
    """A crop of picture and sound."""

    frames: np.ndarray  # uint8 [T, H, W, 3], 125 for 5 s
    audio: np.ndarray  # int16 [640 T]
    start_sec: float  # where the picture starts in the file


def short_side(size: int) -> int:
    """The short side that frames are scaled to before their centre of `size` pixels is cut out: 256 for 224. Even."""
    return 2 * round(size * 8 / 7 / 2)


def read_crop(
    video: str | os.PathLike,
    *,
    short_side: int | None = None,
    offset_sec: float = 0.0,
    start_sec: float | None = None,
    crop_sec: float = clock.SYNC_CROP_SEC,
    audio_shift_samples: int = 0,
    may_be_silent: bool = False,
) -> Crop:
    """Decodes a crop whose picture starts at `start_sec` and whose sound starts `offset_sec` later in the file.

    Args:
        video: the file.
        short_side: pixels to scale the short side to; None keeps the size.
        offset_sec: above zero makes the audio early.
        start_sec: rounded to a frame; None takes the middle of what picture and sound both allow.
        crop_sec: how long the crop lasts.
        audio_shift_samples: then moves the sound later by so many samples (below zero: earlier); silence stands where
            the file has none for it.
        may_be_silent: where only the picture counts.

    Raises:
        UserError: the crop does not fit into the file, or is silent.
        MediaError: the file cannot be decoded.
    """
    duration = decode.probe(video).duration_sec
    earliest, latest = max(0.0, -offset_sec), min(duration - crop_sec, duration - crop_sec - offset_sec)
    if latest < earliest - 0.5 / clock.FRAME_RATE:
        shift = f" and {abs(offset_sec):g} s for the shift of the audio" if offset_sec else ""
        raise UserError(f"{video} lasts {duration:.2f} s; {crop_sec:g} s are needed{shift}. Give a longer video.")
    if start_sec is None:
        start_sec = max(earliest, (earliest + latest) / 2)
    if not earliest - 0.5 / clock.FRAME_RATE <= start_sec <= latest + 0.5 / clock.FRAME_RATE:
        raise UserError(
            f"A crop of {crop_sec:g} s from {start_sec:g} s, with its audio {offset_sec:+g} s away, leaves {video}, "
            f"which lasts {duration:.2f} s. Give a --start-sec between {earliest:.2f} and {max(earliest, latest):.2f}."
        )
    first_frame = clock.to_frames(start_sec)
    first_sample = max(0, clock.to_samples(first_frame / clock.FRAME_RATE + offset_sec)) - audio_shift_samples
    frame_count, sample_count = clock.to_frames(crop_sec), clock.to_samples(crop_sec)
    # Both streams are decoded over one span that begins on a frame, and cut apart afterwards.
    begin = max(0, min(first_frame, first_sample // clock.SAMPLES_PER_FRAME))
    end = max(first_frame + frame_count, math.ceil((first_sample + sample_count) / clock.SAMPLES_PER_FRAME))
    clip = decode.decode(
        video,
        short_side=short_side,
        start_sec=begin / clock.FRAME_RATE,
        duration_sec=(end - begin) / clock.FRAME_RATE,
    )
    frames = clip.frames[first_frame - begin :][:frame_count]
    first_sample -= begin * clock.SAMPLES_PER_FRAME
    audio = np.pad(clip.audio[max(0, first_sample) :], (max(0, -first_sample), 0))[:sample_count]
    missing = sample_count - len(audio) - max(0, -audio_shift_samples)
    if len(frames) < frame_count - 1 or missing > clock.SAMPLES_PER_FRAME:
        raise UserError(
            f"{video} ends {len(frames) / clock.FRAME_RATE:.2f} s into the picture and "
            f"{len(audio) / clock.SAMPLE_RATE:.2f} s into the sound of the crop; {crop_sec:g} s are needed. "
            "Give an earlier --start-sec or a longer video."
        )
    if not audio.any() and not may_be_silent:
        raise UserError(f"{video} is silent in the {crop_sec:g} s from {start_sec:.2f} s. Give another --start-sec.")
    frames = np.concatenate([frames, frames[-1:]])[:frame_count]
    return Crop(frames, np.pad(audio, (0, sample_count - len(audio))), first_frame / clock.FRAME_RATE)


def centre(frames: np.ndarray, size: int, name: str) -> np.ndarray:
    """The central square of `size` pixels of frames `[..., H, W, 3]`, the same that evaluation cuts out of records.

    Raises:
        UserError: the frames are smaller.
    """
    top, left = sampling.square(0, 0, 0, *frames.shape[-3:-1], size, train=False, name=name)
    return frames[..., top : top + size, left : left + size, :]


def describe(offset_sec: float) -> str:
    """An offset in words."""
    if abs(offset_sec) < 0.005:
        return "the audio is in time with the picture"
    return f"the audio is {abs(offset_sec):.2f} s {'early' if offset_sec > 0 else 'late'}"
