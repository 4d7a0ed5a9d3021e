"""The physics, the levels and the splits of the procedural world."""

import itertools

import numpy as np
import pytest

from data_prep.procedural.motion import Actor, Lane
from data_prep.procedural.sound import impacts_wave
from data_prep.procedural.world import DURATION_SEC, LEVELS, describe, in_test, make_world

FINE = 1 / 4000  # seconds between looks at a path


@pytest.fixture(scope="module")
def worlds():
    return {level: [make_world(3, "train", level, i) for i in range(25)] for level in LEVELS}


def _events(world, **wanted):
    return [e for e in describe(world)["events"] if all(e[k] == v for k, v in wanted.items())]


def _kinks(actor, start, end):
    """Times at which the velocity jumps, seen from positions alone: differences of differences."""
    times = np.arange(start, end, FINE)
    where = actor.path.at(times)
    jump = np.abs(np.diff(where, 2, axis=0)).max(1) / FINE  # change of velocity between looks
    return times[1:-1][jump > 0.12]


def test_a_dropped_object_falls_and_rebounds_as_physics_has_it():
    actor = Actor(0, 0.1, Lane(0.0, 1.0, 0.9, 0.0), restitution=0.6, friction=1.0, gravity=4.0, point=(0.5, 0.8))
    actor.path.free(-1.0, actor.point)
    actor.fly(0.0, (0.5, 0.3), (0.0, 0.0))
    fall = np.sqrt(2 * 0.5 / 4.0)
    assert actor.impacts[0].time == pytest.approx(fall)
    assert actor.impacts[0].speed == pytest.approx(4.0 * fall)
    # Every rebound has 0.6 of the speed, so 0.6 of the time in the air.
    gaps = np.diff([i.time for i in actor.impacts])
    np.testing.assert_allclose(gaps, 2 * fall * 0.6 ** np.arange(1, len(gaps) + 1), rtol=1e-9)
    assert len(gaps) >= 2
    np.testing.assert_allclose(actor.path.at([5.0])[0], (0.5, 0.8), atol=1e-12)


def test_a_slide_slows_down_by_friction_and_turns_back_at_the_post():
    actor = Actor(0, 0.1, Lane(0.0, 1.0, 0.9, 0.0), restitution=0.5, friction=1.0, gravity=4.0, point=(0.5, 0.8))
    actor.path.free(-1.0, actor.point)
    actor.slide(0.0, 0.5, 1.2)  # 0.4 of room, so it arrives at sqrt(1.44 - 0.8)
    (wall,) = actor.impacts
    assert (wall.kind, wall.speed) == ("wall", pytest.approx(0.8))
    assert wall.time == pytest.approx(0.4)
    assert wall.point == pytest.approx((1.0, 0.8))
    assert actor.point[0] == pytest.approx(0.9 - 0.4**2 / 2)
    assert [(s.speed, s.last) for s in actor.slides] == [pytest.approx((1.2, 0.8)), pytest.approx((0.4, 0.0))]


@pytest.mark.parametrize("level", ["dense", "sparse"])
def test_sound_and_picture_of_an_event_agree_to_a_millisecond(worlds, level):
    """Kinks of the paths, found from positions alone, against the first samples of the sound alone."""
    checked = 0
    for world in worlds[level][:8]:
        for actor in world.actors:
            alone = [i for i in actor.impacts if 0.1 < i.time < DURATION_SEC - 0.1 and i.speed > 0.35]
            kinks = _kinks(actor, 0.0, DURATION_SEC)
            for impact in alone:
                wave = impacts_wave([impact], world.things)
                heard = np.flatnonzero(np.abs(wave) > 1e-3 * np.abs(wave).max())[0] / 16_000
                seen = kinks[np.argmin(np.abs(kinks - impact.time))]
                assert abs(heard - seen) < 1e-3
                checked += 1
    assert checked > 15


