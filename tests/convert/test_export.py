"""A compiled program: written here, run where nothing but JAX is."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax import export

from synchformer_jax.convert.export import SUFFIX, Exported, export_model
from synchformer_jax.errors import UserError
from synchformer_jax.models import MODELS, Synchformer, inference
from synchformer_jax.train.config import base_config
from tests.eval import flashes
from tests.parity import Weights, relative
from tests.parity import model_of as model_of_parity

ALONE = """
import sys
import jax, numpy as np
from jax import export
with open(sys.argv[1], "rb") as file:
    program = jax.jit(export.deserialize(bytearray(file.read())).call)
given = np.load(sys.argv[2])
np.savez(sys.argv[3], **program(given["frames"], given["audio"]))
loaded = {name.split(".")[0] for name in sys.modules}
sys.exit(", ".join(loaded & {"flax", "synchformer_jax", "ml_collections"}) or 0)
"""


def config_of(stage):
    config = flashes.config()
    config.stage = stage
    config.model.segments, config.model.head.classes = {"synchronizability": (13, 2)}.get(stage, (14, 21))
    return config


def model_of(config):
    return MODELS[config.stage](config.model, nnx.Rngs(0))


def clips(config, count):
    random, length = np.random.default_rng(count), inference.clip_frames(config)
    side = config.model.visual.image_size
    frames = random.integers(0, 256, (count, length, side, side, 3), dtype=np.uint8)
    return frames, random.integers(-9000, 9000, (count, 640 * length), dtype=np.int16)


def test_runs_with_jax_alone(tmp_path):
    config = flashes.config()
    config.model.compute.attention = "cudnn"  # which is not on every platform, so that the program must not take it
    path, model = tmp_path / f"tiny{SUFFIX}", flashes.tiny_model()
    export_model(model, config, path)
    frames, audio = clips(config, 3)
    np.savez(tmp_path / "given.npz", frames=frames, audio=audio)
    command = [sys.executable, "-c", ALONE, str(path), str(tmp_path / "given.npz"), str(tmp_path / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = inference.infer(flashes.config(), model, frames, audio)
    with np.load(tmp_path / "out.npz") as found:
        assert set(found) == set(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    exported = export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["given.npz", "out.npz", path.name]


@pytest.mark.parametrize(("stage", "length", "classes"), [("synchronizability", 112, 2), ("segment_avclip", 224, 0)])
def test_every_stage_any_number_of_clips_any_type(stage, length, classes, tmp_path):
    config = config_of(stage)
    model, path = model_of(config), tmp_path / f"tiny{SUFFIX}"
    config.model.compute.dtype = "bfloat16"
    export_model(model, config, path)
    program = Exported(path)
    assert (program.stage, program.clip_frames, program.image_size, program.classes) == (stage, length, 32, classes)
    frames, audio = clips(config, 2)
    both = program(frames, audio)
    assert ("logits" in both) == (classes > 0)
    config.model.compute.dtype = "float32"
    exact = inference.encode_samples(config, model, inference.cut_samples(config, audio, config.model.segments))
    assert 1e-4 < np.abs(both["audio"] - exact).max() < 0.1
    one = program(frames[1:], audio[1:])
    for name, array in one.items():
        np.testing.assert_allclose(array[0], both[name][1], rtol=0.05, atol=0.05, err_msg=name)


def test_what_is_no_program_is_refused(tmp_path):
    path = tmp_path / f"x{SUFFIX}"
    with pytest.raises(UserError, match="cannot be read"):
        Exported(path)
    for content in (b"", b"no program", bytes(4096)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no program that this version of JAX reads"):
            Exported(path)
    other = export.export(jax.jit(lambda x: x + 1))(jax.ShapeDtypeStruct((3,), np.float32))
    path.write_bytes(other.serialize())
    with pytest.raises(UserError, match="no program"):
        Exported(path)
    config = config_of("motionformer")
    with pytest.raises(UserError, match="is a part only"):
        export_model(model_of(config), config, path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_size(tmp_path):
    """One gigabyte of weights in one program, with the same logits."""
    config = base_config("sync")
    config.model.compute.dtype = "float32"
    model, path = model_of_parity(Synchformer, Weights("synchformer")), tmp_path / f"full{SUFFIX}"
    export_model(model, config, path)
    assert 0.94e9 < path.stat().st_size < 1e9
    program = Exported(path)
    assert (program.clip_frames, program.image_size, program.classes) == (125, 224, 21)
    frames, audio = clips(config, 1)
    graph, state = nnx.split(model)
    expected = jax.jit(lambda state, *x: inference.classify(config, nnx.merge(graph, state), *x))(state, frames, audio)
    assert relative(program(frames, audio)["logits"], np.asarray(expected)) < 1e-4
