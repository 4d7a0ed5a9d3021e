"""Which device holds what: a mesh of three axes, and one table from logical axes to mesh axes."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from synchformer_jax.errors import UserError
from synchformer_jax.train import config as configs

AXES = ("data", "fsdp", "tensor")
# Parameters are cut along these; an axis that is not named, or whose size does not divide, stays whole.
RULES = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor"}


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) of a config over all devices.

    Raises:
        UserError: the sizes do not multiply to the number of devices, or `tensor` reaches over processes.
    """
    devices = list(devices or jax.devices())
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


def parameter_sharding(mesh: Mesh, axes: Sequence[str | None] | None, shape: Sequence[int]) -> NamedSharding:
    """Where the parts of a parameter live.

    Args:
        mesh: of `make_mesh`.
        axes: the logical name of each dimension, or None for a parameter that is whole everywhere.
        shape: of the parameter.
    """
    spec, used = [], set()
    for name, size in zip(axes or (None,) * len(shape), shape, strict=True):
        axis = RULES.get(name) if name else None
        if axis in used or axis is None or size % mesh.shape[axis]:
            axis = None
        used.add(axis)
        spec.append(axis)
    return NamedSharding(mesh, PartitionSpec(*spec))


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
