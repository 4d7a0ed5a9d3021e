"""By how much predictions in bfloat16 differ from those in float32.

    python -m benchmarks.precision --workdir runs/quickstart/sync --data runs/quickstart/records

Random weights give all inputs nearly the same logits, with classes so close that the smallest difference turns one into
another; agreement there would tell of chance. So two models that do decide are asked: the sync head at full size, whose
last layer is fitted to random labels of 200 random feature sets, and a trained run on held-out clips.
"""

import argparse
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from synchformer_jax.data import pipeline
from synchformer_jax.eval.offset import evaluation_config, sync_forward
from synchformer_jax.files import write_json
from synchformer_jax.models import SyncHead, model_config
from synchformer_jax.weights import open_weights


def difference(exact: np.ndarray, rough: np.ndarray) -> dict:
    """How logits `[N, C]` of float32 and bfloat16 compare; the margin is float32's first class before its second."""
    gap, order = np.abs(rough - exact), np.sort(exact, axis=1)
    return {
        "inputs": len(exact),
        "same_class": int((exact.argmax(axis=1) == rough.argmax(axis=1)).sum()),
        "classes_predicted": len(set(exact.argmax(axis=1).tolist())),
        "logits_std": float(exact.std()),
        "difference_mean": float(gap.mean()),
        "difference_max": float(gap.max()),
        "margin_median": float(np.median(order[:, -1] - order[:, -2])),
        "margin_least": float((order[:, -1] - order[:, -2]).min()),
    }


def fitted_head(size: str, inputs: int, seed: int = 0, batch: int = 20) -> dict:
    """The sync head of a size on random features, its last layer fitted to random labels by ridge regression."""
    config, random = model_config(size), np.random.default_rng(seed)
    counts = {"visual": config.visual.frames // config.visual.tubelet, "audio": 6}
    features = [
        random.standard_normal((inputs, config.segments, count, config[name].width), np.float32)
        for name, count in counts.items()
    ]
    config.compute.dtype = "float32"
    exact = SyncHead(config, nnx.Rngs(seed))
    for path, variable in nnx.to_flat_state(nnx.state(exact)):  # fresh weights are small: let every layer count
        if path[-1] == "kernel" and "blocks" in path:
            fan_in = config.head.width * (config.head.mlp_ratio if "down" in path else 1)
            shape = variable.get_value().shape
            variable.set_value(jnp.asarray(random.standard_normal(shape, np.float32) / fan_in**0.5))

    def run(head: nnx.Module) -> np.ndarray:
        graph, state = nnx.split(head)
        call = jax.jit(lambda state, *given: nnx.merge(graph, state)(*given))
        parts = [call(state, *(part[i : i + batch] for part in features)) for i in range(0, inputs, batch)]
        return np.concatenate(parts).astype(np.float64)

    last = exact.classify
    exact.classify = nnx.static(lambda token: token)  # to read the token that classes are told from
    read = run(exact)
    exact.classify = nnx.data(last)
    labels = np.eye(config.head.classes)[random.integers(config.head.classes, size=inputs)]
    centred = read - read.mean(axis=0)
    penalty = 0.1 * np.square(centred).sum() / inputs
    weights = centred.T @ np.linalg.solve(centred @ centred.T + penalty * np.eye(inputs), labels - labels.mean(axis=0))
    weights *= 10  # a trained head is as sure of its classes
    last.kernel[...] = jnp.asarray(weights, jnp.float32)
    last.bias[...] = jnp.asarray(-read.mean(axis=0) @ weights, jnp.float32)
    config.compute.dtype = "bfloat16"
    rough = nnx.merge(nnx.split(nnx.eval_shape(lambda: SyncHead(config, nnx.Rngs(seed))))[0], nnx.state(exact))
    result = difference(run(exact), run(rough))
    return {"what": f"sync head of size {size}, random features, last layer fitted to random labels"} | result


def trained_run(workdir: Path, data: str, split: str, clips: int) -> dict:
    """A trained sync model on held-out clips at their fixed offsets, from frames."""
    logits = []
    for dtype in ("float32", "bfloat16"):
        weights = open_weights(workdir)
        weights.config.model.compute.dtype = dtype
        config, found = evaluation_config(weights.config, data, split), []
        forward = sync_forward(weights.model(), config)
        for batch in pipeline.batches(config, split, train=False):
            found.extend(forward(batch["frames"], batch["audio"])[batch["valid"]])
            if len(found) >= clips:
                break
        logits.append(np.stack(found[:clips]).astype(np.float64))
    width = f"picture {weights.config.model.visual.width} wide, {weights.config.model.visual.depth} deep"
    return {"what": f"a trained run ({width}) on held-out clips"} | difference(*logits)


def main() -> None:
    """Measures and prints, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="B", help="of the fitted head: Ti, S, B (published), L")
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--workdir", type=Path, help="a trained run of stage sync")
    parser.add_argument("--data", help="a prepared data set for it")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, help="JSON of the results")
    options = parser.parse_args()
    found = [fitted_head(options.size, options.inputs)]
    if options.workdir:
        found.append(trained_run(options.workdir, options.data, options.split, options.inputs))
    device = jax.devices()[0].device_kind
    result = {"machine": f"{os.cpu_count()} cores, {device}", "jax": jax.__version__, "results": found}
    print(json.dumps(result, indent=1))
    if options.out:
        write_json(options.out, result, indent=1)


if __name__ == "__main__":
    main()
