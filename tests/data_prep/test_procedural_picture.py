"""What frames show: an event where and when it happens, and nothing all over the picture."""

import itertools

import numpy as np
import pytest

from data_prep.procedural.picture import render_frames
from data_prep.procedural.world import make_world


@pytest.fixture(scope="module")
def rendered():
    out = []
    for level, index in itertools.product(("dense", "sparse"), range(3)):
        world = make_world(1, "train", level, index)
        out.append((world, np.stack(list(render_frames(world, 64))).astype(np.float32)))
    return out


def _single(world):
    """Impacts with no other within a fifth of a second."""
    seen = [i for i in world.seen() if 0.4 < i.time < 9.6]
    return [i for i in seen if not any(j is not i and abs(j.time - i.time) < 0.2 for j in world.seen())]


def test_an_impact_lights_up_its_place_in_the_first_frame_after_it(rendered):
    checked = 0
    for world, frames in rendered:
        for impact in _single(world):
            x, y = (round(float(v) * 64) for v in impact.point)
            patch = frames[:, max(y - 9, 0) : y + 9, max(x - 9, 0) : x + 9].mean(-1)
            rise = np.maximum(np.diff(patch, axis=0), 0).mean((1, 2))  # rise[k] is from frame k to k + 1
            first = int(np.ceil(impact.time * 25 - 1e-9))
            window = np.arange(first - 5, first + 5)
            window = window[window < len(rise)]
            assert window[np.argmax(rise[window])] == first - 1
            checked += 1
    assert checked >= 12


def test_there_is_no_flash_of_the_whole_picture(rendered):
    for _, frames in rendered:
        change = np.abs(np.diff(frames.mean(-1), axis=0))
        assert (change > 20).mean((1, 2)).max() < 0.25
        # Corners and middle do not brighten together.
        whole = frames.mean((1, 2, 3))
        assert np.abs(np.diff(whole)).max() < 12


def test_frames_are_what_they_should_be(rendered):
    for _, frames in rendered:
        assert frames.shape == (250, 64, 64, 3)
        assert 20 < frames.mean() < 160
        assert frames[0].std() > 5
        assert np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3)).min() > 0.2  # the sensor's noise never stands still


def test_a_larger_frame_shows_the_same_scene():
    world = make_world(1, "train", "dense", 0)
    small = np.stack(list(itertools.islice(render_frames(world, 64), 10))).astype(np.float32)
    large = np.stack(list(itertools.islice(render_frames(world, 128), 10))).astype(np.float32)
    shrunk = large.reshape(10, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(shrunk - small).mean() < 3.0
    assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.97


def test_an_odd_number_of_frames_is_no_trouble():
    world = make_world(1, "train", "sparse", 0)
    assert len(list(render_frames(world, 32, duration_sec=0.44))) == 11
