"""python -m benchmarks.train_step: clips a second and MFU of the trainer's own step on the device that is here.

Full size by default, on random clips that already lie on the device, so nothing but the step is timed. Options that
take several values, separated by commas, are measured in every combination, each in one process run after another:

    python -m benchmarks.train_step --config configs/segment_avclip.py --batch 8,16,24 --remat dots,full
    python -m benchmarks.train_step --config configs/sync.py --batch 16,64

A combination that does not fit into memory, or that the device has no kernel for, is a row that says so.
"""

import ast
import itertools
import os
import platform
import runpy
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from synchformer_jax.errors import UserError, exit_on_user_error
from synchformer_jax.files import write_json
from synchformer_jax.train import compile as ahead
from synchformer_jax.train import config as configs
from synchformer_jax.train import hlo, roofline
from synchformer_jax.train import mesh as meshes
from synchformer_jax.train import state as states
from synchformer_jax.train import step as steps

WARM_UP = 2
TOP = 15
CONTAINERS = ("while", "call", "conditional")  # their time is that of what they hold


def load_config(path: Path, changes: list[str]) -> ConfigDict:
    """The config of a file with `FIELD=VALUE` changes.

    Raises:
        UserError: no such file or field.
    """
    if not path.is_file():
        raise UserError(f"--config: there is no file {path}. Give one of those in configs/.")
    config = runpy.run_path(str(path))["get_config"]()
    for change in changes:
        field, _, value = change.partition("=")
        if configs.get(config, field) is None:
            raise UserError(f"--set {change}: the config has no field {field}. See {path} and train/config.py.")
        with_type = value if isinstance(configs.get(config, field), str) else ast.literal_eval(value)
        config.update_from_flattened_dict({field: with_type})
    return config


