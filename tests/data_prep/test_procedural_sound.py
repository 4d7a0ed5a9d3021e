"""Sounds have the pitch, the decay and the loudness of what makes them."""

import numpy as np
import pytest

from data_prep.procedural.motion import Impact, Slide
from data_prep.procedural.sound import friction, impacts_wave, render_sound, ring
from data_prep.procedural.world import Thing, make_world


def _thing(material="metal", radius=0.08, pitch=800.0, ring_sec=0.5, seed=5):
    return Thing(material, "ball", radius, pitch, ring_sec, (0.5, 0.5, 0.5), (0, 0, 0, 0, 0), seed)


def _impact(time=1.0, speed=1.0, obj=0):
    return Impact(time, (0.5, 0.5), (0.0, -1.0), speed, "bounce", obj)


@pytest.mark.parametrize("pitch", [220.0, 800.0, 1900.0])
@pytest.mark.parametrize("material", ["metal", "wood", "glass", "rubber"])
def test_the_lowest_mode_is_the_pitch(material, pitch):
    soft, _ = ring(_thing(material, pitch=pitch))
    tail = soft[1600:]  # after the click and most of the higher modes
    spectrum = np.abs(np.fft.rfft(tail * np.hanning(len(tail)), 1 << 16))
    assert np.argmax(spectrum) * 16_000 / (1 << 16) == pytest.approx(pitch, rel=0.01)


def test_the_ringing_has_fallen_to_a_thousandth_at_its_end():
    for seconds in (0.15, 0.6):
        soft, _ = ring(_thing(ring_sec=seconds))
        assert len(soft) == round(seconds * 16_000)
        assert np.abs(soft[-160:]).max() < 2.5e-3
        middle = np.abs(soft[len(soft) // 2 :][:160]).max()
        assert 10**-1.5 * 0.3 < middle < 10**-1.5 * 2


def test_faster_and_larger_is_louder_and_faster_is_brighter():
    def energy(speed, radius):
        wave = impacts_wave([_impact(speed=speed)], [_thing(radius=radius)])
        return np.sum(wave**2), np.abs(np.fft.rfft(wave)) ** 2

    levels = [energy(speed, 0.08)[0] for speed in (0.3, 0.6, 1.2)]
    assert levels[0] * 2 < levels[1] < levels[2] / 2
    assert energy(0.8, 0.06)[0] < energy(0.8, 0.12)[0]
    shares = []
    for speed in (0.3, 1.2):
        spectrum = energy(speed, 0.08)[1]
        shares.append(spectrum[20_000:].sum() / spectrum.sum())  # above 2 kHz in 10 s
    assert shares[1] > 1.5 * shares[0]


def test_objects_sound_different():
    waves = [ring(make_world(0, "train", "dense", i).things[0])[0] for i in range(6)]
    for i, first in enumerate(waves):
        for second in waves[:i]:
            count = min(len(first), len(second))
            likeness = first[:count] @ second[:count] / np.linalg.norm(first[:count]) / np.linalg.norm(second[:count])
            assert abs(likeness) < 0.5


def test_an_impact_is_silent_before_and_starts_at_its_sample():
    wave = impacts_wave([_impact(time=1.00003)], [_thing()])
    assert not wave[:16_000].any()
    assert abs(wave[16_000]) > 0.05


def test_ringing_from_before_the_clip_is_still_heard():
    before = impacts_wave([_impact(time=-0.1)], [_thing()])
    inside = impacts_wave([_impact(time=0.9)], [_thing()])
    np.testing.assert_array_equal(before[:4000], inside[16_000:20_000])


def test_friction_follows_the_speed():
    wave = friction(Slide(0.0, 1.0, 1.0, 0.0, 0), _thing(), np.random.default_rng(0))
    loud = [np.std(part) for part in np.split(wave, 4)]
    assert len(wave) == 16_000
    assert loud[0] > loud[1] > loud[2] > loud[3]
    assert loud[0] / loud[3] > 4


def test_background_lies_well_below_impacts():
    world = make_world(0, "train", "sparse", 1)
    sound = render_sound(world).astype(float)
    times = np.arange(len(sound)) / 16_000
    loud = np.zeros(len(sound), bool)
    for impact in world.heard:
        loud |= (times >= impact.time - 0.01) & (times < impact.time + 1.3)
    for slide in world.slides:
        loud |= (times >= slide.start - 0.01) & (times < slide.end + 0.01)
    peak, floor = np.abs(sound).max(), sound[~loud].std()
    assert floor > 0
    assert 25 < 20 * np.log10(peak / floor) < 60
    assert sound.dtype == np.float64
    assert render_sound(world).dtype == np.int16
