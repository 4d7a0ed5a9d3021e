"""Random changes of the sound on the device, with the parameters of the published stage 1.

Reverberation and pitch shift are SoX's `reverb -w` and `pitch 1000` (the published code runs SoX on the CPU): the same
filters and the same search, computed for all segments at once. Every function takes any leading axes and draws once
for each of their elements; sound is in [-1, 1] at 16 kHz.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from synchformer_jax.clock import SAMPLE_RATE

EFFECTS = ("reverb", "volume", "pitch_shift", "low_pass", "noise")  # in the published order

# Freeverb's delays, in samples at 44.1 kHz, and how much longer or shorter, in turn, those of the right ear are.
_COMBS = (1116, 1188, 1277, 1356, 1422, 1491, 1557, 1617)
_ALL_PASSES = (225, 341, 441, 556)
_STEREO = 12
_REVERBERANCE, _DAMPING, _REVERB_GAIN = 50, 0.5 * 0.3 + 0.2, 0.015  # SoX's defaults

# Of the time stretch behind the pitch shift: 82 ms pieces that overlap by 12 ms, fitted within 14.68 ms.
_PIECE = int(0.082 * SAMPLE_RATE + 0.5)
_OVERLAP = int(0.082 / 6.833 * SAMPLE_RATE + 4.5) // 8 * 8
_SEARCH = int(0.082 / 5.587 * SAMPLE_RATE + 0.5)


def volume(audio: Float[Array, "*B n"], key: Array, probability: float, gain: float = 2.0) -> Float[Array, "*B n"]:
    """Multiplies a random share by `gain`, clipped to [-1, 1]."""
    return _some(audio, jnp.clip(audio * gain, -1, 1), key, probability)


def noise(audio: Float[Array, "*B n"], key: Array, probability: float, amplitude: float = 0.01) -> Float[Array, "*B n"]:
    """Adds white Gaussian noise of standard deviation `amplitude` to a random share."""
    apply_key, noise_key = jax.random.split(key)
    noisy = audio + amplitude * jax.random.normal(noise_key, audio.shape, audio.dtype)
    return _some(audio, noisy, apply_key, probability)


def low_pass(
    audio: Float[Array, "*B n"], key: Array, probability: float, cutoff: float = 100.0
) -> Float[Array, "*B n"]:
    """Sends a random share through the second-order Butterworth low-pass of the audio EQ cookbook.

    In the frequency domain, over a window long enough for the filter to ring out, so that it runs in parallel.

    Args:
        audio: `[..., N]`.
        key: a JAX key.
        probability: the share that changes.
        cutoff: in Hz.
    """
    samples = audio.shape[-1]
    length = 1 << (samples + SAMPLE_RATE // 10 - 1).bit_length()
    omega = 2 * math.pi * cutoff / SAMPLE_RATE
    alpha = math.sin(omega) / (2 * 0.707)
    feed = [(1 - math.cos(omega)) / 2, 1 - math.cos(omega), (1 - math.cos(omega)) / 2]
    back = [1 + alpha, -2 * math.cos(omega), 1 - alpha]
    delay = np.exp(-2j * math.pi * np.arange(length // 2 + 1) / length)
    response = sum(b * delay**n for n, b in enumerate(feed)) / sum(a * delay**n for n, a in enumerate(back))
    filtered = jnp.fft.irfft(jnp.fft.rfft(audio, length) * response.astype(np.complex64), length)[..., :samples]
    return _some(audio, jnp.clip(filtered, -1, 1), key, probability)


def reverb(audio: Float[Array, "*B n"], key: Array, probability: float) -> Float[Array, "*B n"]:
    """Replaces a random share by its reverberation alone: Freeverb's mean over both ears, without the direct sound."""
    samples = audio.shape[-1]
    length = 1 << (2 * samples - 1).bit_length()
    response = np.fft.rfft(reverb_response()[:samples], length).astype(np.complex64)
    wet = jnp.fft.irfft(jnp.fft.rfft(audio, length) * response, length)[..., :samples]
    return _some(audio, jnp.clip(wet, -1, 1), key, probability)


