"""Normalised log-mel spectrograms on the device, equal to the published transform."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from synchformer_jax.clock import SAMPLE_RATE, SAMPLES_PER_FRAME, SEGMENT_FRAMES
from synchformer_jax.ops.segments import segment_audio, segment_start

FFT = 1024
WINDOW = 400  # samples, 25 ms
EDGE = WINDOW // 2
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
        method: "fft" (also "auto"), or "matmul", the same transform as a product with sines and cosines. The FFT took
            half the time on a CPU.

    Raises:
        ValueError: the waveform is too short to reflect.
    """
    if waveform.shape[-1] <= EDGE:
        raise ValueError(f"a spectrogram needs more than {EDGE} samples, not {waveform.shape[-1]}")
    return _normalise(_log_power(frame(waveform.astype(jnp.float32)), method), frames)


def segment_log_mel(
    waveform: Float[Array, "B N"],
    start: int | None,
    num: int,
    step: int,
    length: int = SEGMENT_FRAMES,
    frames: int = SEGMENT_MEL_FRAMES,
    *,
    method: str = "auto",
) -> Float[Array, "B num 128 frames"]:
    """`log_mel` of the segments of a clip, computing only once what overlapping segments share.

    Of the 65 windows of a segment, 61 lie within it and are the same in its neighbours; 4 see its reflected edges.

    Args:
        waveform: 16 kHz samples in [-1, 1].
        start, num, step, length: as in `segment_audio`, in frames of 640 samples.
        frames, method: as in `log_mel`.

    Raises:
        ValueError: the segments do not fit.
    """
    start = segment_start(waveform.shape[-1] // SAMPLES_PER_FRAME, num, step, length) if start is None else start
    segments = segment_audio(waveform, start, num, step, length)
    if num == 1 or step >= length:
        return log_mel(segments, frames, method=method)
    segments, waveform = segments.astype(jnp.float32), waveform.astype(jnp.float32)
    low, high = -(-EDGE // HOP), (length * SAMPLES_PER_FRAME - EDGE) // HOP  # first and last window that lies within
    stretch = (low + 1) * HOP  # holds the windows that see one edge
    edges = jnp.concatenate(
        [frame(segments[..., :stretch])[..., :low, :], frame(segments[..., -stretch:])[..., 2:, :]], axis=-2
    )
    shift = step * SAMPLES_PER_FRAME // HOP
    first = start * SAMPLES_PER_FRAME + low * HOP - EDGE
    count = (num - 1) * shift + high - low + 1
    inner = _log_power(_windows(waveform[:, first : first + (count - 1) * HOP + WINDOW], count), method)
    inner = jnp.stack([inner[:, i * shift : i * shift + high - low + 1] for i in range(num)], axis=1)
    edges = _log_power(edges, method)
    return _normalise(jnp.concatenate([edges[..., :low, :], inner, edges[..., low:, :]], axis=-2), frames)


def _log_power(framed: Float[Array, "*B T 400"], method: str) -> Float[Array, "*B T 128"]:
    """Logarithm of the energy of windows in the mel bins."""
    if method in ("auto", "fft"):
        spectrum = jnp.fft.rfft(framed * jnp.asarray(window()), n=FFT)
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    else:
        parts = jnp.matmul(framed, jnp.asarray(fourier()), precision=jax.lax.Precision.HIGHEST)
        power = jnp.square(parts[..., : FFT // 2 + 1]) + jnp.square(parts[..., FFT // 2 + 1 :])
    return jnp.log(jnp.matmul(power, jnp.asarray(mel_filters()), precision=jax.lax.Precision.HIGHEST) + EPS)


def _normalise(x: Float[Array, "*B T 128"], frames: int) -> Float[Array, "*B 128 frames"]:
    x = x.swapaxes(-1, -2)[..., :frames]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, frames - x.shape[-1])])
    return (x - MEAN) / (2 * STD)


def frame(waveform: Float[Array, "*B N"]) -> Float[Array, "*B T 400"]:
    """Windows of 400 samples around every multiple of 160, with reflected edges.

    The published FFT takes 1,024 samples around each, of which its window leaves the middle 400; their place within
    the FFT shifts phases only, which the power spectrum does not have.
    """
    count = 1 + waveform.shape[-1] // HOP
    edges = [(0, 0)] * (waveform.ndim - 1) + [(EDGE, EDGE)]
    return _windows(jnp.pad(waveform, edges, mode="reflect"), count)


def _windows(x: Float[Array, "*B N"], count: int) -> Float[Array, "*B count 400"]:
    """`count` stretches of 400 samples, every 160."""
    unit = math.gcd(HOP, WINDOW)  # cut in pieces of 80 samples, of which windows share whole ones
    step, share = HOP // unit, WINDOW // unit
    pieces = (count - 1) * step + share
    x = x[..., : pieces * unit]
    x = x.reshape(*x.shape[:-1], pieces, unit)
    parts = [x[..., i : i + step * (count - 1) + 1 : step, :] for i in range(share)]
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
