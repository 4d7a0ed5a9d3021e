"""Stopping between two steps: Ctrl-C, and SIGTERM as schedulers send it before they take a machine away."""

import os
import signal
import threading
from typing import Any

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
    """While open, a signal only leaves a note in `number`; a second one ends the process at once."""

    def __init__(self, say: Any = None):
        self.number, self.say, self.before = 0, say, {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
        if self.say:
            self.say("Stopping after this step, with a checkpoint. Once more stops at once.")
