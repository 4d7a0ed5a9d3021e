"""What a run carries from step to step, and how a model turns into it and back.

Parameters live in flat dictionaries by name ("visual.blocks.mlp.up.kernel"): legible in a checkpoint, easy to freeze by
prefix, and the same for Optax, Orbax and the sharding table.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from synchformer_jax import models
from synchformer_jax.errors import UserError
from synchformer_jax.models import layers
from synchformer_jax.train import mesh as meshes
from synchformer_jax.train import optimizer as optimizers
from synchformer_jax.train import pretraining

Arrays = dict[str, jax.Array]


class TrainState(NamedTuple):
    """What changes in training. `step` int32 counts finished steps; `params` are the trainable parameters; `memory` is
    that of `pretraining`, empty without momentum encoders."""

    step: jax.Array
    params: Arrays
    opt_state: Any
    memory: dict[str, Any] = {}  # noqa: RUF012 nobody writes into it


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A model without its parameters."""

    graph: nnx.GraphDef
    variables: tuple[tuple[tuple, nnx.Variable], ...]

    def build(self, arrays: Mapping[str, jax.Array], gathers: Mapping[str, Any] | None = None) -> nnx.Module:
        """The model with these parameters; inside `jax.jit` too.

        Args:
            arrays: the parameters by name.
            gathers: what brings parameters together where they are used (`layers.value_of`), by name.
        """
        flat = [(path, variable.replace(arrays[name_of(path)])) for path, variable in self.variables]
        for path, variable in flat:
            if gathers and gathers.get(name_of(path)):
                variable.set_metadata(gather=gathers[name_of(path)])
        return nnx.merge(self.graph, nnx.from_flat_state(flat))

    def axes(self) -> dict[str, tuple[str | None, ...]]:
        """The logical axes of each parameter."""
        return {name_of(path): layers.logical_axes(variable) for path, variable in self.variables}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter."""
        return {name_of(path): tuple(variable.get_value().shape) for path, variable in self.variables}


def name_of(path: Sequence[str | int]) -> str:
    """The dotted name of a path."""
    return ".".join(str(part) for part in path)


def take_apart(model: nnx.Module) -> tuple[Blueprint, Arrays]:
    """Splits a model into its blueprint and its parameters by name."""
    graph, state = nnx.split(model)
    flat = list(nnx.to_flat_state(state))
    hollow = tuple(
        (path, variable.replace(jax.ShapeDtypeStruct(variable.get_value().shape, variable.get_value().dtype)))
        for path, variable in flat
    )
    return Blueprint(graph, hollow), {name_of(path): variable.get_value() for path, variable in flat}


def make_model(config: ConfigDict, *, seed: int | None = None) -> nnx.Module:
    """A fresh model of the config's stage; with `config.init.random_extractors`, its extractors are those that a
    fresh segment_avclip model of the same seed has, so that features cached from either agree.

    Args:
        config: of a run.
        seed: in place of the config's.
    """
    seed = config.seed if seed is None else seed
    model = models.MODELS[config.stage](config.model, nnx.Rngs(seed))
    if config.stage == "sync" and config.init.random_extractors:
        extractors = models.SegmentAVCLIP(config.model, nnx.Rngs(seed))
        blueprint, arrays = take_apart(model)
        return blueprint.build(take_over(arrays, take_apart(extractors)[1], "a fresh model", ("visual", "audio")))
    return model


def hollow_model(config: ConfigDict) -> Blueprint:
    """The blueprint of the config's stage without computing any parameter."""
    return take_apart(nnx.eval_shape(lambda: models.MODELS[config.stage](config.model, nnx.Rngs(0))))[0]


def take_over(arrays: Arrays, source: Mapping[str, Any], origin: str, prefixes: Sequence[str]) -> Arrays:
    """Replaces the parameters under `prefixes` by those of another model.

    Raises:
        UserError: `source` lacks one, or one has another shape; names up to five.
    """
    wanted = [name for name in arrays if has_prefix(name, prefixes)]
    wrong = [f"{name} is missing" for name in wanted if name not in source] + [
        f"{name} is {tuple(source[name].shape)} there and {tuple(arrays[name].shape)} here"
        for name in wanted
        if name in source and source[name].shape != arrays[name].shape
    ]
    if wrong:
        raise UserError(
            f"The parameters of {origin} do not fit this config.model: {'; '.join(wrong[:5])}"
            f"{' and more' if len(wrong) > 5 else ''}. Give both runs the same config.model."
        )
    return {name: jnp.asarray(source[name]) if name in wanted else array for name, array in arrays.items()}


