"""Frames of another size and segments of another length, from records through both stages and the cache."""

import jax
import numpy as np
import pytest

from synchformer_jax.data import features, pipeline
from synchformer_jax.eval import offset
from synchformer_jax.train import cache, checkpoint, loop
from tests.data import make_records

SIDE, FRAMES, SEGMENTS = 48, 8, 5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four clips of 48 x 60 pixels."""
    media = make_records.video(make=lambda number: make_records.picture(number, SIDE, 60)), make_records.audio()
    clips = [make_records.fields(i, media, height=SIDE, width=60) for i in range(4)]
    folder = tmp_path_factory.mktemp("records")
    for split in ("train", "valid", "test"):
        written = make_records.write(folder, clips, split)
    return written


def sized(config, data):
    config.model.segments = SEGMENTS
    config.model.visual.update({"image_size": SIDE, "frames": FRAMES, "tubelet": 4})
    config.data.update({"size": SIDE, "batch_size": 4, "train": data, "valid": data})
    config.optimizer.warmup_steps = 0
    config.train.update({"steps": 1, "eval_every": -1, "checkpoint_every": 0})
    return config


def test_segments_of_a_third_of_a_second_of_48_pixels(tiny_config, data, tmp_path):
    config = sized(tiny_config("segment_avclip"), data)
    assert config.model.audio.frames == 4 * FRAMES + 2  # 33 windows of 10 ms, and one more as published
    assert np.isfinite(loop.fit(config, tmp_path / "stage1")["loss"])

    cache.write_features(tmp_path / "stage1", data, ["train", "valid"], tmp_path / "features", batch_size=4)
    stored = features.Features(tmp_path / "features", "train")
    assert stored.header.shape(0) == (4, 61, 2, 32)  # starts every 4 frames in 250
    batch = next(iter(pipeline.batches(config, "train", train=False, stage="clip")))
    assert batch["frames"].shape == (4, 248, SIDE, SIDE, 3) and batch["starts"].tolist() == [61] * 4
    model, _ = checkpoint.load_model(tmp_path / "stage1")
    cut = np.stack([batch["frames"][:1, start : start + FRAMES] for start in range(40, 60, 4)], axis=1)
    seen = jax.jit(model.visual)(cut.astype(np.float32) / 127.5 - 1)
    kept = stored.window(int(batch["record"][0]), 40, SEGMENTS).astype(np.float32)
    np.testing.assert_allclose(kept, seen[0], rtol=0.01, atol=0.01)  # bfloat16

    sync = sized(tiny_config("sync"), data)
    sync.model.head.update({"lag_profile": True, "classes": 5})
    sync.data.visual_features = str(tmp_path / "features")
    sync.init.update({"avclip": str(tmp_path / "stage1"), "random_extractors": False})
    loop.fit(sync, tmp_path / "sync")
    model, sync = checkpoint.load_model(tmp_path / "sync")
    assert model.head.lag.step_sec == pytest.approx(0.16)
    result = offset.evaluate(model, sync, data, "test")
    assert result["overall"]["clips"] == 4 and np.isfinite(result["overall"]["loss"])
