"""What a long preparation needs around it: a folder for itself, an end at a signal, and progress to look at."""

import contextlib
import fcntl
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_prep import workers as work
from synchformer_jax.errors import UserError

console = Console(stderr=True, highlight=False, soft_wrap=True)
LINE_EVERY_SEC = 20.0  # between lines of progress where there is no terminal to draw a bar


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; a killed process lets go of it.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}. Give a folder on a disk with room for it.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"Another process is preparing {folder}. Wait for it, or choose another --name.") from error
        yield


@contextlib.contextmanager
def stopped_by_signals(board: work.Board) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM stop the work within a clip, a second one at once; the list holds the signal that came."""
    came: list[int] = []

    def stop(number, _) -> None:
        came.append(number)
        board.stop.set()
        if len(came) > 1:
            raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress(board: work.Board, total: int) -> Iterator[None]:
    """Shows how far the work is: a bar with the time left on a terminal, else a line now and then."""
    over = threading.Event()
    bar = Progress(
        TextColumn("Preparing clips"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rejected]} rejected"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
    )

    def show() -> None:
        task = bar.add_task("", total=total, rejected=0)
        every = 0.25 if console.is_terminal else LINE_EVERY_SEC
        while not over.wait(every):
            update(task)
            if not console.is_terminal:
                remaining = bar.tasks[0].time_remaining
                left = "" if remaining is None else f", {remaining:.0f} s left"
                console.print(f"{board.done.value} of {total} clips, {board.rejected.value} rejected{left}")
        update(task)

    def update(task) -> None:
        bar.update(task, completed=board.done.value, rejected=board.rejected.value)

    thread = threading.Thread(target=show, daemon=True)
    with bar if console.is_terminal else contextlib.nullcontext():
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