def test_paths_have_no_jumps(worlds):
    for world in worlds["dense"] + worlds["sparse"]:
        for actor in world.actors:
            for path in (actor.path, actor.tool):
                steps = np.abs(np.diff(path.at(np.arange(0, DURATION_SEC, 0.002)), axis=0)).max()
                assert steps < 0.002 * 6


def test_levels_have_the_events_that_they_promise(worlds):
    for world in worlds["dense"]:
        assert 15 <= len(_events(world, audible=True)) <= 31
    for world in worlds["sparse"]:
        events = _events(world, audible=True)
        assert 1 <= len(events) <= 5
        assert 1 <= len([e for e in events if e["kind"] != "offscreen"]) <= 4
        assert all(thing.radius * 64 * 2 <= 14 for thing in world.things[: len(world.actors)])
    for world in worlds["none"]:
        assert _events(world, audible=True)
        assert _events(world, visible=True)
        assert not _events(world, audible=True, visible=True)
        heard, seen = ({e["object"] for e in _events(world, **{k: True})} for k in ("audible", "visible"))
        assert not heard & seen
    offscreen = [len(_events(w, kind="offscreen")) for level in ("dense", "sparse") for w in worlds[level]]
    assert max(offscreen) == 1
    assert 0 < np.mean(offscreen) <= 0.3


def test_dense_impacts_are_irregular(worlds):
    """No shift of the train of impacts by 0.4 s or more lays it over itself."""
    for world in worlds["dense"]:
        times = np.array([e["time_sec"] for e in _events(world, visible=True)])
        gaps = np.abs(times[:, None] - times)
        for shift in np.arange(0.4, 2.01, 0.1):
            near = (np.abs(gaps - shift) < 0.04).sum() / 2
            assert near < 0.7 * len(times)


def test_time_in_the_clip_tells_nothing():
    """Events are as frequent early as late: a listener to the sound alone cannot know where in the clip it is."""
    times = np.concatenate(
        [[i.time for i in make_world(0, "train", "sparse", n).seen() if 0 <= i.time < 10] for n in range(500)]
    )
    counts = np.histogram(times, 5, (0, DURATION_SEC))[0]
    expected = len(times) / 5
    assert np.sum((counts - expected) ** 2 / expected) < 18.5  # chi-square with 4 degrees, p = 0.001


def test_middle_of_sparse_clips_has_events():
    inside = [
        sum(2.2 <= i.time < 7.8 for i in make_world(0, split, "sparse", n).seen())
        for split in ("train", "test")
        for n in range(100)
    ]
    assert np.mean(np.array(inside) >= 1) > 0.97
    assert np.mean(np.array(inside) >= 2) > 0.75


def test_test_worlds_are_unseen_and_alike():
    cells = {}
    for split in ("train", "valid", "test"):
        drawn = [make_world(0, split, "sparse", i) for i in range(60)]
        cells[split] = {
            "things": {t.cell for w in drawn for t in w.things},
            "still": {w.background["cell"] for w in drawn},
            "size": np.mean([t.radius for w in drawn for t in w.things]),
            "pitch": np.mean([np.log2(t.pitch_hz) for w in drawn for t in w.things]),
        }
    for kind in ("things", "still"):
        for split in ("train", "valid"):
            assert not cells[split][kind] & cells["test"][kind]
        assert all(in_test(c) for c in cells["test"][kind])
    assert cells["test"]["size"] == pytest.approx(cells["train"]["size"], rel=0.05)
    assert cells["test"]["pitch"] == pytest.approx(cells["train"]["pitch"], abs=0.3)
    # Each single parameter covers its whole range in the test worlds; only the combinations are new.
    for place, bins in enumerate((4, 3, 6, 6, 6)):
        assert {c[place] for c in cells["test"]["things"]} == set(range(bins))


def test_worlds_are_functions_of_their_names():
    names = list(itertools.product((0, 1), ("train", "valid"), ("dense", "sparse"), (0, 1)))
    told = [repr(describe(make_world(*name))) for name in names]
    assert len(set(told)) == len(names)
    assert told == [repr(describe(make_world(*name))) for name in names]
