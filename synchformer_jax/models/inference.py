"""From clips to features and logits without training: what predictions and exported programs compute.

A clip is uint8 frames at 25 fps and int16 samples at 16 kHz. Segments follow each other by a whole segment in stage 1,
by half a segment afterwards; of a longer clip the middle counts (arXiv 2401.16423, section 3).
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int16, Shaped, UInt8
from ml_collections import ConfigDict

from synchformer_jax import clock
from synchformer_jax.ops.log_mel import log_mel
from synchformer_jax.ops.segments import segment_audio, segment_frames, segments_that_fit


def segment_step(config: ConfigDict) -> int:
    """Frames from the start of one segment to that of the next."""
    length = config.model.visual.frames
    return length if config.stage == "segment_avclip" else length // 2


def clip_frames(config: ConfigDict) -> int:
    """Frames of the clip that a model takes: 5 s for offsets as published, else what its segments cover."""
    needed = (config.model.segments - 1) * segment_step(config) + config.model.visual.frames
    return max(needed, clock.to_frames(clock.SYNC_CROP_SEC)) if config.stage == "sync" else needed


def encode_frames(config: ConfigDict, model: Any, frames: UInt8[Array, "B S T H W 3"]) -> Float[Array, "B S t D"]:
    """Visual features of segments.

    Args:
        config: of the run or file that the model is from.
        model: of the config's stage.
        frames: RGB of the model's size.
    """
    dtype = jnp.dtype(config.model.compute.dtype)
    extractor = model if config.stage == "motionformer" else model.visual
    return extractor((frames.astype(jnp.float32) / 127.5 - 1).astype(dtype)).astype(jnp.float32)


def encode_samples(config: ConfigDict, model: Any, audio: Shaped[Array, "B S N"]) -> Float[Array, "B S t D"]:
    """Audio features of segments of int16 samples, or of float ones in [-1, 1]; arguments as in `encode_frames`."""
    whole = jnp.issubdtype(audio.dtype, jnp.integer)
    audio = audio.astype(jnp.float32) / 32768 if whole else audio.astype(jnp.float32)
    extractor = model if config.stage == "ast" else model.audio
    return extractor(log_mel(audio, config.model.audio.frames)).astype(jnp.float32)


def cut_frames(config: ConfigDict, frames: Shaped[Array, "B T H W 3"], count: int | None = None) -> Array:
    """Segments of the middle of clips, `[B, S, 16, H, W, 3]`; as many as fit if `count` is None.

    Raises:
        ValueError: they do not fit.
    """
    step, length = segment_step(config), config.model.visual.frames
    count = segments_that_fit(frames.shape[1], step, length) if count is None else count
    return segment_frames(frames, None, count, step, length)


def cut_samples(config: ConfigDict, audio: Shaped[Array, "B N"], count: int | None = None) -> Array:
    """Segments of the middle of the sound, `[B, S, 10240]`; as many as fit if `count` is None.

    Raises:
        ValueError: they do not fit.
    """
    step, length = segment_step(config), config.model.visual.frames
    count = segments_that_fit(audio.shape[1] // clock.SAMPLES_PER_FRAME, step, length) if count is None else count
    return segment_audio(audio, None, count, step, length)


def compare(
    config: ConfigDict, model: Any, visual: Float[Array, "B S t D"], audio: Float[Array, "B S u E"]
) -> Float[Array, "B C"]:
    """Logits of features."""
    return model.head(visual, audio).astype(jnp.float32)


def classify(
    config: ConfigDict, model: Any, frames: UInt8[Array, "B T H W 3"], audio: Int16[Array, "B N"]
) -> Float[Array, "B C"]:
    """Logits of clips as long as `clip_frames` tells, or longer."""
    return infer(config, model, frames, audio)["logits"]


def infer(
    config: ConfigDict, model: Any, frames: UInt8[Array, "B T H W 3"], audio: Int16[Array, "B N"]
) -> dict[str, Array]:
    """As `classify`, with the features that the logits rest on.

    Returns:
        "visual" `[B, S, 8, D]`, "audio" `[B, S, 6, D]` and but for stage 1 "logits" `[B, C]`; float32.
    """
    count = config.model.segments
    visual = encode_frames(config, model, cut_frames(config, frames, count))
    heard = encode_samples(config, model, cut_samples(config, audio, count))
    result = {"visual": visual, "audio": heard}
    if config.stage != "segment_avclip":
        result["logits"] = compare(config, model, visual, heard)
    return result


def exact_products(config: ConfigDict) -> contextlib.AbstractContextManager:
    """Where a model computes in float32, accelerators must too: by default they multiply in fewer bits."""
    exact = config.model.compute.dtype == "float32"
    return jax.default_matmul_precision("highest") if exact else contextlib.nullcontext()
