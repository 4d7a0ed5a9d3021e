"""Killed without warning at random moments, a run ends in the same bits as one that nothing disturbed.

KILLS=10 in the environment asks for more of them than a test has time for.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from synchformer_jax.train import checkpoint
from tests.data import make_records as make

ROOT = Path(__file__).parents[2]
STEPS = 60


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a run of the tiny model on records, with worker processes that load them, and gives the process."""
    folder = tmp_path_factory.mktemp("data")
    media = make.video(), make.audio()
    clips = [make.fields(index, media) for index in range(9)]
    make.write(folder, clips, "train")
    data, compiled = make.write(folder, clips[:5], "valid", shards=1), tmp_path_factory.mktemp("compiled")

    def start(workdir):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
        }
        command = [sys.executable, "-m", "synchformer_jax.train", "--config", "tests/train/tiny.py:segment_avclip",
                   f"--config.data.train={data}", f"--config.data.valid={data}", "--config.data.workers=1",
                   f"--config.train.steps={STEPS}", "--config.train.checkpoint_every=2", "--config.train.eval_every=10",
                   "--workdir", str(workdir)]  # fmt: skip
        # A group of its own, so that a kill takes the loader's processes along, as the end of a machine does.
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, start_new_session=True)

    return start


def ends(process):
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-3000:]


def lines(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: row.get(name) for name in ("step", "split", "loss", "grad_norm", "precision")} for row in rows]


def last_step(workdir):
    """The last step of whole lines that a run has written."""
    path = workdir / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.is_file() else []
    return json.loads(whole[-1])["step"] if whole else 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_random_moments_it_ends_in_the_same_bits(start, tmp_path):
    ends(start(tmp_path / "straight"))
    workdir, rng, wanted, told = tmp_path / "killed", np.random.default_rng(), int(os.environ.get("KILLS", "3")), []
    while len(told) < wanted:
        process, before = start(workdir), last_step(workdir)
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0, 8))  # while it starts
        else:
            share = (STEPS - before) // (wanted - len(told) + 1)  # so that the steps last for all kills
            target = before + rng.integers(1, max(2, 2 * share))
            while process.poll() is None and last_step(workdir) < target:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, process.communicate()[1][-3000:]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        told.append((last_step(workdir), checkpoint.steps(workdir)[-1:]))
    ends(start(workdir))
    print(f"killed {len(told)} times; last step told and last checkpoint of each: {told}")
    assert lines(workdir) == lines(tmp_path / "straight")
    mine, theirs = (checkpoint.load_arrays(folder, STEPS)[0] for folder in (workdir, tmp_path / "straight"))
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
