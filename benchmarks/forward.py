"""One clip's prediction, ours beside the same forward pass in PyTorch, on a CPU in float32.

    python -m benchmarks.forward --out benchmarks/results/forward.json

Both get the same weights, frames as uint8 and samples as int16, cut into segments; decoding is left out. They take
turns in one process with as many threads, and their logits must agree. Needs PyTorch, as the tests do where it is
installed.
"""

import argparse
import functools
import json
import os
import platform
import time
from pathlib import Path

import jax
import numpy as np
import torch
from flax import nnx

from benchmarks.torch_forward import TorchSynchformer
from synchformer_jax.convert import published
from synchformer_jax.files import write_json
from synchformer_jax.models import Synchformer, flops, inference
from synchformer_jax.train.config import base_config


def weights_of(model: nnx.Module, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under the published names, at which every layer counts."""
    random, weights = np.random.default_rng(seed), {}
    for name, shape in published.shapes(model).items():
        x = random.standard_normal(shape, np.float32)
        fan_in = np.prod(shape[1:]) if len(shape) > 1 and name.endswith("weight") else 4
        weights[name] = 1 + 0.1 * x if len(shape) == 1 and name.endswith("weight") else x / np.float32(fan_in) ** 0.5
    return weights


def main() -> None:
    """Measures and prints, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=14, help="segments of the clip, 14 as published")
    parser.add_argument("--size", default="B", help="of the model: Ti, S, B (published), L")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each takes")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch; JAX takes all cores")
    parser.add_argument("--fused", action="store_true", help="measure PyTorch's fused attention too")
    parser.add_argument("--out", type=Path, help="JSON of the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = base_config("sync", options.size)
    config.model.compute.dtype, config.model.segments = "float32", options.segments
    hollow = nnx.eval_shape(lambda: Synchformer(config.model, nnx.Rngs(0)))
    weights = weights_of(hollow)
    graph, state = nnx.split(nnx.merge(nnx.split(hollow)[0], published.to_state(hollow, weights)))

    @jax.jit
    def program(state, frames, audio):
        model = nnx.merge(graph, state)
        visual, heard = inference.encode_frames(config, model, frames), inference.encode_samples(config, model, audio)
        return inference.compare(config, model, visual, heard)

    random = np.random.default_rng(1)
    frames = random.integers(0, 256, (1, options.segments, 16, 224, 224, 3), dtype=np.uint8)
    audio = random.integers(-9000, 9000, (1, options.segments, 10_240), dtype=np.int16)
    state = jax.device_put(state)
    sides = {"jax": lambda: np.asarray(program(state, frames, audio))}
    for name, fused in (("torch", False), ("torch_fused", True))[: 1 + options.fused]:
        model = TorchSynchformer(weights, config.model.visual.heads, config.model.head.heads, fused)
        sides[name] = functools.partial(model, frames, audio)
    logits = {name: run() for name, run in sides.items()}  # compiles and warms up
    difference = max(float(np.abs(value - logits["torch"]).max()) for value in logits.values())
    relative = difference / float(np.abs(logits["torch"]).max())
    if relative > 1e-4:
        raise SystemExit(f"The logits differ by {relative:.1e} of the largest; 1e-4 is float32's rounding.")
    wall, work = ({name: [] for name in sides} for _ in range(2))
    for _ in range(options.rounds):
        for name, run in sides.items():
            started, busy = time.perf_counter(), time.process_time()
            run()
            wall[name].append(round(time.perf_counter() - started, 3))
            work[name].append(round(time.process_time() - busy, 3))
    best, least = ({name: min(times) for name, times in table.items()} for table in (wall, work))
    result = {
        "what": f"one clip of {options.segments} segments, size {options.size}, float32, frames and samples to logits",
        "machine": f"{os.cpu_count()} cores, no accelerator",
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "torch": torch.__version__},
        "load_average": round(os.getloadavg()[1], 1),  # of five minutes: above 0, others took part of the time
        "tflop": round(flops(config.model)["clip"] / 1e12, 3),
        "logits_relative_difference": relative,
        "wall_sec": wall,
        "cpu_sec": work,
        "torch_over_jax_wall": {name: round(best[name] / best["jax"], 3) for name in sides if name != "jax"},
        "torch_over_jax_cpu": {name: round(least[name] / least["jax"], 3) for name in sides if name != "jax"},
    }
    print(json.dumps(result, indent=1))
    if options.out:
        write_json(options.out, result, indent=1)


if __name__ == "__main__":
    main()
