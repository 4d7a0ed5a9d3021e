"""Shard plans -> shards, as a Beam pipeline whose unit of work is a shard.

On one machine the pipeline runs inside this process and hands its shards to worker processes: Beam's own
multi-processing mode starts a gRPC server and an interpreter for each worker, which costs more than it brings here. The
same `PrepareShards` runs with one worker on a distributed runner that has its own workers and a shared file system.
"""

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from data_prep import workers as work
from data_prep.plan import ShardPlan
from synchformer_jax.errors import UserError

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
            _ = pipeline | beam.Create(plans, reshuffle=False) | beam.ParDo(PrepareShards(workers))
    finally:
        _errors = None
    for error in sorted(errors, key=lambda error: isinstance(error, work.Stopped)):
        raise error
