"""Every config stands, and every way to get one wrong names its field."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from synchformer_jax.errors import UserError
from synchformer_jax.train import config as configs

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def good(tiny_config, tmp_path):
    return tiny_config("segment_avclip", tmp_path)


def read(name, *variant):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*variant)


VARIANTS = {
    "segment_avclip": ["", "audioset", "vggsound", "lrs3", "vggsound,S"],
    "quickstart": ["segment_avclip", "sync"],
    "sync": ["", "L"],
    "synchronizability": ["", "Ti"],
}


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_the_configs_of_the_project_stand(name, tmp_path):
    for variant in VARIANTS.get(name, [""]):
        config = read(name, *([variant] if variant else []))
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        config.data.train = config.data.valid = config.init.avclip = config.init.sync = str(tmp_path)
        configs.validate(config, devices=1)
        assert configs.to_dict(configs.from_dict(configs.to_dict(config))) == configs.to_dict(config)


# What configs/*.yaml of the published code say, and its README and scripts for LRS3.
PUBLISHED = {
    "segment_avclip": {"name": "adamw", "learning_rate": 1e-4, "schedule": "cosine", "eps": 1e-8},
    "sync": {"name": "adam", "learning_rate": 2e-6, "per_clips": 16, "schedule": "constant", "eps": 1e-7},
    "synchronizability": {"name": "adam", "learning_rate": 2e-6, "per_clips": 16, "schedule": "constant", "eps": 1e-7},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_the_published(name):
    config = read(name)
    expected = PUBLISHED[name] | {"b1": 0.9, "b2": 0.999, "weight_decay": 0.0, "warmup_steps": 1000, "clip_norm": 1.0}
    assert {field: config.optimizer[field] for field in expected} == expected
    assert config.train.patience == 20 and config.data.jitter_sec == 0.05 and config.augment.flip == 0.5
    assert (config.model.visual.width, config.model.audio.width, config.data.size) == (768, 768, 224)
    stage1 = name == "segment_avclip"
    assert config.freeze == (() if stage1 else ("visual", "audio"))
    shares = {share for effect, share in config.augment.items() if effect != "flip"}
    assert shares == ({0.2} if stage1 else {0.0})
    assert (config.model.segments, config.model.head.classes) == ((13, 2) if name == "synchronizability" else (14, 21))


def test_stage_1_on_lrs3_is_gentler():
    config = read("segment_avclip", "lrs3")
    assert config.optimizer.learning_rate == 5e-5
    assert {effect for effect, share in config.augment.items() if share} == {"flip"}
    assert config.train.steps == 100 * config.train.eval_every
    with pytest.raises(UserError, match=r"no variant 'lrs2'.*audioset, vggsound, lrs3"):
        read("segment_avclip", "lrs2")


def test_the_published_sync_learning_rate_grows_with_the_batch():
    from synchformer_jax.train.optimizer import make_schedule

    config = read("sync")
    schedule = make_schedule(config)
    assert config.data.batch_size == 128
    np.testing.assert_allclose([schedule(0), schedule(500), schedule(1000), schedule(9999)],
                               8 * 2e-6 * np.array([0.01, 0.505, 1, 1]), rtol=1e-5)  # fmt: skip


BAD = [
    ({"stage": "sink"}, "config.stage=sink.*segment_avclip"),
    ({"data.train": ""}, r"--config\.data\.train"),
    ({"data.train": "/nowhere"}, "there is no folder /nowhere"),
    ({"data.valid": ""}, r"--config\.data\.valid"),
    ({"data.batch_size": 7}, "config.data.batch_size=7.*multiple of 2"),
    ({"contrastive.group_clips": 3}, "config.contrastive.group_clips=3.*divisor of 8"),
    ({"contrastive.queue_clips": 16}, "config.contrastive.queue_clips=16 needs momentum encoders"),
    (
        {"contrastive.momentum_encoders": True, "contrastive.queue_clips": 12},
        r"queue_clips=12 is no multiple of data\.batch_size=8.*Give 8",
    ),
    ({"contrastive.momentum": 1.5}, "config.contrastive.momentum=1.5.*between 0 and 1"),
    (
        {"model.avclip.loss": "sigmoid", "contrastive.momentum_encoders": True, "contrastive.alpha": 0.4},
        "config.contrastive.alpha.*sigmoid loss",
    ),
    ({"stage": "sync", "model.visual.tubelet": 5, "model.visual.frames": 15}, "config.model.visual.frames=15.*even"),
    ({"train.accumulate": 3}, "train.accumulate = 3"),
    ({"mesh.data": 3}, "config.mesh data=3.*2 device"),
    ({"mesh.fsdp": 0}, "config.mesh"),
    ({"data.size": 64}, "config.data.size=64.*image_size=32"),
    ({"model.audio.mel_bins": 64}, "config.model.audio.mel_bins=64.*128"),
    ({"model.visual.heads": 5}, "config.model.visual.heads=5.*width 32"),
    ({"optimizer.name": "adamv"}, "config.optimizer.name=adamv.*adamw"),
    ({"optimizer.schedule": "linear"}, "config.optimizer.schedule=linear"),
    ({"train.steps": 2}, "config.train.steps=2.*warm-up"),
    ({"augment.flip": 2.0}, "config.augment.flip"),
    ({"optimizer.clip_norm": -1.0}, "config.optimizer.clip_norm=-1.0.*0 or more"),
    ({"optimizer.b2": 1.0}, "config.optimizer.b2=1.0"),
    ({"data.max_corrupt_share": 2.0}, "config.data.max_corrupt_share=2.0"),
    ({"mesh.data": -1, "mesh.fsdp": -1}, "one may be -1"),
    ({"init.avclip": "/nowhere"}, "config.init.avclip: /nowhere holds no checkpoints"),
    ({"data.visual_features": "/nowhere"}, "serves stage sync only"),
    ({"stage": "synchronizability"}, "--config.init.sync"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[" ".join(changes) for changes, _ in BAD])
def test_a_bad_value_ends_in_an_error_that_names_the_field(good, changes, message):
    configs.validate(good, devices=2)
    good.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        configs.validate(good, devices=2)


def test_the_sync_stage_asks_for_trained_extractors(tiny_config, tmp_path):
    config = tiny_config("sync", tmp_path)
    configs.validate(config, devices=1)
    config.init.random_extractors = False
    with pytest.raises(UserError, match=r"--config\.init\.avclip=DIR"):
        configs.validate(config, devices=1)


def test_a_batch_must_divide_over_processes(good):
    good.data.batch_size, good.mesh.data, good.mesh.tensor = 6, 1, 4
    with pytest.raises(UserError, match="4 processes"):
        configs.validate(good, devices=4, processes=4)


@pytest.mark.parametrize(("sizes", "shape"), [((-1, 2, 2), (2, 2, 2)), ((8, 1, 1), (8, 1, 1)), ((1, -1, 1), (1, 8, 1))])
def test_mesh_shape_takes_what_is_left(good, sizes, shape):
    good.mesh.data, good.mesh.fsdp, good.mesh.tensor = sizes
    assert configs.mesh_shape(good, 8) == shape


def test_a_run_goes_on_with_more_steps_but_not_with_another_model(good):
    longer = good.copy_and_resolve_references()
    longer.train.steps, longer.data.workers = 1000, 4
    configs.require_same_run(good, longer, "run")
    longer.model.visual.depth = 9
    with pytest.raises(UserError, match=r"run holds a run with config.model.visual.depth=1, now it is 9"):
        configs.require_same_run(good, longer, "run")
