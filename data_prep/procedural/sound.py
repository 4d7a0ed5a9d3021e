"""A scene to a waveform: modal synthesis of impacts, friction, and the noise of the room."""

from functools import cache

import numpy as np

from data_prep.procedural.motion import Impact, Slide
from data_prep.procedural.world import DURATION_SEC, RING_SEC, Thing, World, loudness
from synchformer_jax.clock import SAMPLE_RATE, to_samples

# Frequencies of the modes over the lowest: a free bar, a wooden bar, a bowl, a soft lump.
MODES = {
    "metal": (1.0, 2.76, 5.40, 8.93, 13.34),
    "wood": (1.0, 2.57, 4.95, 7.80),
    "glass": (1.0, 2.32, 4.25, 6.63, 9.38),
    "rubber": (1.0, 1.59, 2.14, 2.65),
}
CLICK = {"metal": 0.5, "wood": 0.8, "glass": 0.4, "rubber": 0.6}  # the contact's noise beside the ringing
SLIDE_LEVEL = 0.05  # of friction at full speed, beside impacts


@cache
def _times(count: int) -> np.ndarray:
    return np.arange(count) / SAMPLE_RATE


def ring(thing: Thing) -> tuple[np.ndarray, np.ndarray]:
    """What an object answers to a soft and to a hard impact: waveforms of equal length, sounding from sample 0.

    A hard impact excites the higher modes more. Modes above 7.5 kHz are left out, higher modes decay faster.
    """
    rng = np.random.default_rng(thing.seed)
    length = min(thing.ring_sec, RING_SEC)
    times = _times(to_samples(length))
    soft, hard = np.zeros(len(times)), np.zeros(len(times))
    ratios = np.array(MODES[thing.material]) * rng.uniform(0.97, 1.03, len(MODES[thing.material]))
    for number, ratio in enumerate(ratios / ratios[0]):
        frequency, strength, phase = thing.pitch_hz * ratio, rng.uniform(0.5, 1.0), rng.uniform(0.2, 0.8) * np.pi
        if frequency > 7500:
            continue
        mode = np.sin(2 * np.pi * frequency * times + phase)
        mode *= np.exp(-6.91 * times / length * (1 + 0.6 * number))
        soft += strength * 0.45**number * mode
        hard += strength * 0.80**number * mode
    click = rng.standard_normal(to_samples(0.006)) * np.exp(-_times(to_samples(0.006)) / 0.0015)
    for wave in (soft, hard):
        wave /= np.abs(wave).max()
        wave[: len(click)] += 0.5 * CLICK[thing.material] * click
    return soft, hard


def _add(out: np.ndarray, start: int, wave: np.ndarray) -> None:
    """Adds what of `wave`, begun at sample `start`, lies within `out`."""
    first, last = max(start, 0), min(start + len(wave), len(out))
    if first < last:
        out[first:last] += wave[first - start : last - start]


def _coloured(rng: np.random.Generator, count: int, tilt: float, low_hz: float, high_hz: float = 8000.0) -> np.ndarray:
    """Noise with power over frequency^-tilt between two frequencies, of standard deviation 1."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    spectrum *= np.where(
        (frequency >= low_hz) & (frequency <= high_hz), np.maximum(frequency, low_hz) ** (-tilt / 2), 0
    )
    noise = np.fft.irfft(spectrum, count)
    return noise / (noise.std() + 1e-12)


def friction(slide: Slide, thing: Thing, rng: np.random.Generator) -> np.ndarray:
    """Rubbing whose loudness and brightness follow the speed; starts at the slide's first sample."""
    count = max(to_samples(slide.end) - to_samples(slide.start), 2)
    speed = np.linspace(slide.speed, slide.last, count)
    centre = float(np.clip(thing.pitch_hz * 1.5, 300, 2500))
    length = 1 << max(count - 1, 511).bit_length()
    dark = _coloured(rng, length, 1.0, centre / 4, centre)[:count]
    bright = _coloured(rng, length, 1.0, centre, min(centre * 4, 7800))[:count]
    fade = np.minimum(1, np.minimum(np.arange(count), np.arange(count)[::-1]) / 160)
    return SLIDE_LEVEL * speed * fade * (dark * 0.7 + bright * np.minimum(speed, 1))


def impacts_wave(impacts: list[Impact], things: list[Thing], duration_sec: float = DURATION_SEC) -> np.ndarray:
    """Impacts alone, float `[N]`; each begins at the sample nearest to its time and is silent before."""
    out = np.zeros(to_samples(duration_sec))
    rings = {i.obj: None for i in impacts}
    for impact in impacts:
        thing = things[impact.obj]
        if rings[impact.obj] is None:
            rings[impact.obj] = ring(thing)
        soft, hard = rings[impact.obj]
        level = loudness(impact, thing)
        share = min(level, 1.0)
        _add(out, to_samples(impact.time), level * ((1 - share) * soft + share * hard))
    return out


def render_sound(world: World, duration_sec: float = DURATION_SEC) -> np.ndarray:
    """The whole sound of a scene as int16 `[N]` at 16 kHz."""
    rng = np.random.default_rng([world.seed, 1])
    out = impacts_wave(world.heard, world.things, duration_sec)
    for slide in world.slides:
        _add(out, to_samples(slide.start), friction(slide, world.things[slide.obj], rng))
    noise = world.noise
    out += 10 ** (noise["sound_db"] / 20) * _coloured(rng, len(out), noise["colour"], 40.0)
    phase = 2 * np.pi * noise["hum_hz"] * _times(len(out)) + rng.uniform(0, 2 * np.pi)
    out += 10 ** (noise["hum_db"] / 20) * (np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.25 * np.sin(3 * phase))
    out *= noise["gain"]
    return np.round(32767 * out / max(1.0, np.abs(out).max() / 0.97)).astype(np.int16)
