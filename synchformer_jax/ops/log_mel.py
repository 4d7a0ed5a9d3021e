"""Normalised log-mel spectrograms on the device, equal to the published transform."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from synchformer_jax.clock import SAMPLE_RATE

FFT = 1024
WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
MEL_BINS = 128
EPS = 1e-6
MEAN, STD = -4.2677393, 4.5689974  # of AudioSet, for AST
SEGMENT_MEL_FRAMES = 66


def log_mel(
    waveform: Float[Array, "*B N"], frames: int = SEGMENT_MEL_FRAMES, *, method: str = "auto"
) -> Float[Array, "*B 128 frames"]:
    """The normalised log-mel spectrogram that AST takes.

    Power spectrum (periodic Hann window of 400 samples, hop 160, FFT of 1024, reflected edges), 128 HTK mel triangles
    up to 8 kHz, log(x + 1e-6), zeros on the right up to `frames` (or cut to it), then (x + 4.2677393) / (2 x 4.5689974)
    (AST, arXiv 2104.01778; Synchformer's settings).

    Args:
        waveform: 16 kHz samples in [-1, 1]; more than 200.
        frames: frames out, 10 ms each. A segment of 10,240 samples has 65, and the model takes 66.
        method: "fft", "matmul" (the same transform as a product with sines and cosines), or "auto" by platform.

    Raises:
        ValueError: the waveform is too short to reflect.
    """
    if waveform.shape[-1] <= WINDOW // 2:
        raise ValueError(f"a spectrogram needs more than {WINDOW // 2} samples, not {waveform.shape[-1]}")
    if method == "auto":
        method = "fft"
    framed = frame(waveform.astype(jnp.float32))
    if method == "fft":
        spectrum = jnp.fft.rfft(framed * jnp.asarray(window()), n=FFT)
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    else:
        parts = jnp.matmul(framed, jnp.asarray(fourier()), precision=jax.lax.Precision.HIGHEST)
        power = jnp.square(parts[..., : FFT // 2 + 1]) + jnp.square(parts[..., FFT // 2 + 1 :])
    mel = jnp.matmul(power, jnp.asarray(mel_filters()), precision=jax.lax.Precision.HIGHEST)
    x = jnp.log(mel + EPS).swapaxes(-1, -2)[..., :frames]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, frames - x.shape[-1])])
    return (x - MEAN) / (2 * STD)


def frame(waveform: Float[Array, "*B N"]) -> Float[Array, "*B T 400"]:
    """Windows of 400 samples around every multiple of 160, with reflected edges.

    The published FFT takes 1,024 samples around each, of which its window leaves the middle 400; their place within
    the FFT shifts phases only, which the power spectrum does not have.
    """
    count = 1 + waveform.shape[-1] // HOP
    edge = WINDOW // 2
    x = jnp.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(edge, edge)], mode="reflect")
    unit = math.gcd(HOP, WINDOW)  # cut in pieces of 80 samples, of which windows share whole ones
    pieces = -(-x.shape[-1] // unit)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pieces * unit - x.shape[-1])]).reshape(*x.shape[:-1], pieces, unit)
    step = HOP // unit
    parts = [x[..., i : i + step * (count - 1) + 1 : step, :] for i in range(WINDOW // unit)]
    return jnp.concatenate(parts, axis=-1)


def window() -> np.ndarray:
    """The periodic Hann window `[400]`."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)


@functools.cache
def fourier() -> np.ndarray:
    """Windowed cosines, then sines, of the 513 frequencies: `[400, 1026]`."""
    angle = 2 * np.pi * np.outer(np.arange(WINDOW), np.arange(FFT // 2 + 1)) / FFT
    waves = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    return (window()[:, None] * waves).astype(np.float32)


@functools.cache
def mel_filters() -> np.ndarray:
    """Triangles of height 1 between 130 points equally far apart on the HTK mel scale, 0 to 8 kHz: `[513, 128]`."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    points = 700 * (10 ** (np.linspace(0, top, MEL_BINS + 2) / 2595) - 1)
    frequency = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[:, None]
    rise = (frequency - points[:-2]) / (points[1:-1] - points[:-2])
    fall = (points[2:] - frequency) / (points[2:] - points[1:-1])
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)
