"""`python -m synchformer_jax.train.compile --config C --topology v5e:16x16`: what a step needs, without the machine.

Compiles the trainer's own step for a TPU topology ahead of time and tells memory, operations, collectives and an
estimated time. Needs `libtpu`, which runs on any Linux machine, but no TPU.
"""

import importlib.util
import json
import os
import time
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from absl import logging as absl_logging
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from synchformer_jax import clock
from synchformer_jax.data import sampling
from synchformer_jax.errors import UserError, exit_on_user_error
from synchformer_jax.models.config import visual_tokens
from synchformer_jax.train import config as configs
from synchformer_jax.train import hlo, roofline
from synchformer_jax.train import mesh as meshes
from synchformer_jax.train import state as states
from synchformer_jax.train import step as steps
from synchformer_jax.train.command_line import parse, require_config
from synchformer_jax.train.compile_report import Report, show

CONFIG = config_flags.DEFINE_config_file("config", None, "What to compile; fields follow as --config.FIELD=VALUE.")
TOPOLOGY = flags.DEFINE_string(
    "topology", "v5e:16x16", "Such as v5e:16x16, v5p:4x4x4 or v6e:16x16; one number an axis."
)
SEARCH = flags.DEFINE_bool("search_batch", False, "Find the most clips a chip that fit; compiles several times.")
JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables.")
HLO = flags.DEFINE_string("hlo", None, "Write the compiled program to this file, to look at.")

# Nothing asks a TPU or its metadata server; several such compilations may run on one machine.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LIBRARY_PATH": "",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


class TooLarge(Exception):
    """The program does not fit into the chip's memory; the message is the compiler's."""


