"""A learned cross-correlation of picture and sound, read out on the grid of offsets."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from synchformer_jax import clock
from synchformer_jax.models.config import audio_grid, visual_tokens
from synchformer_jax.models.layers import LayerNorm, Linear, parameter, value_of

MEL_HOP_SEC = 0.01


class LagProfile(nnx.Module):
    """Logits from how well the streams match at each offset.

    Tokens of both streams are projected to several heads; the similarity of every pair, freed of row and column
    means, is shared out to the offsets by the pair's true difference in time. So evidence of all pairs with one lag
    adds up from the first step, which the transformer would have to discover.

    Args:
        config: a whole model configuration (`model_config`).
        rngs: gives the fresh weights.
    """

    def __init__(self, config: ConfigDict, rngs: nnx.Rngs):
        head, dtype = config.head, jnp.dtype(config.compute.dtype)
        heads, width = head.lag_heads, head.lag_width
        for name, given in (("visual", config.visual.width), ("audio", config.audio.width)):
            std = 1 / math.sqrt(given)
            setattr(self, f"norm_{name}", LayerNorm(given, eps=1e-5, dtype=dtype))
            axes = (None, "heads", None)
            setattr(self, name, Linear((given,), (heads, width), axes, dtype=dtype, std=std, rngs=rngs))
        self.mix = parameter(jnp.full((heads,), 1 / heads), (None,))
        self.bias = parameter(jnp.zeros(head.classes), ("vocab",))
        self.segments, self.classes, self.of_segment = config.segments, head.classes, lag_tokens(config)
        self.step_sec = config.visual.frames / 2 / clock.FRAME_RATE

    def __call__(self, visual: Float[Array, "B S tv Dv"], audio: Float[Array, "B S ta Da"]) -> Float[Array, "B 21"]:
        """Logits of the offsets, float32."""
        batch = visual.shape[0]
        v = _unit(self.visual(self.norm_visual(visual))).reshape(batch, -1, *self.visual.bias.shape)
        a = _unit(self.audio(self.norm_audio(audio))).reshape(batch, -1, *self.audio.bias.shape)
        pairs = jnp.einsum("bvhk,bahk->bhva", v, a).astype(jnp.float32) * v.shape[-1] ** -0.5
        pairs = pairs - pairs.mean(axis=-1, keepdims=True)
        pairs = pairs - pairs.mean(axis=-2, keepdims=True)
        share = jnp.asarray(lag_weights(*token_times(self.segments, *self.of_segment, self.step_sec), self.classes))
        profile = jnp.einsum("bhp,po->bho", pairs.reshape(batch, pairs.shape[1], -1), share.reshape(-1, self.classes))
        return jnp.einsum("bho,h->bo", profile, value_of(self.mix)) + value_of(self.bias)


def lag_tokens(config: ConfigDict) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Centres of the visual and audio tokens of one segment, in seconds from its start."""
    visual, audio = config.visual, config.audio
    seen = (np.arange(visual_tokens(config)) + 0.5) * visual.tubelet / clock.FRAME_RATE
    heard = (np.arange(audio_grid(config)[1]) * audio.stride + (audio.patch_size - 1) / 2) * MEL_HOP_SEC
    return tuple(seen.tolist()), tuple(heard.tolist())


def token_times(
    segments: int, seen: tuple[float, ...], heard: tuple[float, ...], step_sec: float
) -> tuple[np.ndarray, np.ndarray]:
    """Centres of all tokens of segments `step_sec` apart, in seconds from the start of the crop."""
    start = np.arange(segments)[:, None] * step_sec
    return (start + np.asarray(seen)).ravel(), (start + np.asarray(heard)).ravel()


def lag_weights(seen: np.ndarray, heard: np.ndarray, classes: int = clock.OFFSET_CLASSES) -> np.ndarray:
    """How pairs of tokens are shared out to the offsets, `[seen, heard, classes]` float32.

    A pair speaks for offset `seen - heard` (an event is heard at t - offset), linearly shared by the two nearest
    offsets of the grid. An offset's weights are divided by the root of their sum, so that noise is equal in all;
    offsets that no pair has get nothing.
    """
    grid = clock.offset_grid(classes).astype(np.float64)
    offset = seen[:, None, None] - heard[None, :, None]
    weights = np.maximum(0, 1 - np.abs(offset - grid) / (grid[1] - grid[0]))
    total = weights.sum(axis=(0, 1))
    return (weights / np.sqrt(np.where(total > 0, total, 1))).astype(np.float32)


def _unit(x: Array) -> Array:
    """Mean 0 and variance 1 along the last axis (a LayerNorm without weights)."""
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-5)
