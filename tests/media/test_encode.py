"""Files that we write, read back by FFmpeg's own demuxer and decoders: times, pixels, sound, bytes."""

import av
import numpy as np
import pytest

from synchformer_jax.errors import UserError
from synchformer_jax.media.encode import write_mp4


def _clip(rate, sample_rate, seconds=2.0, channels=1):
    """A grey picture with a white square, and silence with a click, at a few shared times."""
    frames = np.full((round(seconds * rate), 48, 64, 3), 60, np.uint8)
    audio = np.zeros((round(seconds * sample_rate), channels), np.int16)
    marks = [0.2, 0.76, 1.4]
    burst = 20_000 * np.sin(np.arange(160) * 2 * np.pi * 0.11) * np.exp(-np.arange(160) / 30)
    for mark in marks:
        frames[round(mark * rate), 8:40, 16:48] = 230
        start = round(mark * sample_rate)
        audio[start : start + 160] = burst[:, None].astype(np.int16)
    return frames, audio, marks


def _read(path):
    with av.open(str(path)) as container:
        picture = [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = list(container.decode(audio=0))
    start = float(sound[0].pts * sound[0].time_base)
    return picture, start, np.concatenate([f.to_ndarray() for f in sound], axis=1)


@pytest.mark.parametrize(("rate", "sample_rate", "channels"), [(25, 16_000, 1), (30_000 / 1001, 44_100, 2)])
def test_picture_and_sound_come_back_at_their_times(tmp_path, rate, sample_rate, channels):
    frames, audio, marks = _clip(rate, sample_rate, channels=channels)
    write_mp4(
        tmp_path / "x.mp4", frames, audio, frame_rate=rate, sample_rate=sample_rate, crf=10, audio_bit_rate=128_000
    )
    picture, start, sound = _read(tmp_path / "x.mp4")
    np.testing.assert_allclose([t for t, _ in picture], np.arange(len(frames)) / rate, atol=1e-4)
    lit = [t for t, pixels in picture if pixels[24, 32].mean() > 150]
    np.testing.assert_allclose(lit, [round(m * rate) / rate for m in marks], atol=1e-4)
    assert np.abs(np.stack([p for _, p in picture]).astype(int) - frames).mean() < 2.0
    # The edit list takes the encoder's priming samples off, so the decoded sound begins at zero and is not late.
    assert start == 0.0
    assert sound.shape[0] == channels
    assert len(audio) <= sound.shape[1] < len(audio) + 2048
    reference, heard = audio[:, 0].astype(float), sound[0, : len(audio)].astype(float)
    spectrum = np.fft.rfft(heard, 2 * len(audio)) * np.conj(np.fft.rfft(reference, 2 * len(audio)))
    lag = int(np.argmax(np.fft.irfft(spectrum)))
    assert lag == 0


def test_same_arrays_give_the_same_bytes(tmp_path):
    frames, audio, _ = _clip(25, 16_000)
    frames = np.clip(frames + np.random.default_rng(0).normal(0, 4, frames.shape), 0, 255).astype(np.uint8)
    write_mp4(tmp_path / "a.mp4", frames, audio)
    write_mp4(tmp_path / "b.mp4", iter(frames), audio[:, 0])
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, a: (f[:0], a), "no frame"),
        (lambda f, a: (f[:, :47], a), "even sides"),
        (lambda f, a: (f.astype(np.float32), a), "uint8"),
        (lambda f, a: ([f[0], f[1][:40]], a), "Frame 2"),
        (lambda f, a: (f, a.astype(np.float32)), "int16"),
        (lambda f, a: (f, a[:0]), "0 samples"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, change, message):
    frames, audio = change(*_clip(25, 16_000)[:2])
    with pytest.raises(UserError, match=message):
        write_mp4(tmp_path / "x.mp4", frames, audio)
    assert list(tmp_path.iterdir()) == []


def test_rates_that_aac_lacks_are_named(tmp_path):
    frames, audio, _ = _clip(25, 16_000)
    with pytest.raises(UserError, match="15000"):
        write_mp4(tmp_path / "x.mp4", frames, audio, sample_rate=15_000)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    frames, audio, _ = _clip(25, 16_000)
    with pytest.raises(UserError, match="file"):
        write_mp4(tmp_path / "file" / "x.mp4", frames, audio)
