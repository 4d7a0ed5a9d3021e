"""Steps whose loss is no number or whose gradient is far beyond the usual: told, and skipped or the end of the run."""

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from synchformer_jax.errors import UserError
from synchformer_jax.files import write_json

WINDOW = 100  # gradient norms that the usual is the median of
NEEDED = 20  # before there is a usual
IN_A_ROW = 10  # skipped steps that end a run
# The loop looks at a step while the next one runs, so a step's limit rests on what is known two steps before it,
# always, or a resumed run would have another.
DELAY = 2


def limit(norms: list[list[float]], step: int, factor: float) -> float:
    """The gradient norm above which `step` is a spike.

    Args:
        norms: `[step, gradient norm]` of good steps, ascending.
        step: that is about to start.
        factor: times the median of the norms before; 0 for no limit.
    """
    known = [norm for number, norm in norms if number <= step - DELAY][-WINDOW:]
    return factor * statistics.median(known) if factor and len(known) >= NEEDED else math.inf


class BadSteps:
    """Judges the results of steps.

    Args:
        workdir: where the records of a bad step's batch are written.
        action: "stop" or "skip" (`config.train.on_bad_step`).
        factor: `config.train.spike_factor`.
        process: the number of this process, for the file's name.
    """

    def __init__(self, workdir: Path, action: str, factor: float, process: int):
        self.workdir, self.action, self.factor, self.process = workdir, action, factor, process
        self.norms: list[list[float]] = []
        self.in_a_row = 0

    def limit(self, step: int) -> float:
        """The gradient norm above which `step` will be bad; infinite where there is none."""
        return limit(self.norms, step, self.factor)

    def check(self, step: int, values: dict[str, float], records: Any) -> str | None:
        """Looks at a step's metrics, writes its records down if it is bad, and gives what to tell of it.

        Raises:
            UserError: it is bad, and bad steps stop the run, or too many came in a row.
        """
        norm, highest = values["grad_norm"], self.limit(step)
        if math.isfinite(values["loss"]) and math.isfinite(norm) and norm <= highest:
            self.norms = [*self.norms, [step, norm]][-(WINDOW + DELAY) :]
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        path = self.workdir / f"bad_step_{step:08d}_{self.process}.json"
        told = {"step": step, "metrics": {name: str(value) for name, value in values.items()}, "limit": str(highest)}
        write_json(path, told | {"records": [] if records is None else np.asarray(records).tolist()})
        what = f"The loss of step {step} is {values['loss']:.6g}, the gradient norm {norm:.6g}"
        if math.isfinite(norm) and norm > highest:
            what += f", more than config.train.spike_factor={self.factor} times the usual {highest / self.factor:.6g}"
        if self.action == "skip" and self.in_a_row < IN_A_ROW:
            return f"{what}. It is skipped; its records are in {path}."
        many = f" It is the {IN_A_ROW}th bad step in a row." if self.action == "skip" else ""
        raise UserError(
            f"{what}.{many} The records of its batch are in {path}. Look at them, lower "
            "--config.optimizer.learning_rate, or give --config.train.on_bad_step=skip; "
            "started again, the run goes on from its last checkpoint."
        )

    def get_state(self) -> dict[str, Any]:
        """Plain JSON for the checkpoint."""
        return {"norms": self.norms, "in_a_row": self.in_a_row}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called."""
        self.norms, self.in_a_row = state.get("norms", []), state.get("in_a_row", 0)
