"""What a device can do at best, and what share of it a step uses."""

import dataclasses
import resource
from collections.abc import Iterable

import jax

from synchformer_jax.train.hlo import Collective


@dataclasses.dataclass(frozen=True)
class Peak:
    """A device's published limits.

    Attributes:
        flops: of dense bfloat16 products a second.
        memory: bytes of its high-bandwidth memory.
        bandwidth: of that memory, bytes a second.
        links: bytes a second to its neighbours, over all its links together (TPU interconnect, NVLink); 0 unknown.
        clock: cycles a second, where the compiler's estimates are in cycles; else 0.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float = 0.0
    clock: float = 0.0


GIB = 2**30
# By the beginning of `jax.Device.device_kind`; the first that fits counts. From the makers' data sheets, one chip.
PEAKS = {
    "TPU v4": Peak(275e12, 32 * GIB, 1228e9, 300e9, 1.05e9),
    "TPU v5 lite": Peak(197e12, 16 * GIB, 819e9, 200e9, 1.5e9),
    "TPU v5e": Peak(197e12, 16 * GIB, 819e9, 200e9, 1.5e9),
    "TPU v5": Peak(459e12, 95 * GIB, 2765e9, 600e9, 1.75e9),  # v5p calls itself "TPU v5"
    "TPU v6": Peak(918e12, 32 * GIB, 1640e9, 448e9, 1.75e9),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 80e9, 2039e9, 300e9),
    "NVIDIA A100": Peak(312e12, 40e9, 1555e9, 300e9),
    "NVIDIA H100 PCIe": Peak(756e12, 80e9, 2000e9),
    "NVIDIA H100": Peak(989e12, 80e9, 3350e9, 450e9),
    "NVIDIA H200": Peak(989e12, 141e9, 4800e9, 450e9),
    "NVIDIA B200": Peak(2250e12, 180e9, 8000e9, 900e9),
    "NVIDIA L40S": Peak(362e12, 48e9, 864e9),
    "NVIDIA L4": Peak(121e12, 24e9, 300e9),
}


def peak_of(kind: str) -> Peak | None:
    """The limits of a device by its `device_kind`; None where it is not in the table, as a CPU."""
    return next((peak for name, peak in PEAKS.items() if kind.startswith(name)), None)


def mfu(flops_per_sec: float, kind: str) -> float | None:
    """Model FLOP/s utilisation (arXiv 2204.02311, appendix B): the model's own operations over the peak.

    Args:
        flops_per_sec: of one device, counted from the config (`models.flops`), so without what is computed twice.
        kind: of the device.

    Returns:
        A share of the bfloat16 peak, whatever the precision; None for a device whose peak is not known.
    """
    peak = peak_of(kind)
    return flops_per_sec / peak.flops if peak else None


def link_bytes(collectives: Iterable[Collective]) -> float:
    """Bytes that one device sends in a step, if every collective goes round a ring."""
    total = 0.0
    for one in collectives:
        share = (one.devices - 1) / one.devices
        # A result of n parts takes n - 1 sends of a part; an all-reduce scatters first, then gathers.
        times = {"all-reduce": 2 * share, "reduce-scatter": one.devices - 1, "collective-permute": 1.0}
        total += one.bytes * times.get(one.kind, share)
    return total


def memory_in_use() -> dict[str, float]:
    """The most memory used so far, in GiB: of this process's fullest device, and of the process on its host."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    values = {"device_memory_gib": max(peaks) / GIB} if peaks else {}
    return values | {"host_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB}
