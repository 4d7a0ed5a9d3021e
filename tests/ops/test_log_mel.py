"""The log-mel spectrogram against the published transform and librosa."""

import jax
import numpy as np
import pytest

from synchformer_jax.ops.log_mel import EPS, MEAN, STD, log_mel, mel_filters, segment_log_mel
from synchformer_jax.ops.segments import segment_audio
from tests.parity import figures, normal


@pytest.fixture(scope="module")
def wave():
    wave = normal("input/wave", (3, 10240)) * np.float32(0.1)
    wave[2] = 0
    return wave


@pytest.mark.parametrize("method", ["fft", "matmul"])
def test_equals_the_published_transform(wave, method):
    ours = jax.jit(lambda x: log_mel(x, method=method))(wave)
    np.testing.assert_allclose(ours, figures("log_mel")["spec"], rtol=1e-4, atol=2e-5)


@pytest.mark.slow  # importing librosa takes long
def test_filters_equal_librosas():
    librosa = pytest.importorskip("librosa")
    expected = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=128, htk=True, norm=None).T
    np.testing.assert_allclose(mel_filters(), expected, atol=2e-5)


@pytest.mark.slow
def test_equals_librosa_at_another_length():
    librosa = pytest.importorskip("librosa")
    wave = np.random.default_rng(0).normal(size=4001).astype(np.float32)
    power = librosa.feature.melspectrogram(
        y=wave,
        sr=16000,
        n_fft=1024,
        win_length=400,
        hop_length=160,
        n_mels=128,
        htk=True,
        norm=None,
        pad_mode="reflect",
    )
    expected = (np.log(power + EPS) - MEAN) / (2 * STD)
    ours = np.asarray(log_mel(wave, frames=power.shape[1]))
    # librosa reflects the edge for its long FFT window, which the short window within does not see
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_right_side_is_padded_or_cut():
    wave = np.random.default_rng(0).normal(size=(2, 3, 3200)).astype(np.float32)
    full = np.asarray(log_mel(wave, frames=21))
    assert full.shape == (2, 3, 128, 21)
    longer = np.asarray(log_mel(wave, frames=25))
    np.testing.assert_allclose(longer[..., :21], full, rtol=1e-6)
    np.testing.assert_allclose(longer[..., 21:], -MEAN / (2 * STD), rtol=1e-6)
    np.testing.assert_allclose(log_mel(wave, frames=10), full[..., :10], rtol=1e-6)


@pytest.mark.parametrize(("start", "num", "step"), [(None, 14, 8), (3, 5, 4), (0, 3, 11), (1, 4, 16), (2, 1, 8)])
def test_segments_share_work_without_a_difference(start, num, step):
    wave = np.random.default_rng(0).normal(size=(2, 79_000)).astype(np.float32)
    apart = jax.jit(lambda x: log_mel(segment_audio(x, start, num, step)))(wave)
    together = jax.jit(lambda x: segment_log_mel(x, start, num, step))(wave)
    assert together.shape == (2, num, 128, 66)
    np.testing.assert_allclose(together, apart, atol=1e-4)


def test_too_short():
    with pytest.raises(ValueError, match="more than 200 samples"):
        log_mel(np.zeros(200, np.float32))
