"""Ahead-of-time compilation: what needs no TPU compiler, and a tiny step for a real topology where libtpu is there."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from synchformer_jax.errors import UserError
from synchformer_jax.train import compile as ahead
from synchformer_jax.train import mesh as meshes
from synchformer_jax.train import state as states
from synchformer_jax.train import step as steps
from tests.train.tiny import make_batch

ROOT = Path(__file__).parents[2]


def test_products_are_counted_through_loops_and_gradients():
    def loss(w, x):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
        return jax.lax.scan(body, x, w)[0].sum()

    shapes = jax.ShapeDtypeStruct((6, 16, 16), jnp.float32), jax.ShapeDtypeStruct((4, 16), jnp.float32)
    one = 6 * 2 * 4 * 16 * 16
    assert ahead.product_flops(jax.jit(loss).trace(*shapes).jaxpr.jaxpr) == one
    # Forward, again for the backward pass, and two products a layer there.
    assert ahead.product_flops(jax.jit(jax.grad(loss, (0, 1))).trace(*shapes).jaxpr.jaxpr) == 4 * one


def test_abstract_inputs_are_those_of_a_real_step(tiny_config):
    config = tiny_config("sync")
    config.data.pixels = "rgb"  # as the batches of the tests
    blueprint, arrays = states.take_apart(states.make_model(config))
    run = states.prepare(config, meshes.make_mesh(config, jax.devices()[:1]), blueprint)
    real = (*states.start(run, arrays), steps.device_fields(make_batch(config, 0)))
    given = ahead.abstract_inputs(run)
    assert jax.tree.structure(real) == jax.tree.structure(given)
    for one, other in zip(jax.tree.leaves(real), jax.tree.leaves(given), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize("stage", ["segment_avclip", "sync", "synchronizability"])
def test_batches_have_the_shapes_of_each_stage(tiny_config, stage):
    config = tiny_config(stage)
    config.data.pixels = "rgb"
    real = steps.device_fields(make_batch(config, 0))
    shapes = {name: (values.shape, values.dtype) for name, values in real.items()}
    assert ahead.batch_shapes(config) == shapes
    config.data.pixels = "yuv420"
    assert ahead.batch_shapes(config)["frames"][0] == (*real["frames"].shape[:2], 32 * 32 * 3 // 2)


def test_the_step_of_this_machine_tells_its_memory(tiny_config):
    config = tiny_config("sync")
    compiled, operations, _ = ahead.compile_step(config, meshes.make_mesh(config, jax.devices()[:1]))
    run = states.prepare(config, meshes.make_mesh(config, jax.devices()[:1]), states.hollow_model(config))
    inputs = ahead.abstract_inputs(run)
    memory = ahead.memory_of(compiled)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(inputs[:2])) * 4
    assert memory["arguments"] >= parameters and memory["peak"] > memory["arguments"] + memory["temporary"]
    assert operations >= steps.flops_per_clip(config, run.trained) * config.data.batch_size * 0.9


class Sizes:
    """Stands for the compiler: so many bytes a clip and a chip, on a chip of 100."""

    def __init__(self, fixed, each):
        self.fixed, self.each, self.tried = fixed, each, []

    def __call__(self, config, topology, devices, text_path=None):
        clips = config.data.batch_size // len(devices)
        self.tried.append(clips)
        total = self.fixed + self.each * clips
        if total > 150:
            raise ahead.TooLarge(f"needs {total}")
        blank = dict.fromkeys((field.name for field in dataclasses.fields(ahead.Report)), 0)
        return ahead.Report(**blank | {"memory": {"peak": total}, "memory_limit": 100, "fits": total <= 100})


@pytest.mark.parametrize(("fixed", "each", "most"), [(10, 9, 10), (10, 50, 1), (0, 1, 100), (20, 7, 11)])
def test_the_largest_batch_is_found_in_few_compilations(tiny_config, monkeypatch, fixed, each, most):
    config = tiny_config("sync")
    sizes = Sizes(fixed, each)
    monkeypatch.setattr(ahead, "report", sizes)
    clips, found = ahead.search_batch(config, "v5e:1x1", jax.devices()[:1], lambda text: None)
    assert clips == most and found.memory["peak"] == fixed + each * most
    assert len(sizes.tried) <= 6


def test_nothing_fits(tiny_config, monkeypatch):
    monkeypatch.setattr(ahead, "report", Sizes(200, 1))
    with pytest.raises(UserError, match=r"Not even 2 clip\(s\).*remat=full"):
        ahead.search_batch(tiny_config("segment_avclip"), "v5e:1x1", jax.devices()[:1], lambda text: None)


def test_without_libtpu_the_fix_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "jax\[tpu\]"'):
        ahead.devices_of("v5e:2x2")


CONFIG = """
from tests.train.tiny import tiny
def get_config():
    config = tiny("segment_avclip")
    config.augment.flip = 0.0
    return config
"""


@pytest.mark.slow
def test_a_tiny_step_compiles_for_a_topology(tmp_path):
    pytest.importorskip("libtpu")
    (tmp_path / "config.py").write_text(CONFIG)
    command = [sys.executable, "-m", "synchformer_jax.train.compile", "--config", str(tmp_path / "config.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def call(*more):
        return subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=550)

    done = call("--topology", "v5e:2x2", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["fits"] and found["chips"] == 4 and found["clips"] == 8 and not found["unknown_loops"]
    # Two clips a chip are a group of their own: nothing but the gradients travels.
    assert {one["kind"] for one in found["collectives"]} == {"all-reduce"}
    assert 0 < found["mfu"] < found["roofline_mfu"] <= 1
    wrong = call("--topology", "v9z:2x2")
    assert wrong.returncode == 2 and "--topology v9z:2x2 cannot be had" in wrong.stderr
