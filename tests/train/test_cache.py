"""Cached picture features: equal to computing them, trained from, and never mixed up with another extractor's."""

import jax
import numpy as np
import pytest

from synchformer_jax.data import features, pipeline
from synchformer_jax.errors import UserError
from synchformer_jax.ops import segments
from synchformer_jax.train import cache, checkpoint, initial, loop, mesh, state, step
from tests.data import make_records as make
from tests.train.tiny import SEGMENTS, tiny


def coloured(number):
    """Squares of random colour, so that cutting, mirroring and greying show."""
    squares = np.random.default_rng(number // 8).integers(0, 256, (4, 11, 3))
    return squares.repeat(8, axis=0).repeat(4, axis=1).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    media = make.video(make=coloured), make.audio()
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


@pytest.fixture(scope="module")
def compute(stage1):
    """Computes features as the sync stage does from frames, without its cuts."""
    blueprint, arrays = state.take_apart(checkpoint.load_model(stage1)[0])

    @jax.jit
    def call(pixels):
        return blueprint.build(arrays).visual(segments.segment_frames(pixels, 0, 30, 8))

    return lambda frames: np.asarray(call(jax.numpy.asarray(frames, jax.numpy.float32) / 127.5 - 1))


def test_the_cache_gives_the_features_of_the_frames_at_every_start(cached, config, compute):
    rows = features.Features(cached, "train")
    assert (rows.header.records, rows.header.tokens, rows.header.width) == (5, 2, 32)
    clip = next(pipeline.batches(config, "train", train=False, stage="clip"))
    expected = compute(clip["frames"])
    for record, want in zip(clip["record"], expected, strict=True):
        # Bit for bit but for a last bit of bfloat16 where batches of other sizes sum in another order.
        np.testing.assert_allclose(rows.window(record, 0, 30).astype(np.float32), want, rtol=2**-7, atol=1e-5)


def test_the_cache_gives_the_logits_of_the_frames(cached, config):
    rows = features.Features(cached, "train")
    clip = next(pipeline.batches(config, "train", train=False, stage="clip"))
    blueprint, arrays = initial.make_initial(config)
    run = state.prepare(config, mesh.make_mesh(config), blueprint)
    call = step.make_eval_step(run)
    frames = clip["frames"][:, 40 : 40 + 16 + 8 * (SEGMENTS - 1)]
    audio = np.random.default_rng(0).integers(-3000, 3000, (4, 640 * frames.shape[1])).astype(np.int16)
    visual = np.stack([rows.window(record, 40, SEGMENTS) for record in clip["record"]])
    expected = call(arrays, {"frames": frames, "audio": audio})["logits"]
    # bfloat16 keeps eight bits of each feature, which moves logits of size 1 in the third digit.
    np.testing.assert_allclose(call(arrays, {"visual": visual, "audio": audio})["logits"], expected, atol=1e-2)
    other = np.stack([rows.window(record, 80, SEGMENTS) for record in clip["record"]])
    assert np.abs(call(arrays, {"visual": other, "audio": audio})["logits"] - expected).max() > 2e-2


def test_views_are_augmented_and_do_not_depend_on_batches(stage1, data, cached, tmp_path):
    views = cache.Views(3, flip=0.5, colour_jitter=0.5, greyscale=0.5)
    for name, size in (("two", 2), ("one", 1)):
        cache.write_features(stage1, data, ["train", "valid"], tmp_path / name, batch_size=size, views=views, seed=3)
    two, one = (features.Features(tmp_path / name, "train") for name in ("two", "one"))
    assert two.header.views == 3 and features.Features(tmp_path / "two", "valid").header.views == 1
    for record in range(5):
        plain = two.window(record, 0, 30).astype(np.float32)
        np.testing.assert_array_equal(plain, features.Features(cached, "train").window(record, 0, 30))
        for view in (1, 2):
            seen = two.window(record, 0, 30, view).astype(np.float32)
            np.testing.assert_allclose(seen, one.window(record, 0, 30, view).astype(np.float32), rtol=2**-7, atol=1e-5)
            assert np.abs(seen - plain).max() > 0.01
    assert np.abs((two.window(0, 0, 30, 1) - two.window(0, 0, 30, 2)).astype(np.float32)).max() > 0.01


def test_only_what_is_missing_is_written_and_parts_share_the_work(stage1, data, cached, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "SHARD_RECORDS", 2)

    def write(part, **how):
        cache.write_features(stage1, data, ["train"], tmp_path, batch_size=2, part=part, **how)
        return sorted(path.name[:11] for path in tmp_path.rglob("*.npy"))

    assert write((0, 1), dry_run=True) == []
    assert "missing in this part: 3 shards, 0.000 GB" in capsys.readouterr().out
    assert write((1, 2)) == ["view0-00001"]
    assert write((0, 2)) == ["view0-00000", "view0-00001", "view0-00002"]
    for record in range(5):
        rows = [features.Features(folder, "train").window(record, 0, 30) for folder in (tmp_path, cached)]
        np.testing.assert_array_equal(*rows)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    gone = sorted(times)[1]
    gone.unlink()
    write((0, 1))
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == {gone}
    with pytest.raises(UserError, match="--part=2/2"):
        write((2, 2))


def test_a_new_extractor_replaces_the_cache_of_the_old(stage1, data, tmp_path):
    for seed in (1, 2):
        cache.write_features(stage1, data, ["valid"], tmp_path, batch_size=2, random_extractors=True, seed=seed)
    assert len(list(tmp_path.rglob("*.npy"))) == 1
    assert features.Features(tmp_path, "valid")


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
    source = features.read_header(tmp_path, "valid").source
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
