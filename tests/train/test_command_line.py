"""What a person gets who types something wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def typed():
    """Runs the trainer with several command lines at once, since each has to load JAX."""
    sync = ["--config", "configs/sync.py"]
    lines = {
        "nothing": [],
        "no workdir": sync,
        "field": [*sync, "--config.train.step=3", "--workdir", "x"],
        "order": ["--config.seed=3", *sync, "--workdir", "x"],
        "kind": [*sync, "--config.seed=x", "--workdir", "x"],
        "file": ["--config", "configs/none.py", "--workdir", "x"],
    }
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "synchformer_jax.train", *line],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, line in lines.items()
    }
    return {name: (*process.communicate(timeout=300), process.returncode) for name, process in running.items()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "There is no --config."),
        ("no workdir", "There is no --workdir."),
        ("field", 'no field config.train.step. Did you mean "steps"'),
        ("order", "Put --config FILE before its fields"),
        ("kind", "--config.seed=x"),
        ("file", "configs/none.py"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(typed, name, message):
    _, errors, status = typed[name]
    assert status == 2
    assert message in errors
    assert "Traceback" not in errors
