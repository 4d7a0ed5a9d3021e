"""The lag profile, cosine embeddings, dropout."""

import jax
import numpy as np
import pytest
from flax import nnx

from synchformer_jax import clock
from synchformer_jax.models import Motionformer, model_config
from synchformer_jax.models.lag_profile import LagProfile, lag_tokens, lag_weights, token_times
from synchformer_jax.models.layers import drop_path, dropout
from synchformer_jax.models.patch_init import dct_kernel, sinusoid


def test_token_times():
    config = model_config("B")
    seen, heard = lag_tokens(config)
    np.testing.assert_allclose(seen, 0.04 + 0.08 * np.arange(8))
    np.testing.assert_allclose(heard, 0.075 + 0.1 * np.arange(6))
    video, audio = token_times(14, seen, heard, 0.32)
    assert video.shape == (112,)
    assert audio.shape == (84,)
    np.testing.assert_allclose(video[8 * 13], 13 * 0.32 + 0.04)


def test_lag_weights_share_each_pair_between_neighbours():
    video, audio = token_times(14, *lag_tokens(model_config("B")), 0.32)
    weights = lag_weights(video, audio).astype(np.float64)
    squares = np.square(weights).sum(axis=(0, 1))
    assert (squares <= 1 + 1e-6).all()
    grid = clock.offset_grid()
    total = weights.sum(axis=(0, 1))  # the root of what was shared out
    shares = weights * total
    offset = video[:, None] - audio[None, :]
    inside = np.abs(offset) < 2
    np.testing.assert_allclose(shares.sum(-1)[inside], 1, rtol=1e-5)
    np.testing.assert_allclose((shares @ grid)[inside], offset[inside], atol=1e-5)
    assert weights[np.abs(offset) > 2.2].max() == 0


@pytest.mark.parametrize("offset_sec", [-1.4, 0.0, 0.6, 2.0])
def test_lag_profile_peaks_at_the_offset(offset_sec):
    """Features that mark the same instants, the sound's `offset_sec` early, give their offset the largest logit."""
    config = model_config("Ti")
    config.head.lag_profile = True
    config.visual.update(width=32, heads=2)
    config.audio.update(width=32, heads=2)
    config.compute.dtype = "float32"
    module = LagProfile(config, nnx.Rngs(jax.random.key(0, impl="unsafe_rbg")))
    module.audio.kernel[...] = module.visual.kernel[...]  # both streams speak one language
    video, audio = token_times(14, *lag_tokens(config), 0.32)
    knots = np.random.default_rng(0).normal(size=(120, 32))

    def world(time):  # smooth over 0.1 s
        place = (time + 3) / 0.1
        low = np.floor(place).astype(int)
        part = (place - low)[:, None]
        return (1 - part) * knots[low] + part * knots[low + 1]

    visual = world(video).reshape(1, 14, 8, 32)
    sound = world(audio + offset_sec).reshape(1, 14, 6, 32)  # heard at t, seen at t + offset
    logits = np.asarray(module(visual, sound))[0]
    assert logits.argmax() == clock.nearest_class(offset_sec, clock.offset_grid())


def test_cosine_embedding_is_orthogonal_and_whitens():
    kernel = dct_kernel((4, 16, 16, 3), 64).reshape(-1, 64).astype(np.float64)
    gram = kernel.T @ kernel
    off = gram - np.diag(np.diag(gram))
    assert np.abs(off).max() < 1e-4 * np.diag(gram).max()
    # frames of a 1/f spectrum in space that change little in time give outputs of about unit variance
    rng = np.random.default_rng(0)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    grey = np.fft.ifft2(np.fft.fft2(rng.normal(size=(50, 64, 64))) / np.maximum(f, 1 / 64)).real
    grey *= 0.5 / grey.std()
    clips = np.repeat(np.repeat(grey[:, None, :16, :16, None], 4, axis=1), 3, axis=4)
    out = clips.reshape(50, -1) @ kernel
    spread = out.std(axis=0)
    live = spread > 1e-6  # the others look at changes and colours, which these frames do not have
    assert live.sum() > 10
    assert 0.3 < np.median(spread[live]) < 3


def test_cosine_embedding_is_used():
    config = model_config("Ti")
    config.visual.update(
        image_size=32, tubelet=4, width=32, depth=1, heads=2, patch_init="dct", position_init="sinusoidal"
    )
    model = Motionformer(config, nnx.Rngs(jax.random.key(0, impl="unsafe_rbg")))
    np.testing.assert_array_equal(model.patch.kernel[...], dct_kernel((4, 16, 16, 3), 32))
    np.testing.assert_array_equal(model.position_time[...], sinusoid(4, 32))
    with pytest.raises(ValueError, match="10 outputs for 3 inputs"):
        dct_kernel((1, 1, 1, 3), 10)


def test_sinusoids_tell_times_apart():
    table = sinusoid(8, 32)
    assert table.shape == (8, 32)
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1) + 10 * np.eye(8)
    assert distance.min() > 0.5
    np.testing.assert_allclose(np.square(table).sum(axis=-1), 16, rtol=1e-5)


def test_dropout_keeps_the_mean_and_drop_path_drops_whole_samples():
    x = np.ones((4000, 3), np.float32)
    key = jax.random.key(0)
    dropped = np.asarray(dropout(x, 0.25, key))
    np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.03)
    rows = np.asarray(drop_path(x, 0.25, key))
    assert (np.ptp(rows, axis=1) == 0).all()
    np.testing.assert_allclose((rows[:, 0] == 0).mean(), 0.25, atol=0.03)
    np.testing.assert_array_equal(dropout(x, 0.25, None), x)
