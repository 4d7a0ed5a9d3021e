"""Random changes of picture and sound on the device, one draw a segment.

The published stage 1 changes each segment on its own with probability 0.2 for each kind. Of its sound effects, volume,
low-pass and noise are here; reverberation and pitch shift, which SoX did on the CPU, are not.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as torchvision


def flip(
    frames: UInt8[Array, "clips segments t h w 3"], key: Array, probability: float
) -> UInt8[Array, "clips segments t h w 3"]:
    """Mirrors the picture left to right in a random share of the segments."""
    chosen = _chosen(key, frames.shape[:2], probability, frames.ndim)
    return jnp.where(chosen, frames[..., ::-1, :], frames)


def greyscale(
    frames: Float[Array, "clips segments t h w 3"], key: Array, probability: float
) -> Float[Array, "clips segments t h w 3"]:
    """Takes the colour out of a random share of the segments. Values in [0, 1]."""
    chosen = _chosen(key, frames.shape[:2], probability, frames.ndim)
    return jnp.where(chosen, _luma(frames), frames)


def colour_jitter(
    frames: Float[Array, "clips segments t h w 3"], key: Array, probability: float, strength: float = 1.0
) -> Float[Array, "clips segments t h w 3"]:
    """Changes brightness, contrast, saturation (factors in 1 +- 0.8) and hue (+- 0.2 of the circle) of some segments.

    SimCLR's parameters times `strength`, always in this order, where the published code draws the order too.

    Args:
        frames: `[B, S, T, H, W, 3]` in [0, 1].
        key: a JAX key.
        probability: the share of segments that changes.
        strength: 0 leaves all as it is.
    """
    apply_key, bright_key, contrast_key, saturation_key, hue_key = jax.random.split(key, 5)
    shape = frames.shape[:2]

    def factor(some_key: Array) -> Array:
        width = 0.8 * strength
        drawn = jax.random.uniform(some_key, shape, minval=max(0.0, 1 - width), maxval=1 + width)
        return _spread(drawn, frames.ndim).astype(frames.dtype)

    changed = jnp.clip(frames * factor(bright_key), 0, 1)
    mean_luma = jnp.mean(_luma(changed), axis=(-3, -2), keepdims=True)
    changed = _blend(changed, mean_luma, factor(contrast_key))
    changed = _blend(changed, _luma(changed), factor(saturation_key))
    turn = jax.random.uniform(hue_key, shape, minval=-0.2 * strength, maxval=0.2 * strength)
    changed = _turn_hue(changed, _spread(turn, frames.ndim - 1).astype(frames.dtype))
    return jnp.where(_chosen(apply_key, shape, probability, frames.ndim), changed, frames)


def volume(
    audio: Float[Array, "clips segments samples"], key: Array, probability: float, gain: float = 2.0
) -> Float[Array, "clips segments samples"]:
    """Multiplies a random share of the segments by `gain`, clipped to [-1, 1]."""
    chosen = _chosen(key, audio.shape[:2], probability, audio.ndim)
    return jnp.where(chosen, jnp.clip(audio * gain, -1, 1), audio)


def noise(
    audio: Float[Array, "clips segments samples"], key: Array, probability: float, amplitude: float = 0.01
) -> Float[Array, "clips segments samples"]:
    """Adds white Gaussian noise of standard deviation `amplitude` to a random share of the segments."""
    apply_key, noise_key = jax.random.split(key)
    chosen = _chosen(apply_key, audio.shape[:2], probability, audio.ndim)
    return jnp.where(chosen, audio + amplitude * jax.random.normal(noise_key, audio.shape, audio.dtype), audio)


def low_pass(
    audio: Float[Array, "clips segments samples"],
    key: Array,
    probability: float,
    cutoff: float = 100.0,
    sample_rate: int = 16_000,
) -> Float[Array, "clips segments samples"]:
    """Sends a random share of the segments through the second-order Butterworth low-pass of the audio EQ cookbook.

    In the frequency domain, over a window long enough for the filter to ring out, so that it runs in parallel.

    Args:
        audio: `[B, S, N]` in [-1, 1].
        key: a JAX key.
        probability: the share of segments that changes.
        cutoff: in Hz.
        sample_rate: in Hz.
    """
    samples = audio.shape[-1]
    length = 1 << (samples + sample_rate // 10 - 1).bit_length()
    omega = 2 * math.pi * cutoff / sample_rate
    alpha = math.sin(omega) / (2 * 0.707)
    feed = [(1 - math.cos(omega)) / 2, 1 - math.cos(omega), (1 - math.cos(omega)) / 2]
    back = [1 + alpha, -2 * math.cos(omega), 1 - alpha]
    delay = jnp.exp(-2j * math.pi * jnp.arange(length // 2 + 1) / length)
    response = sum(b * delay**n for n, b in enumerate(feed)) / sum(a * delay**n for n, a in enumerate(back))
    filtered = jnp.fft.irfft(jnp.fft.rfft(audio, length) * response, length)[..., :samples]
    filtered = jnp.clip(filtered, -1, 1).astype(audio.dtype)
    return jnp.where(_chosen(key, audio.shape[:2], probability, audio.ndim), filtered, audio)


def _spread(values: Array, ndim: int) -> Array:
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def _chosen(key: Array, shape: tuple[int, ...], probability: float, ndim: int) -> Array:
    return _spread(jax.random.bernoulli(key, probability, shape), ndim)


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
