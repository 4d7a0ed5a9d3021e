"""Weights and inputs of the parity cases, made from their names by the rule in tests/data/README.md."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from synchformer_jax.convert import published
from synchformer_jax.models import model_config

DATA = Path(__file__).parent / "data"


def figures(case: str) -> dict[str, np.ndarray]:
    """The stored outputs of a case."""
    with np.load(DATA / f"{case}.npz") as file:
        return dict(file)


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that belong to a name."""
    return np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), 0])).standard_normal(shape, np.float32)


class Weights(Mapping):
    """The weights of a published model, each made when it is asked for.

    Args:
        keys: "synchformer", "synchronizability" or "avclip".
        part: only keys that begin with one of these, of which `strip` is taken off.
    """

    def __init__(self, keys: str, part: tuple[str, ...] = ("",), strip: str = ""):
        shapes = json.loads((DATA / f"keys_{keys}.json").read_text())
        self.strip = strip
        self.shapes = {k.removeprefix(strip): tuple(v) for k, v in shapes.items() if k.startswith(part)}

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)

    def __getitem__(self, key):
        name, shape = self.strip + key, self.shapes[key]
        if not shape:
            return np.float32(0.07)
        x = normal(name, shape)
        if name.endswith("bias"):
            return np.float32(0.02) * x
        if len(shape) == 1:
            return 1 + np.float32(0.1) * x
        if name.endswith("weight"):
            return x / np.float32(np.sqrt(np.prod(shape[1:])))
        return np.float32(0.5) * x


def model_of(kind: type, weights: Mapping, **head) -> nnx.Module:
    """A full-size model in float32 with these weights."""
    config = model_config("B")
    config.compute.dtype = "float32"
    config.segments = head.pop("segments", 14)
    config.head.update(head)
    model = nnx.eval_shape(lambda: kind(config, nnx.Rngs(0)))
    graph, _ = nnx.split(model)
    return nnx.merge(graph, published.to_state(model, weights))


def relative(ours: jax.Array, theirs: np.ndarray) -> float:
    """The largest difference over the largest value."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def published_norm(x: np.ndarray) -> float:
    """The Euclidean norm as PyTorch sums it up on a CPU: float32 squares in eight lanes, one after the other, which
    is 1e-4 low on millions of values."""
    squares = np.square(np.pad(x.ravel(), (0, -x.size % 8))).reshape(-1, 8)
    return float(np.sqrt(np.add.reduce(squares, axis=0, dtype=np.float32).sum(dtype=np.float64)))
