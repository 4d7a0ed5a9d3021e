"""Cached picture features: equal to computing them, trained from, and never mixed up with another extractor's."""

import json

import jax
import numpy as np
import pytest

from synchformer_jax.data import features, pipeline
from synchformer_jax.errors import UserError
from synchformer_jax.train import cache, checkpoint, initial, loop, mesh, state, step
from tests.data import make_records as make
from tests.train.tiny import SEGMENTS, tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    media = make.video(), make.audio()
    clips = [make.fields(index, media) for index in range(5)]
    folder = tmp_path_factory.mktemp("data")
    make.write(folder, clips, "train")
    return make.write(folder, clips[:3], "valid", shards=1)


@pytest.fixture(scope="module")
def stage1(data, tmp_path_factory):
    """The work folder of a stage 1 that has not learned anything yet."""
    config, workdir = tiny("segment_avclip", data), tmp_path_factory.mktemp("stage1")
    run = state.prepare(config, mesh.make_mesh(config), state.hollow_model(config))
    now, frozen = state.start(run, state.take_apart(state.make_model(config, seed=7))[1])
    checkpoints = checkpoint.Checkpoints(workdir, config)
    checkpoints.save(run, now, frozen, {})
    checkpoints.finish()
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def cached(stage1, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("features")
    cache.write_features(stage1, data, ["train", "valid"], out, batch_size=2)
    return out


@pytest.fixture
def config(stage1, data, cached):
    config = tiny("sync", data)
    config.init.update({"avclip": str(stage1), "random_extractors": False})
    config.data.update({"visual_features": str(cached), "batch_size": 4})
    config.train.update({"steps": 3, "eval_every": -1, "checkpoint_every": 0})
    return config


def test_the_cache_gives_the_logits_of_the_frames(cached, config):
    rows = features.Features(cached, "train")
    assert rows.shape == (5, 30, 2, 32)
    clip = next(pipeline.batches(config, "train", train=False, stage="clip"))
    blueprint, arrays = initial.make_initial(config)
    run = state.prepare(config, mesh.make_mesh(config), blueprint)
    call = step.make_eval_step(run)
    frames = clip["frames"][:, 40 : 40 + 16 + 8 * (SEGMENTS - 1)]
    audio = np.random.default_rng(0).integers(-3000, 3000, (4, 640 * frames.shape[1])).astype(np.int16)
    visual = np.stack([rows.window(record, 40, SEGMENTS) for record in clip["record"]])
    expected = call(arrays, {"frames": frames, "audio": audio})["logits"]
    np.testing.assert_allclose(call(arrays, {"visual": visual, "audio": audio})["logits"], expected, atol=2e-3)
    other = np.stack([rows.window(record, 80, SEGMENTS) for record in clip["record"]])
    assert np.abs(call(arrays, {"visual": other, "audio": audio})["logits"] - expected).max() > 1e-2


def test_the_sync_stage_trains_from_the_cache(config, tmp_path):
    metrics = loop.fit(config, tmp_path)
    assert np.isfinite(metrics["loss"])
    model, _ = checkpoint.load_model(tmp_path)
    arrays, first = state.take_apart(model)[1], checkpoint.load_arrays(config.init.avclip)[0]
    for name in first:
        if name.startswith(("visual", "audio")):
            np.testing.assert_array_equal(arrays[name], first[name], err_msg=name)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_features_of_another_extractor_are_refused(config, tmp_path):
    config.init.random_extractors = True
    with pytest.raises(UserError, match="come from another picture extractor"):
        loop.fit(config, tmp_path)


def test_features_serve_frozen_extractors_only(config, tmp_path):
    config.freeze = ("audio",)
    with pytest.raises(UserError, match=r"config.freeze does not hold 'visual'"):
        loop.fit(config, tmp_path)


def test_random_extractors_are_those_of_the_control(stage1, data, config, tmp_path):
    cache.write_features(stage1, data, ["valid"], tmp_path, batch_size=2, random_extractors=True, seed=config.seed)
    config.init.random_extractors = True
    source = json.loads((tmp_path / "valid.json").read_text())["source"]
    assert source.split()[0] == state.fingerprint(initial.make_initial(config)[1], "visual")


def test_published_weights_come_in_by_their_names(config, tmp_path):
    from synchformer_jax.convert import published

    config.init.avclip = ""
    model = state.make_model(config, seed=3)
    config.init.published = str(tmp_path / "published.npz")
    np.savez(config.init.published, **published.from_state(model))
    _, arrays = initial.make_initial(config)
    jax.tree.map(np.testing.assert_array_equal, arrays, state.take_apart(model)[1])
    config.init.published = str(tmp_path / "none.npz")
    with pytest.raises(UserError, match=r"config\.init\.published: There is no file"):
        initial.make_initial(config)
