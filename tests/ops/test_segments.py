"""Where segments start, and what is in them."""

import numpy as np
import pytest

from synchformer_jax.ops.segments import segment_audio, segment_frames, segment_start, segments_that_fit
from tests.parity import figures

CASES = figures("segments")["rows"].tolist()


@pytest.mark.parametrize("row", CASES, ids=lambda row: f"{row[0]:.0f}-{row[1]:.0f}-{row[2]}")
def test_segments_are_the_published_ones(row):
    frames, num, share, made, first, last, first_sample, last_sample, samples = row
    frames, step = int(frames), int(share * 16)
    num = segments_that_fit(frames, step) if num < 0 else int(num)
    assert num == made
    assert segment_start(frames, num, step) == first
    time = np.arange(frames)[None, :, None]
    picture = np.asarray(segment_frames(time, None, num, step))
    assert picture.shape == (1, num, 16, 1)
    assert (picture[0, 0, 0, 0], picture[0, -1, 0, 0]) == (first, last)
    expected = first + np.arange(num)[:, None] * step + np.arange(16)
    np.testing.assert_array_equal(picture[0, :, :, 0], expected)
    sound = np.asarray(segment_audio(np.arange(frames * 640)[None], None, num, step))
    assert sound.shape == (1, num, samples)
    assert (sound[0, 0, 0], sound[0, -1, 0]) == (first_sample, last_sample)
    np.testing.assert_array_equal(np.diff(sound[0], axis=1), 1)


@pytest.mark.parametrize("step", [3, 5, 24])
def test_any_step(step):
    x = np.arange(2 * 90).reshape(2, 90)
    cut = np.asarray(segment_frames(x, 4, 3, step))
    for clip in range(2):
        for segment in range(3):
            np.testing.assert_array_equal(cut[clip, segment], x[clip, 4 + segment * step :][:16])


def test_segments_that_do_not_fit():
    with pytest.raises(ValueError, match="14 segments of 16 frames every 8 do not fit into 119 frames"):
        segment_frames(np.zeros((1, 119, 2)), None, 14, 8)
    with pytest.raises(ValueError, match="from frame 1 do not fit"):
        segment_audio(np.zeros((1, 76800)), 1, 14, 8)
