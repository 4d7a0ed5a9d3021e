"""Two real processes are one run: the same losses, one checkpoint, one end; and what people read when they are not."""

import json
import signal
import socket
import subprocess
import sys
import time

import pytest

from synchformer_jax.errors import UserError
from synchformer_jax.train import checkpoint, distributed
from tests.data import make_records as make
from tests.simulated import ROOT, environment

STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    media = make.video(), make.audio()
    clips = [make.fields(index, media) for index in range(9)]
    folder = tmp_path_factory.mktemp("data")
    make.write(folder, clips, "train")
    return make.write(folder, clips[:5], "valid", shards=1)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def start(data, compiled):
    """Starts the processes of a run of the tiny model and gives them."""

    def start(workdir, *fields, processes=1, devices=1, stage="segment_avclip", more=()):
        settings = environment(devices) | {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
        command = [sys.executable, "-m", "synchformer_jax.train", "--config", f"tests/train/tiny.py:{stage}",
                   f"--config.data.train={data}", f"--config.data.valid={data}", f"--config.train.steps={STEPS}",
                   "--config.optimizer.name=sgd",
                   "--config.train.checkpoint_every=2", "--config.train.eval_every=2", "--workdir", str(workdir),
                   *fields]  # fmt: skip
        flags = [[]]
        if processes > 1:
            together = ["--distributed", f"--coordinator=127.0.0.1:{free_port()}", f"--processes={processes}", *more]
            flags = [[*together, f"--process={process}"] for process in range(processes)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return [subprocess.Popen([*command, *some], cwd=ROOT, env=settings, **pipes) for some in flags]

    return start


def free_port():
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


def ends(processes, status=0):
    told = []
    for process in processes:
        out, errors = process.communicate(timeout=400)
        assert process.returncode == status, errors[-3000:]
        told.append(out + errors)
    return told


def lines(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = {"step", "split", "loss", "grad_norm", "precision"}
    return [{name: value for name, value in row.items() if name in names} for row in rows]


def assert_close(workdir, other):
    mine, theirs = lines(workdir), lines(other)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for mine_now, theirs_now in zip(mine, theirs, strict=True):
        assert mine_now.pop("split") == theirs_now.pop("split")
        assert mine_now == pytest.approx(theirs_now, rel=1e-5)


@pytest.fixture(scope="module")
def one(start, tmp_path_factory):
    """What one process with two devices does."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    ends(start(workdir, devices=2))
    return workdir


def test_two_processes_agree_with_one(start, one, tmp_path):
    ends(start(tmp_path / "two", processes=2))
    assert_close(tmp_path / "two", one)
    assert checkpoint.steps(tmp_path / "two") == checkpoint.steps(one)


@pytest.mark.slow
def test_parameters_cut_over_two_processes(start, one, tmp_path):
    ends(start(tmp_path / "two", "--config.mesh.data=1", "--config.mesh.fsdp=2", processes=2))
    assert_close(tmp_path / "two", one)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_stops_both_after_the_same_step_and_one_goes_on(start, one, tmp_path, number):
    workdir = tmp_path / "two"
    more = ["--config.train.steps=2000", "--config.train.eval_every=0", "--config.train.checkpoint_every=0"]
    running = start(workdir, *more, processes=2)
    while not (workdir / "metrics.jsonl").is_file() or not (workdir / "metrics.jsonl").read_text():
        time.sleep(0.2)
        assert all(process.poll() is None for process in running)
    running[1].send_signal(number)
    ends(running[:1], status=143)
    ends(running[1:], status=128 + number)
    (stopped,) = checkpoint.steps(workdir)
    assert 0 < stopped < 2000
    # One process with one device goes on from there; undisturbed it would have come to the same.
    field = f"--config.train.steps={stopped + 2}"
    ends(start(workdir, *more, field))
    ends(start(tmp_path / "straight", *more, field, devices=2))
    assert_close(workdir, tmp_path / "straight")


@pytest.mark.slow
def test_processes_with_different_configs_end_with_an_error(start, tmp_path):
    port = f"--coordinator=127.0.0.1:{free_port()}"
    running = [
        start(tmp_path, f"--config.seed={process}", "--distributed", port, "--processes=2", f"--process={process}")[0]
        for process in range(2)
    ]
    assert all("different configs" in told for told in ends(running, status=2))


MEET = """
import jax
from jax.experimental import multihost_utils
from synchformer_jax.train import distributed
distributed.join(timeout=100)
print(multihost_utils.process_allgather(jax.numpy.int32(jax.process_index())).tolist())
"""


def environments(kind, process):
    """What a scheduler tells process 0 or 1 of two."""
    port = environments.port = environments.port if process else free_port()
    return {
        "slurm": {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
                  "SLURM_PROCID": str(process), "SLURM_LOCALID": str(process), "JAX_COORDINATOR_PORT": str(port)},
        "open mpi": {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2",
                     "OMPI_COMM_WORLD_RANK": str(process), "OMPI_COMM_WORLD_LOCAL_RANK": str(process),
                     "JAX_COORDINATOR_PORT": str(port)},
        "kubernetes indexed job": {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2",
                                   "JOB_COMPLETION_INDEX": str(process)},
        "other mpi": {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "PMI_SIZE": "2", "PMI_RANK": str(process)},
    }[kind]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slurm", "open mpi", "kubernetes indexed job", "other mpi"])
def test_the_environment_of_a_scheduler_is_enough(kind):
    base = environment(1)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([sys.executable, "-c", MEET], cwd=ROOT, env=base | environments(kind, process), **pipes)
        for process in range(2)
    ]
    assert all("[0, 1]" in told for told in ends(running))


@pytest.mark.parametrize(
    ("given", "environment", "message"),
    [
        ((), {}, "--coordinator HOST:PORT --processes N --process I"),
        (("host", 2, 0), {}, "--coordinator=host has no port"),
        (("host:1", 2, 2), {}, r"--process=2 is not one of --processes=2. Give 0 to 1"),
        (("host:1",), {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two is no number"),
    ],
)
def test_what_cannot_be_is_named(given, environment, message, monkeypatch):
    def refuse(coordinator, *_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(distributed.jax.distributed, "initialize", refuse)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        distributed.join(*given)


@pytest.mark.parametrize("process", [0, 1])
def test_processes_that_do_not_meet_end_with_an_error(tmp_path, process):
    command = [sys.executable, "-m", "synchformer_jax.train", "--config", "tests/train/tiny.py:segment_avclip",
               "--workdir", str(tmp_path), "--distributed", f"--coordinator=127.0.0.1:{free_port()}",
               "--processes=2", f"--process={process}", "--join_timeout=3"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert ("not all 2 processes", "no answer")[process] in done.stderr
    assert "127.0.0.1" in done.stderr and "--join_timeout" in done.stderr
