"""What a run starts from."""

import numpy as np
import pytest
import safetensors.numpy

from synchformer_jax.convert import torch_writer
from synchformer_jax.errors import UserError
from synchformer_jax.train import config as configs
from synchformer_jax.train import initial, state
from synchformer_jax.weights import Weights, save_weights


def random_arrays(config, seed=3):
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(shape, np.float32) for k, shape in state.hollow_model(config).shapes().items()}


def published(config, arrays):
    from synchformer_jax.convert.published import from_state

    return from_state(Weights(arrays, config, "a seed").model())


@pytest.fixture
def extractors(tiny_config, tmp_path):
    """Files of Motionformer and of AST as they are published, and their arrays by our names."""
    config, given = tiny_config("segment_avclip", tmp_path), {}
    for stage, part in initial.EXTRACTORS.items():
        config.stage = stage
        arrays = random_arrays(config)
        given |= {f"{part}.{name}": array for name, array in arrays.items() if not name.startswith("pool.")}
        theirs = {k: v for k, v in published(config, arrays).items() if "_attn_agg." not in k}
        if stage == "motionformer":
            theirs["head.weight"] = np.zeros((174, 32), np.float32)
            torch_writer.write(tmp_path / "ssv2.pyth", theirs, container="model_state")
        else:
            theirs = {k.replace("ast.", "audio_spectrogram_transformer.", 1): v for k, v in theirs.items()}
            name = "audio_spectrogram_transformer.embeddings.position_embeddings"
            theirs[name] = np.concatenate([theirs[name], np.zeros((1, 500, 32), np.float32)], axis=1)
            safetensors.numpy.save_file(theirs, tmp_path / "model.safetensors")
    return tmp_path, given


def test_stage_1_starts_from_motionformer_and_ast(tiny_config, extractors):
    folder, given = extractors
    config = tiny_config("segment_avclip", folder)
    _, fresh = initial.make_initial(config)
    config.init.motionformer, config.init.ast = str(folder / "ssv2.pyth"), str(folder / "model.safetensors")
    configs.validate(config, devices=1)
    _, arrays = initial.make_initial(config)
    for name, array in arrays.items():
        expected = given.get(name, fresh[name])
        np.testing.assert_array_equal(array, expected, err_msg=name)
    assert {name.split(".")[1] for name in arrays.keys() - given.keys() if "." in name} == {"pool"}


def test_files_of_another_model_are_told_by_their_field(tiny_config, extractors):
    folder, _ = extractors
    for field, name, message in [
        (
            "motionformer",
            "model.safetensors",
            r"config\.init\.motionformer: .* holds weights of ast.*config\.init\.ast",
        ),
        ("published", "ssv2.pyth", r"config\.init\.published: .* motionformer.*config\.init\.motionformer"),
        ("ast", "gone.safetensors", r"config\.init\.ast: There is no file"),
    ]:
        config = tiny_config("segment_avclip", folder)
        config.init[field] = str(folder / name)
        with pytest.raises(UserError, match=message):
            initial.make_initial(config)
    with pytest.raises(UserError, match=r"config\.init\.ast: there is no file"):
        configs.validate(config, devices=1)
    config = tiny_config("segment_avclip", folder)
    config.model.visual.attention = "joint"
    config.init.motionformer = str(folder / "ssv2.pyth")
    with pytest.raises(UserError, match=r"ssv2\.pyth do not fit this config\.model"):
        initial.make_initial(config)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ""])
def test_stage_2_starts_from_converted_weights(suffix, tiny_config, tmp_path):
    config = tiny_config("segment_avclip", tmp_path)
    arrays = random_arrays(config)
    save_weights(Weights(arrays, config, "a seed"), tmp_path / f"stage1{suffix}")
    config = tiny_config("sync", tmp_path)
    config.init.random_extractors = False
    config.init["published" if suffix else "avclip"] = str(tmp_path / f"stage1{suffix}")
    configs.validate(config, devices=1)
    _, started = initial.make_initial(config)
    for name in arrays.keys() - {"logit_scale"}:
        np.testing.assert_array_equal(started[name], arrays[name], err_msg=name)


def test_a_whole_clip_stage_1_starts_from_one_of_segments(tiny_config, tmp_path):
    config = tiny_config("segment_avclip", tmp_path)
    arrays = random_arrays(config)
    save_weights(Weights(arrays, config, "a seed"), tmp_path / "segments.pth")
    config.model.avclip.global_pool = "attention"
    config.init.published = str(tmp_path / "segments.pth")
    _, started = initial.make_initial(config)
    assert any(name.startswith("global_") for name in started)
    for name, array in arrays.items():
        np.testing.assert_array_equal(started[name], array, err_msg=name)
