"""From a batch to the model's inputs: every form of pixels, and what is drawn for a segment or for a clip."""

import jax
import numpy as np
import pytest

from synchformer_jax.ops.colour import planes_to_rgb
from synchformer_jax.ops.log_mel import log_mel
from synchformer_jax.ops.segments import segment_audio, segment_frames
from synchformer_jax.train import inputs
from tests.train.tiny import SEGMENTS, make_batch, tiny

STAGES = ("segment_avclip", "sync")


@pytest.mark.parametrize("stage", STAGES)
def test_planes_and_pixels_are_one_picture(stage):
    config = tiny(stage)
    frames = make_batch(config, 0)["frames"].shape[1]
    planes = np.random.default_rng(0).integers(0, 256, (2, frames, 32 * 32 * 3 // 2), np.uint8)
    rgb = planes_to_rgb(planes, 32, 32)
    ours, theirs = (np.asarray(inputs.visual_input(config, {"frames": form}, None)) for form in (planes, rgb))
    assert ours.shape == (2, SEGMENTS, 16, 32, 32, 3)
    np.testing.assert_array_equal(ours, theirs)
    want = segment_frames(np.asarray(rgb), 0, SEGMENTS, 16 if stage == "segment_avclip" else 8)
    np.testing.assert_allclose(ours, np.asarray(want) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_sound_is_cut_and_turned_into_log_mel(stage):
    config = tiny(stage)
    audio = make_batch(config, 0)["audio"]
    segments = segment_audio(audio, 0, SEGMENTS, 16 if stage == "segment_avclip" else 8)
    want = log_mel(np.asarray(segments, np.float32) / 32768)
    np.testing.assert_allclose(inputs.audio_input(config, audio, None), want, atol=2e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_1_draws_for_segments_and_later_stages_for_clips(stage):
    """Mirrored segments of a picture that is brighter to the right."""
    config = tiny(stage)
    config.data.batch_size = 64
    shape = make_batch(config, 0, 1)["frames"].shape
    ramp = np.broadcast_to(8 * np.arange(32, dtype=np.uint8)[:, None], (64, *shape[1:]))
    got = np.asarray(inputs.visual_input(config, {"frames": ramp}, jax.random.key(1)))
    mirrored = got[..., 0, 0] > got[..., -1, 0]
    per_segment = mirrored.reshape(64, SEGMENTS, -1)
    assert (per_segment.all(-1) == per_segment.any(-1)).all() and 16 < per_segment.all((1, 2)).sum() + 16 < 80
    mixed = per_segment.any((1, 2)) & ~per_segment.all((1, 2))
    assert mixed.any() == (stage == "segment_avclip")


@pytest.mark.parametrize("stage", ["segment_avclip", pytest.param("sync", marks=pytest.mark.slow)])
def test_the_whole_recipe(stage):
    """All changes at once, always: inputs stay inputs, another key gives others, the same key the same."""
    config = tiny(stage)
    for name in config.augment:
        config.augment[name] = 1.0
    batch = make_batch(config, 0, 2)
    batch["zoom"] = np.array([[0, 0, 32], [3, 2, 27]], np.int32)
    make = jax.jit(
        lambda key: (inputs.visual_input(config, batch, key), inputs.audio_input(config, batch["audio"], key))
    )
    first, again, other = (make(jax.random.key(number)) for number in (0, 0, 1))
    for one, same, different in zip(first, again, other, strict=True):
        assert np.isfinite(one).all() and (one == same).all() and (one != different).any()
    assert first[0].shape == (2, SEGMENTS, 16, 32, 32, 3) and abs(first[0]).max() <= 1 + 1e-6
    assert first[1].shape == (2, SEGMENTS, 128, 66)
    np.testing.assert_allclose(np.ptp(first[0], axis=-1), 0, atol=1e-5)  # grey
