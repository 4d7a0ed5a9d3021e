"""Seconds, frames, samples and offset classes. The one place where time is rounded.

`offset_sec > 0` means that the audio is early: an event seen at t seconds is heard at t - offset_sec.
"""

import numpy as np

FRAME_RATE = 25  # frames a second
SAMPLE_RATE = 16_000  # samples a second
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE  # 640, so that every frame starts on a sample
SEGMENT_FRAMES = 16  # 0.64 s, the published length; model.visual.frames may say another
SEGMENT_SAMPLES = SEGMENT_FRAMES * SAMPLES_PER_FRAME  # 10,240
SYNC_CROP_SEC = 5.0
OFFSET_CLASSES = 21
MAX_OFFSET_SEC = 2.0


def to_frames(seconds: float) -> int:
    """The number of whole frames nearest to `seconds`."""
    return round(seconds * FRAME_RATE)


def to_samples(seconds: float) -> int:
    """The number of whole samples nearest to `seconds`."""
    return round(seconds * SAMPLE_RATE)


def offset_grid(classes: int = OFFSET_CLASSES, max_offset_sec: float = MAX_OFFSET_SEC) -> np.ndarray:
    """The offsets of the classes in seconds, ascending, float32 `[classes]`."""
    return np.linspace(-max_offset_sec, max_offset_sec, classes, dtype=np.float32)


def nearest_class(offset_sec: float, grid: np.ndarray) -> int:
    """The class of `grid` nearest to an offset."""
    return int(np.argmin(np.abs(np.asarray(grid) - offset_sec)))