def devices_of(topology: str) -> list[jax.Device]:
    """The devices of a TPU topology that is not there, such as "v5e:16x16".

    Raises:
        UserError: libtpu is not installed, or knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "Compiling for a TPU that is not there needs libtpu, which is not installed. It runs on any Linux machine: "
            'pip install "jax[tpu]"'
        )
    for name, value in ENVIRONMENT.items():
        if value:
            os.environ.setdefault(name, value)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:
        raise UserError(
            f"--topology {topology} cannot be had: {str(error).splitlines()[0]} "
            "Give a generation and its chips along each axis, such as v5e:16x16, v5p:4x4x4 or v6e:16x16."
        ) from error


def abstract_inputs(run: states.Run) -> tuple[states.TrainState, states.Arrays, steps.Batch]:
    """Shapes, types and shardings of what the step of a run takes: state, frozen parameters, batch."""
    shardings = run.state_shardings()

    def placed(tree: Any, where: Any) -> Any:
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, where
        )

    params = run.abstract_params()
    opt_state = placed(jax.eval_shape(run.optimizer.init, params), shardings.opt_state)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=shardings.step)
    everything = {states.name_of(path): variable.get_value() for path, variable in run.blueprint.variables}
    frozen = {name: leaf for name, leaf in everything.items() if name not in params}
    frozen = placed(frozen, {name: run.sharding(name) for name in frozen})
    memory = placed(run.abstract_memory(), shardings.memory)
    state = states.TrainState(step, placed(params, shardings.params), opt_state, memory)
    sharding = meshes.batch_sharding(run.mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in batch_shapes(run.config).items()
    }
    return state, frozen, batch


def batch_shapes(config: ConfigDict) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shapes and types of a training batch (`data.pipeline.batches`)."""
    clips, segments, size = config.data.batch_size, config.model.segments, config.data.size
    step = 1.0 if config.stage == "segment_avclip" else 0.5
    frames = sampling.segments_frames(segments, step, config.model.visual.frames)
    shapes = {"audio": ((clips, frames * clock.SAMPLES_PER_FRAME), np.dtype(np.int16))}
    if config.data.visual_features:
        width = config.model.visual.width
        shapes["visual"] = ((clips, segments, visual_tokens(config.model), width), jnp.dtype(jnp.bfloat16))
    else:
        pixels = (size, size, 3) if config.data.pixels == "rgb" else (size * size * 3 // 2,)
        shapes["frames"] = ((clips, frames, *pixels), np.dtype(np.uint8))
        if config.augment.upscale:
            shapes["zoom"] = ((clips, 3), np.dtype(np.int32))
    if config.stage != "segment_avclip":
        shapes["target"] = ((clips,), np.dtype(np.int32))
    return shapes


def compile_step(config: ConfigDict, mesh: Mesh) -> tuple[Any, float, float]:
    """The trainer's step, compiled for a mesh: the program, the operations in its trace, and the seconds it took.

    Raises:
        TooLarge: it does not fit into the devices' memory.
        UserError: the config fits no model.
    """
    run = states.prepare(config, mesh, states.hollow_model(config))
    inputs = abstract_inputs(run)
    began = time.monotonic()
    traced = steps.make_train_step(run).trace(*inputs)
    operations = product_flops(traced.jaxpr.jaxpr)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise TooLarge(str(error).splitlines()[0]) from error
        raise
    return compiled, operations, time.monotonic() - began


def report(config: ConfigDict, topology: str, devices: list[jax.Device], text_path: str | None = None) -> Report:
    """Compiles the step of a config for all `devices` and reads what came out.

    Raises:
        TooLarge: it does not fit into the devices' memory.
        UserError: the config does not fit the devices, or libtpu does not fit JAX.
    """
    peak = roofline.peak_of(devices[0].device_kind)
    if peak is None:
        raise UserError(f"--topology {topology}: the peaks of {devices[0].device_kind!r} are not in train/roofline.py.")
    mesh = meshes.make_mesh(config, devices)
    compiled, operations, seconds = compile_step(config, mesh)
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"The compiled program cannot be read: {str(error).splitlines()[0]} libtpu {version('libtpu')} is another "
            f'than JAX {jax.__version__} was made for; the right one comes with: pip install "jax[tpu]"'
        ) from error
    if text_path:
        with open(text_path, "w") as file:
            file.write(text)
    program, chips = hlo.parse(text), len(devices)
    collectives, cycles = hlo.collectives(program, chips), hlo.cycles(program)
    sent, traffic = roofline.link_bytes(collectives), hlo.memory_traffic(program)
    trained = states.prepare(config, mesh, states.hollow_model(config)).trained
    memory = memory_of(compiled)
    total = sum(cycles.values())
    return Report(
        topology=topology,
        device=devices[0].device_kind,
        chips=chips,
        clips=config.data.batch_size,
        fits=memory["peak"] <= peak.memory,
        memory=memory,
        memory_limit=peak.memory,
        model_flops=steps.flops_per_clip(config, trained) * config.data.batch_size / chips,
        program_flops=operations / chips,
        compiler_flops=float((compiled.cost_analysis() or {}).get("flops", 0.0)),
        traffic_bytes=traffic,
        collectives=collectives,
        link_bytes=sent,
        bounds={
            "operations": operations / chips / peak.flops,
            "memory": traffic / peak.bandwidth,
            "links": sent / peak.links if peak.links else 0.0,
        },
        compiler_seconds=total / peak.clock if total and peak.clock else None,
        costs=[(place, count / total) for place, count in sorted(cycles.items(), key=lambda item: -item[1])[:12]],
        unknown_loops=program.unknown_loops,
        compile_seconds=seconds,
    )


def memory_of(compiled: Any) -> dict[str, int]:
    """Bytes on one device: arguments, results, temporary, code; and the most at once, which may be less than their sum,
    because not all temporary buffers live together."""
    stats = compiled.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "results": stats.output_size_in_bytes,
        "donated": stats.alias_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    everything = sum(parts.values()) - 2 * parts["donated"]  # results in donated buffers count once
    (platform,) = {device.platform for device in jax.tree.leaves(compiled.input_shardings)[0].device_set}
    # XLA for CPU leaves temporary buffers out of its peak.
    return parts | {"peak": everything if platform == "cpu" else stats.peak_memory_in_bytes + parts["code"]}


