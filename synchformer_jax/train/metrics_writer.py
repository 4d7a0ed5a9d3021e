"""What a run tells: JSON lines, TensorBoard events, Weights & Biases, and a bar or plain lines for whoever watches."""

import json
import math
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from synchformer_jax.errors import UserError
from synchformer_jax.files import atomic_path

PIXELS = 8  # a side of one value of a picture


class MetricsWriter:
    """Appends to `WORKDIR/metrics.jsonl`, `WORKDIR/tensorboard`, and to a Weights & Biases run where the config asks.

    Args:
        workdir: of the run.
        step: where the run goes on; lines of later steps, from a run that was killed, are taken out.
        config: of the run.

    Raises:
        UserError: `config.train.wandb_project` is given and wandb is not installed.
    """

    def __init__(self, workdir: str | Path, step: int = 0, config: ConfigDict | None = None):
        self.wandb = _wandb(Path(workdir), config) if config and config.train.get("wandb_project") else None
        self.path = Path(workdir) / "metrics.jsonl"
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= step]
            with atomic_path(self.path) as path:
                path.write_text("".join(line + "\n" for line in kept))
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line: the step, the split, then the values. Numbers that are not finite become null."""
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, "split": split, **line}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)
        if self.wandb:
            self.wandb.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def picture(self, step: int, name: str, values: np.ndarray) -> None:
        """A matrix with values from -1 (dark) to 1 (bright), to TensorBoard."""
        from matplotlib import colormaps  # slow to import, and only evaluation needs it

        colours = colormaps["viridis"]((np.asarray(values, np.float64) + 1) / 2)[..., :3]
        pixels = (255 * colours).astype(np.uint8).repeat(PIXELS, axis=0).repeat(PIXELS, axis=1)
        self.board.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Writes out what is left."""
        self.file.close()
        self.board.close()
        if self.wandb:
            self.wandb.finish()


def _wandb(workdir: Path, config: ConfigDict) -> Any:
    """A run of Weights & Biases, the same one after a restart."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"config.train.wandb_project={config.train.wandb_project} needs Weights & Biases, which is not installed: "
            "pip install wandb, or leave the field empty."
        ) from error
    name = workdir / "wandb_run_id"
    if not name.is_file():
        with atomic_path(name) as path:
            path.write_text(uuid.uuid4().hex)
    return wandb.init(
        project=config.train.wandb_project,
        id=name.read_text(),
        resume="allow",
        name=workdir.name,
        dir=str(workdir),
        config=config.to_dict(),
    )


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line that a killed run did not finish


class Watcher:
    """A bar with the loss and the time left on a terminal, else one line now and then.

    Args:
        label: what is going on.
        total: steps.
        done: steps before this start.
        stream: where to; standard error by default.
    """

    def __init__(self, label: str, total: int, done: int = 0, stream: Any = None):
        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self.label, self.total, self.timed = label, total, None
        self.bar = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self.bar = Progress(*columns, *times, console=self.console)
            self.task = self.bar.add_task(label, total=total, completed=done, note="")
            self.bar.start()

    def update(self, step: int, note: str | None = None) -> None:
        """Moves the bar."""
        if self.bar:
            self.bar.update(self.task, completed=step, **({} if note is None else {"note": note}))

    def line(self, step: int, values: dict[str, float]) -> None:
        """Shows values: beside the bar, or as a line with the time left."""
        note = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self.bar:
            self.update(step, note)
            return
        left = ""
        if self.timed is None:  # what came before was compilation, too
            self.timed = (step, time.monotonic())
        elif step > self.timed[0]:
            seconds = (time.monotonic() - self.timed[1]) / (step - self.timed[0]) * (self.total - step)
            left = f"  {_clock(seconds)} left"
        self.console.print(f"{self.label}  {step}/{self.total}  {note}{left}")

    def say(self, text: str) -> None:
        """One line above the bar."""
        (self.bar.console if self.bar else self.console).print(text)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self.bar:
            self.bar.stop()
            self.bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
