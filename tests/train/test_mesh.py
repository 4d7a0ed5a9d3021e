"""What the mesh says of devices that it cannot use, and what lies where."""

from types import SimpleNamespace

import pytest

from synchformer_jax.errors import UserError
from synchformer_jax.train import mesh


def devices(count, platform="cpu"):
    return [SimpleNamespace(platform=platform, process_index=0) for _ in range(count)]


def test_simulated_devices_that_would_hang_are_an_error():
    with pytest.raises(UserError, match='XLA_FLAGS="--some=1 --xla_cpu_multi_thread_eigen=false"'):
        mesh._check_simulated(devices(8), (0, 11, 2), "--some=1")


@pytest.mark.parametrize(
    "of, version, flags",
    [
        (devices(1), (0, 11, 2), ""),
        (devices(8), (0, 10, 2), ""),
        (devices(8, "tpu"), (0, 11, 2), ""),
        (devices(8), (0, 11, 2), "--xla_cpu_multi_thread_eigen=false"),
    ],
)
def test_all_others_may_run(of, version, flags):
    mesh._check_simulated(of, version, flags)
