"""Augmentation against the standard library's colours, SciPy's filter and counting."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import lfilter

from synchformer_jax.ops import augment

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def frames():
    return jnp.asarray(np.random.default_rng(0).random((20, 10, 1, 3, 4, 3), np.float32))


@pytest.fixture(scope="module")
def audio():
    return jnp.asarray(0.2 * np.random.default_rng(0).standard_normal((20, 10, 1600), np.float32))


def changed(before, after):
    """Which segments differ."""
    return np.any(np.asarray(before != after).reshape(*before.shape[:2], -1), axis=-1)


def test_flip_mirrors_whole_segments_and_leaves_the_rest(frames):
    pixels = (frames * 255).astype(jnp.uint8)
    flipped = augment.flip(pixels, KEY, 0.5)
    which = changed(pixels, flipped)
    expected = np.where(which[..., None, None, None, None], np.asarray(pixels)[..., ::-1, :], pixels)
    np.testing.assert_array_equal(flipped, expected)
    assert flipped.dtype == jnp.uint8 and 70 < which.sum() < 130


@pytest.mark.parametrize("name", ["greyscale", "colour_jitter"])
def test_colours_change_in_the_asked_share(frames, name):
    call = jax.jit(getattr(augment, name), static_argnums=2)
    assert not changed(frames, call(frames, KEY, 0.0)).any()
    assert 20 <= changed(frames, call(frames, KEY, 0.2)).sum() <= 60
    everything = call(frames, KEY, 1.0)
    assert changed(frames, everything).all()
    assert everything.min() >= 0 and everything.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", ["volume", "noise", "low_pass"])
def test_sounds_change_in_the_asked_share(audio, name):
    call = getattr(augment, name)
    assert not changed(audio, call(audio, KEY, 0.0)).any()
    assert 20 <= changed(audio, call(audio, KEY, 0.2)).sum() <= 60


def test_greyscale_has_equal_channels_of_the_luma(frames):
    grey = np.asarray(augment.greyscale(frames, KEY, 1.0))
    luma = np.asarray(frames) @ np.array([0.299, 0.587, 0.114], np.float32)
    np.testing.assert_allclose(grey, np.repeat(luma[..., None], 3, -1), rtol=1e-5)


def test_hue_turns_as_colorsys_says(frames):
    pixels = np.asarray(frames)[0, 0, 0].reshape(-1, 3)
    turned = augment._turn_hue(jnp.asarray(pixels), jnp.float32(0.15))
    for before, after in zip(pixels, np.asarray(turned), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
        np.testing.assert_allclose(after, colorsys.hsv_to_rgb((hue + 0.15) % 1, saturation, value), atol=1e-5)


def test_strength_zero_changes_no_colour(frames):
    np.testing.assert_allclose(augment.colour_jitter(frames, KEY, 1.0, strength=0.0), frames, atol=1e-5)


def test_volume_doubles_and_clips(audio):
    louder = augment.volume(audio, KEY, 1.0)
    np.testing.assert_allclose(louder, np.clip(2 * np.asarray(audio), -1, 1), rtol=1e-6)


def test_low_pass_equals_the_recursive_filter(audio):
    omega = 2 * np.pi * 100 / 16000
    alpha = np.sin(omega) / (2 * 0.707)
    feed = np.array([(1 - np.cos(omega)) / 2, 1 - np.cos(omega), (1 - np.cos(omega)) / 2])
    back = np.array([1 + alpha, -2 * np.cos(omega), 1 - alpha])
    expected = lfilter(feed, back, np.asarray(audio, np.float64), axis=-1)
    np.testing.assert_allclose(augment.low_pass(audio, KEY, 1.0), expected, atol=1e-5)


def test_noise_has_its_amplitude(audio):
    assert np.std(augment.noise(audio, KEY, 1.0) - audio) == pytest.approx(0.01, rel=0.02)