def product_flops(jaxpr: Any) -> float:
    """Operations (two a multiply-add) of all matrix products and convolutions of a traced program, loops unrolled."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, values = equation.primitive.name, equation.params
        if name == "dot_general":
            (taken, _), _ = values["dimension_numbers"]
            depth = np.prod([equation.invars[0].aval.shape[axis] for axis in taken])
            total += 2.0 * equation.outvars[0].aval.size * depth
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[values["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * equation.outvars[0].aval.size * kernel.size / features
        inner = [product_flops(sub) for value in values.values() for sub in _jaxprs(value)]
        if inner:
            total += max(inner) if name == "cond" else sum(inner) * (values["length"] if name == "scan" else 1)
    return total


def _jaxprs(value: Any) -> list[Any]:
    """The programs within a parameter of an equation."""
    if isinstance(value, (tuple, list)):
        return [sub for part in value for sub in _jaxprs(part)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []


def search_batch(config: ConfigDict, topology: str, devices: list[jax.Device], say: Any) -> tuple[int, Report]:
    """The most clips a chip that fit: grows along the line through two sizes that fit, then steps down where it must.

    Memory is nearly a straight line in the number of clips, so that a handful of compilations do.

    Args:
        say: called with a line about each compilation.

    Returns:
        Clips a chip, and the report of that size.

    Raises:
        UserError: not even the smallest batch fits.
    """
    shards = meshes.batch_shards(meshes.make_mesh(config, devices))
    unit = config.train.accumulate
    while config.stage == "segment_avclip" and (unit * shards) % max(config.contrastive.group_clips, 1):
        unit += config.train.accumulate
    tried: dict[int, Report | None] = {}

    def fits(units: int) -> bool:
        if units not in tried:
            some = config.copy_and_resolve_references()
            some.data.batch_size = units * unit * shards
            try:
                tried[units] = report(some, topology, devices)
            except TooLarge as error:
                tried[units] = None
                say(f"{units * unit} clips a shard: does not fit ({error})")
            else:
                found = tried[units]
                say(f"{units * unit} clips a shard: {found.memory['peak'] / roofline.GIB:.2f} GiB a chip"
                    f"{'' if found.fits else ', too much'}")  # fmt: skip
        return tried[units] is not None and tried[units].fits

    if not fits(1):
        raise UserError(
            f"Not even {unit} clip(s) a device fit into {topology}. Give --config.model.compute.remat=full, "
            "--config.mesh.fsdp=8, or chips with more memory."
        )
    good, bad = 1, None
    while bad is None or bad - good > 1:
        if bad is None and good == 1:
            guess = 2
        else:
            known = sorted(units for units, found in tried.items() if found)[-2:]
            low, high = (tried[units].memory["peak"] for units in known) if len(known) == 2 else (0, 0)
            slope = (high - low) / (known[-1] - known[0]) if len(known) == 2 else 0
            room = tried[good].memory_limit - tried[good].memory["peak"]
            guess = good + max(1, int(room / slope)) if slope > 0 else good * 2
            guess = guess if bad is None else min(guess, bad - 1)
        if fits(guess):
            good = guess
        else:
            bad = guess
    return good * unit * shards // len(devices), tried[good]


def main(_: list[str]) -> None:
    """Compiles what the flags describe and prints the report."""
    config = require_config(CONFIG.value)
    devices = devices_of(TOPOLOGY.value)
    if not SEARCH.value:
        configs.validate(config, len(devices), paths=False)
    console, progress = Console(soft_wrap=JSON.value), Console(stderr=True)
    try:
        if SEARCH.value:
            _, found = search_batch(config, TOPOLOGY.value, devices, progress.print)
        else:
            with progress.status(f"Compiling for {len(devices)} x {devices[0].device_kind} (minutes at full size)"):
                found = report(config, TOPOLOGY.value, devices, HLO.value)
    except TooLarge as error:
        raise UserError(
            f"config.data.batch_size={config.data.batch_size} does not fit into {TOPOLOGY.value}: {error} Give fewer "
            "clips, --config.model.compute.remat=full, or more --config.mesh.fsdp; --search_batch finds what fits."
        ) from error
    if JSON.value:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        show(found, console)


@exit_on_user_error()
def _command_line() -> None:
    absl_logging.set_verbosity(absl_logging.ERROR)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    _command_line()
