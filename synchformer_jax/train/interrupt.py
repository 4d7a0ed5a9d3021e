"""Stopping between two steps: Ctrl-C, and SIGTERM as schedulers send it before they take a machine away."""

import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop and has written a checkpoint.

    Attributes:
        code: what a shell expects as the exit status: 130 after Ctrl-C, 143 after SIGTERM.
        step: how many steps are done.
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.code, self.step = 128 + number, step


class Interrupts:
    """While open, a signal only leaves a note; a second one ends the process at once.

    Of several processes any may get the signal, and all must stop after the same step. JAX's preemption service agrees
    on it; it listens to SIGTERM by itself, so Ctrl-C is passed on as that.
    """

    def __init__(self, say: Any = None):
        self.number, self.say, self.before, self.several = 0, say, {}, jax.process_count() > 1

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS[:1] if self.several else SIGNALS:
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def after(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after each, by all processes."""
        if self.several and multihost_utils.reached_preemption_sync_point(step):
            self.number = self.number or signal.SIGTERM
            return True
        return bool(self.number) and not self.several

    def _note(self, number: int, frame: Any) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
        if self.several:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.say:
            self.say("Stopping after this step, with a checkpoint. Once more stops at once.")
