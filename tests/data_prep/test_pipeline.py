"""The same shards from this process, from a job server and its workers, and from Beam's own worker processes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import pipeline, workers
from data_prep.clips import ClipOptions
from data_prep.plan import ShardPlan
from data_prep.run_control import stopped_by_signals
from synchformer_jax.errors import UserError
from synchformer_jax.files import atomic_path
from tests.data_prep import runners
from tests.data_prep.videos import SMALL, contents, write_clip

REPOSITORY = Path(__file__).resolve().parents[2]
RUNNERS = {
    "PortableRunner": "--job_endpoint=embed --environment_type=LOOPBACK",
    "apache_beam.runners.portability.fn_api_runner.FnApiRunner": "--direct_running_mode=multi_processing "
    "--direct_num_workers=2",
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    here = tmp_path_factory.mktemp("videos")
    for i in range(6):
        write_clip(here / f"{i}.mp4", seed=i)
    return here


def prepare(videos, out, *options, code: int = 0) -> str:
    command = [sys.executable, "-m", "data_prep.folder", videos, out, *SMALL, *options]
    done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True, timeout=180)
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("runner", RUNNERS)
def test_other_runners_make_the_same_files(videos, tmp_path, runner):
    prepare(videos, tmp_path / "here", "--workers=1")
    prepare(videos, tmp_path / "there", "--runner", runner, "--beam-args", RUNNERS[runner])
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_what_a_runner_lacks_is_told(videos, tmp_path):
    told = prepare(videos, tmp_path, "--runner=NoRunner", code=2)
    assert "The job on NoRunner failed: Unexpected pipeline runner" in told
    assert not [path for path in tmp_path.rglob("*") if ".tfrecord-" in path.name]


def run(name: str, board=None) -> None:
    plans = [ShardPlan(Path("nowhere"), "train", (), ClipOptions())]
    pipeline.run_elsewhere(plans, f"tests.data_prep.runners.{name}", "", board or workers.Board())


def test_a_signal_cancels_the_job():
    board, before = workers.Board(), runners.Job.cancelled
    board.stop.set()
    with pytest.raises(workers.Stopped):
        run("Endless", board)
    assert runners.Job.cancelled == before + 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("Failing", "OSError: a worker was lost. See its log"), ("Cancelled", "ended as CANC")],
)
def test_a_job_that_fails_is_told(name, message):
    with pytest.raises(UserError, match=message):
        run(name)


def test_a_second_signal_ends_it_at_once():
    board = workers.Board()
    with pytest.raises(KeyboardInterrupt) as stopped, stopped_by_signals(board) as came:
        signal.raise_signal(signal.SIGTERM)
        assert board.stop.is_set() and came == [signal.SIGTERM]
        signal.raise_signal(signal.SIGINT)
    assert stopped.value.args == (signal.SIGINT,)


def test_two_attempts_at_one_file_do_not_meet(tmp_path):
    """On two machines the numbers of processes may agree."""
    with atomic_path(tmp_path / "x") as one, atomic_path(tmp_path / "x") as two:
        one.write_text("one")
        two.write_text("two")
        assert one != two
    assert (tmp_path / "x").read_text() == "one" and len(list(tmp_path.iterdir())) == 1
