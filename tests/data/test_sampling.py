"""Choices against the published tables, and what must hold for every choice."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synchformer_jax import clock
from synchformer_jax.data import sampling
from synchformer_jax.errors import UserError

HERE = Path(__file__).parent
GRID = clock.offset_grid()
TEN = sampling.ClipInfo("ten", 250, 160_000)


def table(name: str) -> list[dict]:
    data = np.load(HERE / f"{name}.npz")
    return [dict(zip(data["columns"].tolist(), row.tolist(), strict=True)) for row in data["rows"]]


def test_temporal_crop_is_the_published():
    """200 rows of (offset, video start): first frame, first sample, class."""
    np.testing.assert_array_equal(GRID, np.load(HERE / "temporal_crop.npz")["grid"])
    rows = table("temporal_crop")
    assert len(rows) == 200
    for row in rows:
        crop = sampling.temporal_crop(row["offset_sec"], row["v_start_sec"], GRID)
        assert (crop.first_frame, crop.first_sample, crop.target) == (
            row["first_frame"],
            row["first_sample"],
            row["offset_target"],
        )
        assert (crop.frames, crop.samples, crop.offset_sec) == (125, 80_000, row["offset_sec"])
        assert GRID[crop.target] == np.float32(row["offset_label"])


def test_temporal_crop_just_before_the_file():
    """As published, a start less than a frame before the file is the file's start."""
    assert sampling.temporal_crop(-1.52, 1.5, GRID).first_sample == 0
    assert sampling.temporal_crop(-1.6, 1.5, GRID).first_sample < 0


def test_segments_are_the_published():
    for row in table("segments"):
        wanted = int(row["n_segments(-1: as many as fit)"])
        frames, samples = sampling.segment_starts(int(row["clip_frames"]), None if wanted < 0 else wanted, row["step"])
        assert len(frames) == len(samples) == row["segments_made"]
        assert (frames[0], frames[-1]) == (row["first_frame_of_first"], row["first_frame_of_last"])
        assert (samples[0], samples[-1]) == (row["first_sample_of_first"], row["first_sample_of_last"])
    with pytest.raises(ValueError):
        sampling.segment_starts(223, 14)


def test_crops_cover_their_segments():
    """What the pipeline cuts starts where the published segments of the whole clip or crop start."""
    crop = sampling.stage1_crop(0, 0, 0, TEN, train=False)
    frames, samples = sampling.segment_starts(250, 14)
    assert (crop.first_frame, crop.first_sample) == (frames[0], samples[0])
    assert (crop.frames, crop.samples) == (224, 143_360)
    inner = sampling.Crop(7, 125, 3_000, 80_000, 0.2, 11).centre(120)
    frames, samples = sampling.segment_starts(125, 14, 0.5)
    assert (inner.first_frame, inner.first_sample) == (7 + frames[0], 3_000 + samples[0])
    assert (inner.frames, inner.samples, inner.target) == (120, 76_800, 11)
    assert sampling.synchronizability_crop(0, 0, 0, TEN, grid=GRID, train=False).frames == 112


clips = st.builds(
    lambda frames, extra: sampling.ClipInfo("clip", frames, frames * 640 + extra),
    st.integers(225, 400),
    st.integers(-600, 600),
)
choice = {
    "seed": st.integers(0, 2**40),
    "epoch": st.integers(0, 10_000),
    "index": st.integers(0, 2**33),
    "clip": clips,
    "train": st.booleans(),
}


def check_inside(crop, clip):
    assert crop.first_frame >= 0 and crop.first_frame + crop.frames <= clip.num_frames
    assert crop.first_sample >= 0 and crop.first_sample + crop.samples <= clip.num_samples
    assert crop.samples == crop.frames * 640 and abs(crop.jitter_samples) <= 800
    # The audio starts at video start + offset in the file: an early audio has offset > 0.
    aligned = (crop.first_frame / 25 + crop.offset_sec) * 16_000
    assert abs(crop.first_sample - crop.jitter_samples - aligned) < 1e-6


@settings(max_examples=150, deadline=None)
@given(**choice)
def test_stage1_crops(seed, epoch, index, clip, train):
    crop = sampling.stage1_crop(seed, epoch, index, clip, train=train)
    check_inside(crop, clip)
    assert crop.frames == 224 and crop.offset_sec == 0
    assert train or crop.jitter_samples == 0


