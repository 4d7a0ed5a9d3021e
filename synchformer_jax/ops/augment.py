"""Random changes of the picture on the device, as the published stage 1 makes them: SimCLR's colours, flip, zoom.

Every function takes any leading axes and draws once for each of their elements: for a segment in `[B, S, T, H, W, 3]`,
for a clip in `[B, T, H, W, 3]`. The published stage 1 draws for each segment, its later stages for each clip.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601 with torchvision's four digits


def scale_up(frames: UInt8[Array, "B t h w 3"], part: Int[Array, "B 3"]) -> UInt8[Array, "B t h w 3"]:
    """Scales a part of each clip up to the whole square, bilinear between pixel centres as PyTorch does.

    Args:
        frames: square pictures.
        part: top, left and side of the part; (0, 0, H) leaves a clip as it is.
    """
    size = frames.shape[-2]

    def between(clip: Array, first: Array, side: Array, axis: int) -> Array:
        place = jnp.maximum((jnp.arange(size) + 0.5) * side / size - 0.5, 0)
        low = jnp.floor(place).astype(jnp.int32)
        high, weight = jnp.minimum(low + 1, side - 1), place - low
        weight = weight.reshape(-1, *(1,) * (clip.ndim - axis - 1))
        low, high = (jnp.take(clip, first + index, axis=axis).astype(jnp.float32) for index in (low, high))
        return low + weight * (high - low)

    def one(clip: Array, where: Array) -> Array:
        rows = between(clip, where[0], where[2], 1)
        return jnp.round(between(rows, where[1], where[2], 2)).astype(jnp.uint8)

    return jax.vmap(one)(frames, part)


def flip(frames: UInt8[Array, "*B t h w 3"], key: Array, probability: float) -> UInt8[Array, "*B t h w 3"]:
    """Mirrors the picture left to right in a random share."""
    return jnp.where(_chosen(key, frames, probability), frames[..., ::-1, :], frames)


def greyscale(frames: Float[Array, "*B t h w 3"], key: Array, probability: float) -> Float[Array, "*B t h w 3"]:
    """Takes the colour out of a random share. Values in [0, 1]."""
    return jnp.where(_chosen(key, frames, probability), _luma(frames), frames)


def colour_jitter(
    frames: Float[Array, "*B t h w 3"], key: Array, probability: float, strength: float = 1.0
) -> Float[Array, "*B t h w 3"]:
    """Changes brightness, contrast, saturation (factors in 1 +- 0.8) and hue (+- 0.2 of the circle) of a random share.

    SimCLR's parameters times `strength` (arXiv 2002.05709, appendix A), in an order that is drawn once for all: each
    element sees all 24 orders equally often, as in torchvision, and every change is computed once only.

    Args:
        frames: values in [0, 1].
        key: a JAX key.
        probability: the share that changes.
        strength: 0 leaves all as it is.
    """
    apply_key, order_key, *keys = jax.random.split(key, 6)
    shape, width = frames.shape[:-4], 0.8 * strength

    def draw(some_key: Array, low: float, high: float) -> Array:
        drawn = jax.random.uniform(some_key, shape, minval=low, maxval=high)
        return drawn.reshape(*shape, 1, 1, 1, 1).astype(frames.dtype)

    bright, contrast, saturation = (draw(some_key, max(0.0, 1 - width), 1 + width) for some_key in keys[:3])
    turn = draw(keys[3], -0.2 * strength, 0.2 * strength)[..., 0]
    changes = (
        lambda x: jnp.clip(x * bright, 0, 1),
        lambda x: _blend(x, jnp.mean(_luma(x), axis=(-3, -2), keepdims=True), contrast),
        lambda x: _blend(x, _luma(x), saturation),
        lambda x: _turn_hue(x, turn),
    )
    changed = frames
    for which in jax.random.permutation(order_key, len(changes)):
        changed = jax.lax.switch(which, changes, changed)
    return jnp.where(_chosen(apply_key, frames, probability), changed, frames)


def _chosen(key: Array, frames: Array, probability: float) -> Array:
    return jax.random.bernoulli(key, probability, frames.shape[:-4]).reshape(*frames.shape[:-4], 1, 1, 1, 1)


def _luma(frames: Array) -> Array:
    return jnp.sum(frames * jnp.asarray(LUMA, frames.dtype), axis=-1, keepdims=True)


def _blend(frames: Array, other: Array, factor: Array) -> Array:
    return jnp.clip(factor * frames + (1 - factor) * other, 0, 1)


def _turn_hue(frames: Array, turn: Array) -> Array:
    """Adds `turn` (a share of the circle, the shape of a channel) to the hue of RGB in [0, 1]."""
    red, green, blue = frames[..., 0], frames[..., 1], frames[..., 2]
    value = jnp.max(frames, axis=-1)
    chroma = value - jnp.min(frames, axis=-1)
    safe = jnp.where(chroma > 0, chroma, 1)
    sector = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = 6 * turn + jnp.where(chroma > 0, sector, 0)

    def channel(start: int) -> Array:
        place = jnp.mod(start + hue, 6)
        return value - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)
