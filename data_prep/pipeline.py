"""Shard plans -> shards, as a Beam pipeline whose unit of work is a shard.

On one machine the pipeline runs inside this process and hands its shards to worker processes: Beam's own
multi-processing mode starts a gRPC server and an interpreter for each worker, which costs more than it brings here.

On many machines (`--runner DataflowRunner`, `FlinkRunner`, `SparkRunner`, or `PortableRunner` with any job server) the
same `PrepareShards` runs on the runner's own workers, one shard at a time each. They need this repository and its
requirements, for instance in the image named by `--sdk_container_image`, and the videos and OUT under the same paths
as here: a network file system, or a bucket that is mounted. Runners may try a shard twice, even at once: each attempt
writes a file of its own and renames it when it is whole, and both would hold the same bytes.
"""

import json
import shlex
import time

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineState
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from data_prep import workers as work
from data_prep.plan import ShardPlan
from synchformer_jax.errors import UserError

_LOOK_EVERY_SEC = 0.5
_errors: list[Exception] | None = None  # of the run in this process, which Beam would bury in a traceback


class PrepareShards(beam.DoFn):
    """ShardPlan -> what became of it. All shards of a bundle are made side by side by `workers` processes."""

    def __init__(self, workers: int = 1):
        self.workers = workers

    def start_bundle(self):
        self.plans = []

    def process(self, plan: ShardPlan):
        self.plans.append(plan)

    def finish_bundle(self):
        window = GlobalWindow()
        try:
            for done in work.prepare_shards(self.plans, self.workers):
                yield WindowedValue(done, window.max_timestamp(), [window])
        except (UserError, work.Stopped) as error:
            if _errors is None:
                raise
            _errors.append(error)


def _build(pipeline: beam.Pipeline, plans: list[ShardPlan], workers: int, spread: bool) -> None:
    """`spread` lets the runner deal the plans out; else they come in one bundle."""
    _ = pipeline | beam.Create(plans, reshuffle=spread) | beam.ParDo(PrepareShards(workers))


def run(plans: list[ShardPlan], workers: int, board: work.Board) -> None:
    """Makes the shards of `plans` by a Beam pipeline on this machine.

    Args:
        plans: those not yet done.
        workers: how many processes; one works in this process.
        board: counts while the work goes on; setting `board.stop` ends it within a clip.

    Raises:
        UserError: shards cannot be written, or a worker was killed.
        Stopped: by the board.
    """
    global _errors
    if not plans:
        return
    options = PipelineOptions([], direct_running_mode="in_memory", direct_num_workers=1)
    _errors = errors = []
    try:
        # The runner is named, since the plain direct runner may fetch another one from the network.
        with work.reporting_to(board), beam.Pipeline(runner=FnApiRunner(), options=options) as pipeline:
            _build(pipeline, plans, workers, spread=False)
    finally:
        _errors = None
    for error in sorted(errors, key=lambda error: isinstance(error, work.Stopped)):
        raise error


def run_elsewhere(plans: list[ShardPlan], runner: str, beam_args: str, board: work.Board) -> None:
    """Makes the shards of `plans` by a runner that has workers of its own.

    Args:
        plans: those not yet done.
        runner: Beam's name of it.
        beam_args: its options, as typed in a shell.
        board: counts the clips of shards that have appeared; setting `board.stop` cancels the job.

    Raises:
        UserError: there is no such runner, it does not take its options, or the job failed.
        Stopped: by the board.
    """
    try:
        pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(shlex.split(beam_args)))
        _build(pipeline, plans, workers=1, spread=True)
        result = pipeline.run()
        waiting = list(plans)
        while True:
            state = result.state
            waiting = _count_finished(waiting, board)
            if PipelineState.is_terminal(state):
                break
            if board.stop.is_set():
                result.cancel()
                raise work.Stopped
            time.sleep(_LOOK_EVERY_SEC)
        result.wait_until_finish()  # raises what went wrong
    except work.Stopped:
        raise
    except (Exception, SystemExit) as error:  # runners raise whatever their clients do
        cause = (str(error).strip() or type(error).__name__).splitlines()[-1].rstrip(".")
        raise UserError(
            f"The job on {runner} failed: {cause}. See its log; started again, only what is missing will be made."
        ) from error
    if state != PipelineState.DONE:
        raise UserError(f"The job on {runner} ended as {state}. See its log, then start again.")


def _count_finished(waiting: list[ShardPlan], board: work.Board) -> list[ShardPlan]:
    """Counts the clips of shards that are there by now, and gives the other shards."""
    left = [plan for plan in waiting if not plan.done_path.exists()]
    for plan in set(waiting) - set(left):
        board.count(len(plan.sources), len(json.loads(plan.done_path.read_text())["rejected"]))
    return left
