"""Beam runners that do nothing, and end as their names say."""

from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState


class Job(PipelineResult):
    """A job whose state does not change by itself."""

    cancelled = 0

    def __init__(self, state: str, error: Exception | None = None):
        super().__init__(state)
        self.error = error

    @property
    def state(self):
        return self._state

    def cancel(self):
        Job.cancelled += 1
        self._state = PipelineState.CANCELLED

    def wait_until_finish(self, duration=None):
        if self.error:
            raise self.error


class Endless(PipelineRunner):
    def run_pipeline(self, pipeline, options):
        return Job(PipelineState.RUNNING)


class Failing(PipelineRunner):
    def run_pipeline(self, pipeline, options):
        return Job(PipelineState.FAILED, RuntimeError("Traceback ...\nOSError: a worker was lost."))


class Cancelled(PipelineRunner):
    def run_pipeline(self, pipeline, options):
        return Job(PipelineState.CANCELLED)