def has_prefix(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a parameter's name is one of the prefixes or lies under one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def split_frozen(arrays: Arrays, freeze: Sequence[str]) -> tuple[Arrays, Arrays]:
    """The trainable and the frozen parameters.

    Raises:
        UserError: a prefix names no parameter, or all are frozen.
    """
    for prefix in freeze:
        if not any(has_prefix(name, (prefix,)) for name in arrays):
            tops = sorted({name.split(".")[0] for name in arrays})
            raise UserError(
                f"config.freeze holds {prefix!r}, but no parameter has that name. "
                f"Give prefixes of parameter names; they begin with {', '.join(tops)}."
            )
    params = {name: array for name, array in arrays.items() if not has_prefix(name, freeze)}
    if not params:
        raise UserError("config.freeze leaves nothing to train. Take a prefix out of it.")
    return params, {name: array for name, array in arrays.items() if name not in params}


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that stays the same in a run."""

    config: ConfigDict
    mesh: Mesh
    blueprint: Blueprint
    optimizer: optax.GradientTransformation
    schedule: optimizers.Schedule
    trained: tuple[str, ...]  # names of the trainable parameters

    def build(self, arrays: Arrays) -> nnx.Module:
        """The model with these parameters, which lie as `sharding` says."""
        return self.blueprint.build(arrays, {name: meshes.gather(self.sharding(name)) for name in arrays})

    def sharding(self, name: str) -> NamedSharding:
        """Where a parameter lives."""
        return meshes.parameter_sharding(self.mesh, self._axes[name], self._shapes[name])

    @property
    def _axes(self) -> dict[str, tuple[str | None, ...]]:
        return self.blueprint.axes()

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self.blueprint.shapes()

    def state_shardings(self) -> TrainState:
        """Where each part of the train state lives; moments and followers lie with their parameter."""
        whole = meshes.replicated(self.mesh)
        params = {name: self.sharding(name) for name in self.trained}

        def of_leaf(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
            name = getattr(path[-1], "key", None) if path else None
            return params[name] if name in params and leaf.shape == self._shapes[name] else whole

        shapes = jax.eval_shape(self.optimizer.init, self.abstract_params()), self.abstract_memory()
        return TrainState(whole, params, *jax.tree_util.tree_map_with_path(of_leaf, shapes))

    def abstract_memory(self) -> dict[str, Any]:
        """Shapes and types of the memory."""
        return jax.eval_shape(lambda params: pretraining.first_memory(self.config, params), self.abstract_params())

    def abstract_params(self) -> Arrays:
        """Shapes and types of the trainable parameters."""
        values = {name_of(path): variable.get_value() for path, variable in self.blueprint.variables}
        return {name: values[name] for name in self.trained}


def prepare(config: ConfigDict, mesh: Mesh, blueprint: Blueprint) -> Run:
    """The fixed part of a run.

    Raises:
        UserError: `config.freeze` does not fit the model.
    """
    params, _ = split_frozen(dict(blueprint.shapes()), config.freeze)
    axes = blueprint.axes()
    optimizer, schedule = optimizers.make_optimizer(config, {name: axes[name] for name in params})
    return Run(config, mesh, blueprint, optimizer, schedule, tuple(params))


def start(run: Run, arrays: Arrays) -> tuple[TrainState, Arrays]:
    """The state before the first step and the frozen parameters, on their devices."""
    # From the host: what JAX 0.10 puts from one device to those of several processes has no readable shards.
    placed = {name: jax.device_put(np.asarray(array), run.sharding(name)) for name, array in arrays.items()}
    params, frozen = split_frozen(placed, run.config.freeze)
    shardings = run.state_shardings()
    opt_state = jax.jit(run.optimizer.init, out_shardings=shardings.opt_state)(params)
    # The step donates its state, so nothing else may share these buffers.
    step = jax.device_put(np.zeros((), np.int32), shardings.step)
    remember = jax.jit(lambda params: pretraining.first_memory(run.config, params), out_shardings=shardings.memory)
    return TrainState(step, jax.tree.map(jnp.copy, params), opt_state, remember(params)), frozen


def fingerprint(arrays: Mapping[str, Any], prefix: str) -> str:
    """A short digest of the parameters under a prefix, by which cached features know their extractor."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        if has_prefix(name, (prefix,)):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(_whole(arrays[name])).tobytes())
    return digest.hexdigest()[:16]


def _whole(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return multihost_utils.process_allgather(array, tiled=True)
    return jax.device_get(array)
