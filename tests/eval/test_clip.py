"""A crop of a file: where it starts, which way the audio moves, what is refused."""

import numpy as np
import pytest

from synchformer_jax.errors import UserError
from synchformer_jax.eval import clip
from tests.eval import flashes


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return flashes.write_video(tmp_path_factory.mktemp("video") / "flash.mp4", seed=7)


def onsets(crop):
    """The times in seconds at which flashes and clicks begin."""
    bright = crop.frames.mean(axis=(1, 2, 3)) > 120
    loud = np.abs(crop.audio.astype(int)) > 3000
    seen = np.flatnonzero(bright[1:] & ~bright[:-1]) + 1
    heard = np.flatnonzero(loud)
    heard = heard[np.diff(heard, prepend=-10_000) > 600]
    return seen / 25, heard / 16000


@pytest.mark.parametrize(("offset", "start"), [(0.0, 2.0), (0.4, 2.0), (-1.2, 3.04), (1.73, 0.0), (-2.0, 2.0)])
def test_what_is_seen_at_t_is_heard_at_t_minus_offset(video, offset, start):
    crop = clip.read_crop(video, offset_sec=offset, start_sec=start)
    assert crop.frames.shape[0] == 125 and crop.audio.shape == (80_000,)
    seen, heard = onsets(crop)
    both = [t for t in seen if 0.1 < t - offset < 4.9]
    assert len(both) >= 2
    for t in both:
        assert np.abs(heard - (t - offset)).min() < 0.02


def test_the_file_is_cut_where_it_says(video):
    frames, audio = flashes.draw(7)
    crop = clip.read_crop(video, start_sec=2.51, offset_sec=0.2)
    assert crop.start_sec == 2.52
    bright = crop.frames.mean(axis=(1, 2, 3)) > 120
    np.testing.assert_array_equal(bright, frames[63 : 63 + 125].mean(axis=(1, 2, 3)) > 120)
    true = audio[43_520 : 43_520 + 80_000].astype(float)
    assert np.corrcoef(true, crop.audio)[0, 1] > 0.9


def test_the_middle_is_taken_where_nothing_is_said(video):
    assert clip.read_crop(video).start_sec == pytest.approx(2.5, abs=0.021)
    assert clip.read_crop(video, offset_sec=2.0).start_sec == pytest.approx(1.5, abs=0.021)
    assert clip.read_crop(video, offset_sec=-2.0).start_sec == pytest.approx(3.5, abs=0.021)


def test_what_does_not_fit_is_refused(video, tmp_path):
    with pytest.raises(UserError, match=r"between 2\.00 and 5\.00"):
        clip.read_crop(video, offset_sec=-2.0, start_sec=0.0)
    with pytest.raises(UserError, match=r"6 s for the shift"):
        clip.read_crop(video, offset_sec=6.0)
    with pytest.raises(UserError, match=r"gone\.mp4"):
        clip.read_crop(tmp_path / "gone.mp4")
    short = tmp_path / "short.mp4"
    frames, audio = flashes.draw(1)
    flashes.write_mp4(short, frames[:75], audio[:48_000])
    with pytest.raises(UserError, match=r"lasts 3\.0\d s; 5 s are needed"):
        clip.read_crop(short)
    silent = tmp_path / "silent.mp4"
    flashes.write_mp4(silent, frames, 0 * audio)
    with pytest.raises(UserError, match="silent"):
        clip.read_crop(silent)
    assert clip.read_crop(silent, may_be_silent=True).frames.shape[0] == 125


def test_the_sound_moves_by_samples_and_silence_fills_the_gap(video):
    plain = clip.read_crop(video, start_sec=0.0)
    late = clip.read_crop(video, start_sec=0.0, audio_shift_samples=1024)
    np.testing.assert_array_equal(late.frames, plain.frames)
    assert not late.audio[:1024].any()
    np.testing.assert_array_equal(late.audio[1024:], plain.audio[:-1024])
    early = clip.read_crop(video, start_sec=5.0, audio_shift_samples=-1024)
    np.testing.assert_array_equal(early.audio[:-1024], clip.read_crop(video, start_sec=5.0).audio[1024:])


def test_short_side_is_the_published_ratio():
    assert clip.short_side(224) == 256 and clip.short_side(56) == 64
    assert clip.centre(np.arange(256 * 340).reshape(1, 256, 340, 1), 224, "x")[0, 0, 0, 0] == 16 * 340 + 58


def test_offsets_in_words():
    assert clip.describe(0.4) == "the audio is 0.40 s early"
    assert clip.describe(-1.8) == "the audio is 1.80 s late"
    assert clip.describe(0.0) == "the audio is in time with the picture"
