"""Cutting a clip into segments on the device, so that overlapping ones travel once."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from synchformer_jax.clock import SAMPLES_PER_FRAME, SEGMENT_FRAMES


def segment_start(frames: int, num: int, step: int, length: int = SEGMENT_FRAMES) -> int:
    """The first frame of `num` segments in the middle of a clip, as published.

    Args:
        frames: frames of the clip.
        num: segments.
        step: frames from one segment's start to the next's.
        length: frames of a segment.

    Raises:
        ValueError: the clip is too short.
    """
    spare = frames - ((num - 1) * step + length)
    if num < 1 or spare < 0:
        raise ValueError(f"{num} segments of {length} frames every {step} do not fit into {frames} frames")
    return spare // 2


def segments_that_fit(frames: int, step: int, length: int = SEGMENT_FRAMES) -> int:
    """How many segments a clip of so many frames holds."""
    return max(0, (frames - length) // step + 1)


def segment_frames(
    frames: Shaped[Array, "B T *H"], start: int | None, num: int, step: int, length: int = SEGMENT_FRAMES
) -> Shaped[Array, "B num length *H"]:
    """Segments of the picture.

    Args:
        frames: clips, time on the second axis.
        start: first frame of the first segment; None takes the middle (`segment_start`).
        num: segments.
        step: frames from start to start.
        length: frames of a segment.

    Raises:
        ValueError: the segments do not fit.
    """
    return _cut(frames, start, num, step, length, 1)


def segment_audio(
    audio: Shaped[Array, "B N"],
    start: int | None,
    num: int,
    step: int,
    length: int = SEGMENT_FRAMES,
    *,
    unit: int = SAMPLES_PER_FRAME,
) -> Shaped[Array, "B num length*unit"]:
    """Segments of the sound; `start`, `step` and `length` are in frames of `unit` samples, as in `segment_frames`.

    Raises:
        ValueError: the segments do not fit.
    """
    return _cut(audio, start, num, step, length, unit)


def _cut(x: Array, start: int | None, num: int, step: int, length: int, unit: int) -> Array:
    available = x.shape[1] // unit
    start = segment_start(available, num, step, length) if start is None else start
    if start < 0 or num < 1 or step < 1 or start + (num - 1) * step + length > available:
        raise ValueError(
            f"{num} segments of {length} frames every {step} from frame {start} do not fit into {available} frames"
        )
    if length % step:  # any step: pick frame by frame
        place = start * unit + np.arange(num)[:, None] * step * unit + np.arange(length * unit)
        return jnp.asarray(x)[:, place]
    # Pieces of one step each, of which a segment takes the next `share`: slices, which cost less than picking.
    share = length // step
    part = x[:, start * unit : (start + (num - 1) * step + length) * unit]
    part = part.reshape(x.shape[0], num - 1 + share, step * unit, *x.shape[2:])
    return part if share == 1 else jnp.concatenate([part[:, i : i + num] for i in range(share)], axis=2)
