"""Changes of the picture against the standard library's colours, PyTorch's scaling and counting."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synchformer_jax.ops import augment

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def frames():
    return jnp.asarray(np.random.default_rng(0).random((20, 10, 1, 3, 4, 3), np.float32))


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


def test_greyscale_has_equal_channels_of_the_luma(frames):
    grey = np.asarray(augment.greyscale(frames, KEY, 1.0))
    luma = np.asarray(frames) @ np.array([0.2989, 0.587, 0.114], np.float32)
    np.testing.assert_allclose(grey, np.repeat(luma[..., None], 3, -1), rtol=1e-5)


def test_hue_turns_as_colorsys_says(frames):
    pixels = np.asarray(frames)[0, 0, 0].reshape(-1, 3)
    turned = augment._turn_hue(jnp.asarray(pixels), jnp.float32(0.15))
    for before, after in zip(pixels, np.asarray(turned), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
        np.testing.assert_allclose(after, colorsys.hsv_to_rgb((hue + 0.15) % 1, saturation, value), atol=1e-5)


def test_strength_zero_changes_no_colour(frames):
    np.testing.assert_allclose(augment.colour_jitter(frames, KEY, 1.0, strength=0.0), frames, atol=1e-5)


def hue_turned(pixels, turn):
    return np.array(
        [colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in (colorsys.rgb_to_hsv(*p) for p in pixels)]
    )


def test_colour_jitter_is_torchvisions_in_some_order(frames):
    """Factors found by search: one segment's change is brightness, contrast, saturation and hue in one of 24 orders."""
    small = np.asarray(frames[0, 0], np.float64)[None]
    key = jax.random.key(3)
    got = np.asarray(augment.colour_jitter(jnp.asarray(small, jnp.float32), key, 1.0))
    _, order_key, *keys = jax.random.split(key, 6)
    low, high = 0.2, 1.8
    bright, contrast, saturation = (float(jax.random.uniform(k, (1,), minval=low, maxval=high)[0]) for k in keys[:3])
    turn = float(jax.random.uniform(keys[3], (1,), minval=-0.2, maxval=0.2)[0])
    grey = lambda x: (x @ np.array([0.2989, 0.587, 0.114]))[..., None]  # noqa: E731
    blend = lambda x, other, factor: np.clip(factor * x + (1 - factor) * other, 0, 1)  # noqa: E731
    steps = [
        lambda x: np.clip(bright * x, 0, 1),
        lambda x: blend(x, grey(x).mean((-3, -2), keepdims=True), contrast),
        lambda x: blend(x, grey(x), saturation),
        lambda x: hue_turned(x.reshape(-1, 3), turn).reshape(x.shape),
    ]
    want = small
    for which in np.asarray(jax.random.permutation(order_key, 4)):
        want = steps[which](want)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_colours_of_whole_clips(frames):
    """With one leading axis a clip is drawn once."""
    clips = frames.reshape(20, 10, 3, 4, 3)
    flipped = augment.flip((clips * 255).astype(jnp.uint8), KEY, 0.5)
    assert flipped.shape == clips.shape
    grey = np.asarray(augment.greyscale(clips, KEY, 0.5))
    whole = np.ptp(grey, axis=-1).reshape(20, -1).max(1) < 1e-6
    some = np.ptp(grey, axis=-1).reshape(20, -1).min(1) < 1e-6
    assert (whole == some).all() and 4 <= whole.sum() <= 16


def test_scale_up_is_pytorchs():
    torch = pytest.importorskip("torch")
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 28, 28, 3), np.uint8)
    parts = np.array([[0, 0, 28], [3, 1, 24], [4, 4, 24]], np.int32)
    got = np.asarray(jax.jit(augment.scale_up)(frames, parts))
    np.testing.assert_array_equal(got[0], frames[0])
    for clip, (top, left, side), ours in zip(frames[1:], parts[1:], got[1:], strict=True):
        part = torch.tensor(clip[:, top : top + side, left : left + side].transpose(0, 3, 1, 2)).float()
        want = torch.nn.functional.interpolate(part, size=(28, 28), mode="bilinear", align_corners=False)
        assert abs(ours - want.numpy().transpose(0, 2, 3, 1)).max() <= 0.5 + 1e-3  # rounded to whole levels


def test_scale_up_of_a_ramp():
    """Closed form: brightness 8 x at column x, read at (x + 0.5) 24 / 28 - 0.5 + left."""
    ramp = np.broadcast_to(8 * np.arange(28)[None, None, :, None], (1, 28, 28, 3)).astype(np.uint8)[None]
    got = np.asarray(augment.scale_up(ramp, np.array([[2, 3, 24]], np.int32)))[0, 0, 5, :, 0]
    np.testing.assert_array_equal(got, np.round(8 * (3 + np.clip((np.arange(28) + 0.5) * 24 / 28 - 0.5, 0, 23))))
