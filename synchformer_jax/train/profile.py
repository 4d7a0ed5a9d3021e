"""An XProf trace of a few steps of a run, for TensorBoard's profile page or Perfetto."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

AFTER = 3  # steps of this process, which compile and fill caches
STEPS = 3


class Profile:
    """Traces `STEPS` steps once `AFTER` have passed.

    Args:
        folder: where the trace goes.
    """

    def __init__(self, folder: Path):
        self.folder, self.passed, self.running, self.done, self._step = folder, 0, False, False, None

    def before(self, step: int) -> None:
        """A step is about to start."""
        if not self.done and not self.running and self.passed == AFTER:
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        if self.running:
            self._step = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._step.__enter__()

    def after(self, metrics: Any, say: Callable[[str], None]) -> None:
        """The step has started; `metrics` is what it will give."""
        self.passed += 1
        if self.running:
            jax.block_until_ready(metrics)
            self._step.__exit__(None, None, None)
            if self.passed == AFTER + STEPS:
                self.close()
                say(f"The trace of {STEPS} steps is in {self.folder}; TensorBoard's profile page (XProf) shows it.")

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self.running:
            jax.profiler.stop_trace()
            self.running, self.done = False, True