@settings(max_examples=300, deadline=None)
@given(**choice, cached=st.booleans())
def test_sync_crops(seed, epoch, index, clip, train, cached):
    how = {"crop_frames": 120, "stride": 8} if cached else {}
    crop = sampling.sync_crop(seed, epoch, index, clip, grid=GRID, train=train, **how)
    check_inside(crop, clip)
    assert crop.offset_sec == round(float(GRID[crop.target]), 2)
    assert crop.frames == (120 if cached else 125) and (not cached or crop.first_frame % 8 == 0)
    assert crop == sampling.sync_crop(seed, epoch, index, clip, grid=GRID, train=train, **how)
    if not train:
        assert crop.jitter_samples == 0 and crop.target == sampling.fixed_class(index)
        assert crop == sampling.sync_crop(seed + 1, epoch + 1, index, clip, grid=GRID, train=False, **how)


@settings(max_examples=150, deadline=None)
@given(**choice)
def test_synchronizability_crops(seed, epoch, index, clip, train):
    crop = sampling.synchronizability_crop(seed, epoch, index, clip, grid=GRID, train=train)
    check_inside(crop, clip)
    if crop.target:
        assert np.isclose(GRID, crop.offset_sec).any()
    else:  # picture and sound share nothing
        assert abs(crop.offset_sec) == 4.48


def test_training_choices_are_even():
    """Classes by chi-square at p = 1e-6; jitter over its whole range; starts over all that fit."""
    crops = [sampling.sync_crop(1, 0, index, TEN, grid=GRID) for index in range(4200)]
    counts = np.bincount([crop.target for crop in crops], minlength=21)
    assert ((counts - 200) ** 2 / 200).sum() < 68  # chi-square, 20 degrees of freedom
    jitter = np.array([crop.jitter_samples for crop in crops if 800 < crop.first_sample < 79_000])
    assert jitter.min() < -780 and jitter.max() > 780 and abs(jitter.mean()) < 40
    aligned = {crop.first_frame for crop in crops if crop.target == 10}
    assert min(aligned) < 8 and max(aligned) > 117
    assert {crop.first_frame >= 50 for crop in crops if crop.target == 0} == {True}
    starts = [sampling.stage1_crop(1, 0, index, TEN).first_frame for index in range(2000)]
    assert set(starts) == set(range(27))
    halves = np.mean([sampling.synchronizability_crop(1, 0, i, TEN, grid=GRID).target for i in range(2000)])
    assert abs(halves - 0.5) < 0.055


def test_choices_differ_by_seed_epoch_and_index():
    base = [sampling.sync_crop(1, 0, index, TEN, grid=GRID) for index in range(50)]
    for other in (
        [sampling.sync_crop(2, 0, index, TEN, grid=GRID) for index in range(50)],
        [sampling.sync_crop(1, 1, index, TEN, grid=GRID) for index in range(50)],
        [sampling.sync_crop(1, 0, index + 1, TEN, grid=GRID) for index in range(50)],
    ):
        assert sum(a == b for a, b in zip(base, other, strict=True)) < 5


@pytest.mark.parametrize("classes", [21, 2, 3, 16, 24, 41])
def test_fixed_classes_come_evenly(classes):
    made = [sampling.fixed_class(index, classes) for index in range(3 * classes)]
    assert (np.bincount(made, minlength=classes) == 3).all()
    for first in range(0, 3 * classes, classes):
        assert sorted(made[first : first + classes]) == list(range(classes))


@pytest.mark.parametrize(
    "make, frames, seconds",
    [
        (lambda clip: sampling.stage1_crop(0, 0, 0, clip), 223, "8.96 s"),
        (lambda clip: sampling.sync_crop(0, 0, 3, clip, grid=GRID[-1:], train=False), 174, "7.00 s"),
        (lambda clip: sampling.synchronizability_crop(0, 0, 0, clip, grid=GRID, train=False), 223, "8.96 s"),
    ],
)
def test_short_clips_are_named(make, frames, seconds):
    make(sampling.ClipInfo("good", frames + 1, (frames + 1) * 640))
    for short in (
        sampling.ClipInfo("bird.mp4", frames, 160_000),
        sampling.ClipInfo("bird.mp4", 250, frames * 640 + 639),
        sampling.ClipInfo("bird.mp4", 1, 160_000),
        sampling.ClipInfo("bird.mp4", 250, 0),
    ):
        with pytest.raises(UserError, match=f"bird.mp4 lasts .* needs {seconds}"):
            make(short)


def test_squares():
    assert sampling.square(0, 0, 0, 74, 90, 64, train=False) == (4, 12)
    made = np.array([sampling.square(3, 0, index, 74, 64, 64) for index in range(200)])
    assert set(made[:, 0]) == {0, 2, 4, 6, 8, 10} and set(made[:, 1]) == {0}
    with pytest.raises(UserError, match=r"40x74 and config\.data\.size asks for 64x64"):
        sampling.square(0, 0, 0, 74, 40, 64)