def random_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """A batch of noise with the shapes of the config's stage."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, (shape, dtype) in ahead.batch_shapes(config).items():
        if name == "target":
            batch[name] = rng.integers(0, config.model.head.classes, shape).astype(dtype)
        elif name == "zoom":  # top, left, side: the whole square
            batch[name] = np.tile(np.array([0, 0, config.data.size], dtype), (shape[0], 1))
        elif name == "visual":
            batch[name] = rng.standard_normal(shape).astype(dtype)
        else:
            limits = np.iinfo(dtype)
            batch[name] = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return batch


def measure(config: ConfigDict, count: int) -> dict[str, Any]:
    """Compiles the step of a config, runs it `count` times, and traces one more.

    Returns:
        Seconds a step, clips a second, model TFLOP/s a device, MFU where the peak is known, GiB of memory, seconds of
        compilation, and the operations that took the most time in the trace.

    Raises:
        UserError: the config cannot be.
    """
    devices = jax.device_count()
    configs.validate(config, devices, paths=False)
    mesh = meshes.make_mesh(config)
    blueprint, arrays = states.take_apart(states.make_model(config))
    run = states.prepare(config, mesh, blueprint)
    state, frozen = states.start(run, arrays)
    del arrays
    batch = meshes.put_batch(mesh, random_batch(config))
    began = time.perf_counter()
    compiled = steps.make_train_step(run).lower(state, frozen, batch).compile()
    compiling = time.perf_counter() - began
    for _ in range(WARM_UP):
        state, metrics = compiled(state, frozen, batch)
    jax.block_until_ready(metrics)
    began = time.perf_counter()
    for _ in range(count):
        state, metrics = compiled(state, frozen, batch)
    loss = float(metrics["loss"])  # waits for all
    seconds = (time.perf_counter() - began) / count
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(compiled(state, frozen, batch))
        costs = top_costs(Path(folder), hlo.parse(compiled.as_text()))
    a_device = steps.flops_per_clip(config, run.trained) * config.data.batch_size / seconds / devices
    row = {
        "seconds": seconds,
        "clips_per_sec": config.data.batch_size / seconds,
        "model_tflops_per_sec": a_device / 1e12,
        "mfu": roofline.mfu(a_device, jax.devices()[0].device_kind),
        "memory_gib": ahead.memory_of(compiled)["peak"] / roofline.GIB,
        "compile_seconds": compiling,
        "loss": loss,
        "top_costs": costs,
    }
    return row


def top_costs(folder: Path, program: hlo.Program) -> list[dict[str, Any]]:
    """The compiled operations that took the most time in a trace, with their place in the traced program.

    The share is of the time of all operations, which on a CPU overlap.
    """
    sources = {one.name: one.source for one, _ in program.run()}
    files = sorted(folder.rglob("*.xplane.pb"))
    planes = list(jax.profiler.ProfileData.from_file(str(files[0])).planes) if files else []
    on_device = [plane for plane in planes if plane.name.startswith("/device:")]
    spent: dict[str, float] = defaultdict(float)
    for plane in on_device or planes:
        for line in plane.lines:
            # A GPU's operations stand in its streams and once more in derived lines; a TPU's in this one line.
            if on_device and not (line.name.startswith("Stream") or (line.name == "XLA Ops" and "TPU" in plane.name)):
                continue
            for event in line.events:
                named = dict(event.stats).get("hlo_op") or (event.name if "TPU" in plane.name else None)
                if named and not str(named).startswith(CONTAINERS):
                    spent[str(named).lstrip("%")] += event.duration_ns / 1e6
    total = sum(spent.values())
    ranked = sorted(spent.items(), key=lambda item: -item[1])[:TOP]
    return [{"operation": name, "ms": ms, "share": ms / total, "source": sources.get(name, "")} for name, ms in ranked]


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """A table of all combinations, and the costs of the fastest."""
    table = Table("stage", "clips", "attention", "remat", "precision", "ms", "clips/s", "TFLOP/s", "MFU", "GiB")
    for row in rows:
        given = [str(row[name]) for name in ("stage", "batch", "attention", "remat", "precision")]
        if "error" in row:
            table.add_row(*given, row["error"])
            continue
        mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%}"
        numbers = [f"{1e3 * row['seconds']:.1f}", f"{row['clips_per_sec']:.3g}", f"{row['model_tflops_per_sec']:.3g}"]
        table.add_row(*given, *numbers, mfu, f"{row['memory_gib']:.1f}")
    console.print(table)
    done = [row for row in rows if "error" not in row]
    if done:
        best = max(done, key=lambda row: row["clips_per_sec"])
        table = Table("share", "ms", "operation", "place in the program", title="top costs of the fastest")
        for cost in best["top_costs"]:
            table.add_row(f"{cost['share']:.1%}", f"{cost['ms']:.2f}", cost["operation"], cost["source"][-80:])
        console.print(table)


def main(
    config: Annotated[Path, typer.Option(help="what to train")] = Path("configs/segment_avclip.py"),
    batch: Annotated[str, typer.Option(help="clips a step, over all devices")] = "8",
    attention: Annotated[str, typer.Option(help="auto, einsum, xla, cudnn")] = "auto",
    remat: Annotated[str, typer.Option(help="none, full, dots; the config's own by default")] = "",
    precision: Annotated[str, typer.Option(help="bfloat16, float16, float32")] = "bfloat16",
    count: Annotated[int, typer.Option("--steps", help="timed steps")] = 10,
    changes: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE of the config; repeat")] = None,
    out: Annotated[Path | None, typer.Option(help="benchmarks/results/train_step_STAGE_DEVICE.json by default")] = None,
) -> None:
    """Measures each combination, prints a table, and writes all to a file."""
    with exit_on_user_error():
        base = load_config(config, changes or [])
        device, console, rows = jax.devices()[0], Console(), []
        kinds = [text.split(",") for text in (batch, attention, remat or base.model.compute.remat, precision)]
        for clips, how, kept, dtype in itertools.product(*kinds):
            some = base.copy_and_resolve_references()
            some.data.batch_size = int(clips)
            some.model.compute.update({"attention": how, "remat": kept, "dtype": dtype})
            row = {"stage": some.stage, "batch": int(clips), "attention": how, "remat": kept, "precision": dtype}
            with console.status(f"{some.stage}: {clips} clips, {how}, {kept}, {dtype}"):
                try:
                    row |= measure(some, count)
                except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:  # no kernel here
                    full = "RESOURCE_EXHAUSTED" in str(error)
                    row["error"] = "does not fit" if full else str(error).strip().splitlines()[0]
            rows.append(row)
        show(rows, console)
        name = device.device_kind.lower().replace(" ", "_")
        out = out or Path(f"benchmarks/results/train_step_{base.stage}_{name}.json")
        machine = {"device": device.device_kind, "devices": jax.device_count(), "cores": os.cpu_count(),
                   "jax": jax.__version__, "python": platform.python_version()}  # fmt: skip
        write_json(out, {"machine": machine, "changes": changes or [], "rows": rows}, indent=1)
        console.print(f"Written to {out}")
        if all("error" in row for row in rows):
            raise UserError("No combination ran; the table above has the reasons.")


if __name__ == "__main__":
    typer.run(main)
