"""Several devices on a machine that has one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def environment(devices: int, *, optimise: bool = False) -> dict[str, str]:
    """Of a process that sees so many simulated CPU devices; without `optimise` programs compile faster."""
    # With a pool of threads for all of them, FFTs of JAX 0.11 wait for each other forever.
    flags = [f"--xla_force_host_platform_device_count={devices}", "--xla_cpu_multi_thread_eigen=false"]
    flags += [] if optimise else ["--xla_backend_optimization_level=0"]
    return os.environ | {"XLA_FLAGS": " ".join(flags), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def outcome(script: str, *arguments: str, **options: Any) -> Any:
    """The JSON in the last line that a script prints on eight devices; `options` of `environment`."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment(8, **options), cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