@functools.cache
def reverb_response() -> np.ndarray:
    """What the reverberation makes of a single sample of 1: float64 `[131072]`, 8 s, of which the end is nil.

    Eight damped combs side by side, then four all-passes in a row, for each ear.
    """
    length = 1 << 17
    delay = np.exp(-2j * np.pi * np.arange(length // 2 + 1) / length)  # by one sample
    a = -1 / math.log(1 - 0.3)
    b = 100 / (math.log(1 - 0.98) * a + 1)
    feedback = 1 - math.exp((_REVERBERANCE - b) / (a * b))
    damper = (1 - _DAMPING) / (1 - _DAMPING * delay)

    def late(size: int, number: int, ear: int) -> np.ndarray:
        size += (_STEREO if number % 2 == 0 else -_STEREO) * ear
        return delay ** int(SAMPLE_RATE / 44_100 * size + 0.5)

    ears = []
    for ear in (0, 1):
        combs = [late(size, number, ear) for number, size in enumerate(_COMBS)]
        response = sum(comb / (1 - feedback * damper * comb) for comb in combs)
        for number, size in enumerate(_ALL_PASSES):
            response *= (1.5 * late(size, number, ear) - 1) / (1 - 0.5 * late(size, number, ear))
        ears.append(response)
    return np.fft.irfft(_REVERB_GAIN * sum(ears) / 2, length)


def pitch_shift(
    audio: Float[Array, "*B n"], key: Array, probability: float, cents: float = 1000.0
) -> Float[Array, "*B n"]:
    """Raises a random share by `cents` hundredths of a semitone, at the same speed.

    Stretched in time by pieces that are laid where they fit the end of the piece before best, then resampled.

    Args:
        audio: `[..., N]`.
        key: a JAX key.
        probability: the share that changes.
        cents: 1200 is an octave up.
    """
    samples, ratio = audio.shape[-1], 2 ** (cents / 1200)
    stretched = _stretch(audio.reshape(-1, samples), ratio)
    # Resampled by cutting off the top of the spectrum, with room behind for what its ends do to each other.
    wide = 1 << (stretched.shape[-1] + SAMPLE_RATE // 10 - 1).bit_length()
    narrow = 2 * round(wide / ratio / 2)
    spectrum = jnp.fft.rfft(stretched, wide)
    spectrum = jnp.pad(spectrum, [(0, 0), (0, max(0, narrow // 2 + 1 - spectrum.shape[-1]))])
    shifted = jnp.fft.irfft(spectrum[:, : narrow // 2 + 1], narrow)[:, :samples] * (narrow / wide)
    return _some(audio, jnp.clip(shifted, -1, 1).reshape(audio.shape), key, probability)


def _stretch(audio: Float[Array, "B n"], ratio: float) -> Float[Array, "B m"]:
    """The sound `ratio` times as long, at the same pitch (WSOLA, the waveform fitted by least squares)."""
    stride, wanted = _PIECE - _OVERLAP, round(audio.shape[-1] * ratio)
    starts = np.floor(np.arange(-(-wanted // stride)) * stride / ratio + 0.5).astype(np.int32)
    window, lead = _SEARCH + _PIECE, _SEARCH // 2
    behind = max(0, int(starts[-1]) + window - lead - audio.shape[-1])
    padded = jnp.pad(audio, [(0, 0), (lead, behind)])
    fade_in = jnp.arange(_OVERLAP, dtype=audio.dtype) / _OVERLAP
    shifts = np.arange(_SEARCH)[:, None] + np.arange(_OVERLAP)

    def lay(tail: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        start, first = step
        near = jax.lax.dynamic_slice_in_dim(padded, start, window, axis=1)
        misfit = jnp.sum(jnp.square(near[:, shifts] - tail[:, None]), axis=-1)
        shift = jnp.where(first, lead, jnp.argmin(misfit, axis=-1))
        piece = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, _PIECE))(near, shift)
        head = jnp.where(first, piece[:, :_OVERLAP], tail * (1 - fade_in) + piece[:, :_OVERLAP] * fade_in)
        return piece[:, stride:], jnp.concatenate([head, piece[:, _OVERLAP:stride]], axis=-1)

    first = np.arange(len(starts)) == 0
    _, pieces = jax.lax.scan(lay, jnp.zeros((len(audio), _OVERLAP), audio.dtype), (starts, first))
    return pieces.swapaxes(0, 1).reshape(len(audio), -1)[:, :wanted]


def _some(audio: Array, changed: Array, key: Array, probability: float) -> Array:
    chosen = jax.random.bernoulli(key, probability, audio.shape[:-1])[..., None]
    return jnp.where(chosen, changed.astype(audio.dtype), audio)
