"""Which device holds what: a mesh of three axes, and one table from logical axes to mesh axes."""

import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from synchformer_jax.errors import UserError
from synchformer_jax.train import config as configs

AXES = ("data", "fsdp", "tensor")
# Parameters are cut along these; an axis that is not named, or whose size does not divide, stays whole. So do vectors:
# what cutting them would save is not worth a message.
RULES = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor"}


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) of a config over all devices.

    Raises:
        UserError: the sizes do not multiply to the number of devices, `tensor` reaches over processes, or simulated
            devices would hang.
    """
    devices = list(devices or jax.devices())
    _check_simulated(devices, jax.__version_info__, os.environ.get("XLA_FLAGS", ""))
    kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
    mesh = jax.make_mesh(configs.mesh_shape(config, len(devices)), AXES, axis_types=kinds, devices=devices)
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    if (owners != owners[..., :1]).any():
        # Each process reads clips of its own, and all devices along `tensor` need the same ones.
        raise UserError(
            f"config.mesh.tensor={config.mesh.tensor} reaches over processes of {jax.local_device_count()} device(s). "
            f"Give --config.mesh.tensor a divisor of {jax.local_device_count()}."
        )
    return mesh


def _check_simulated(devices: Sequence[jax.Device], version: tuple[int, ...], flags: str) -> None:
    mine = [device for device in devices if device.process_index == devices[0].process_index]
    flag = "--xla_cpu_multi_thread_eigen=false"
    if mine[0].platform == "cpu" and len(mine) > 1 and version >= (0, 11) and flag not in flags:
        # Each FFT holds a thread of the pool that all of them share, and waits for another one.
        raise UserError(
            f"{len(mine)} simulated CPU devices wait for each other forever in the FFTs of JAX 0.11. "
            f'Set XLA_FLAGS="{flags}{" " if flags else ""}{flag}".'
        )


def parameter_sharding(mesh: Mesh, axes: Sequence[str | None] | None, shape: Sequence[int]) -> NamedSharding:
    """Where the parts of a parameter live.

    Args:
        mesh: of `make_mesh`.
        axes: the logical name of each dimension, or None for a parameter that is whole everywhere.
        shape: of the parameter.
    """
    spec, used, axes = [], set(), axes or (None,) * len(shape)
    vector = len(axes) - axes.count("layers") < 2
    for name, size in zip(axes, shape, strict=True):
        axis = None if vector or name is None else RULES.get(name)
        if axis in used or axis is None or size % mesh.shape[axis]:
            axis = None
        used.add(axis)
        spec.append(axis)
    return NamedSharding(mesh, PartitionSpec(*spec))


def gather(kept: NamedSharding) -> Callable[[jax.Array], jax.Array] | None:
    """What brings a parameter that is cut along fsdp together where it is used; None for one that is not.

    Without it XLA would rather cut activations as the parameter is cut than clips, and every device would compute on
    all clips. The gradient goes back in parts. Of a parameter of stacked layers it takes one layer or all.
    """
    if "fsdp" not in kept.spec:
        return None

    def placed(x: jax.Array, spec: Sequence[str | None]) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(kept.mesh, PartitionSpec(*spec[-x.ndim :])))

    @jax.custom_vjp
    def gathered(x: jax.Array) -> jax.Array:
        return placed(x, [None if axis == "fsdp" else axis for axis in kept.spec])

    gathered.defvjp(lambda x: (gathered(x), None), lambda _, gradient: (placed(gradient, kept.spec),))
    return gathered


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Clips over the axes data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Sends this process's share of a batch to its devices; the result is the whole batch, cut over the mesh."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return {name: jax.make_array_from_process_local_data(sharding, values) for name, values in batch.items()}
