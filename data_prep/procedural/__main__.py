"""python -m data_prep.procedural OUT: renders the procedural data set."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_prep.procedural.render import Clip, plan, render_all, write_summary
from synchformer_jax.errors import UserError, exit_on_user_error


@exit_on_user_error()
def main(
    out: Annotated[Path, typer.Argument(help="Folder to write to; clips that are already there are kept.")],
    seed: Annotated[int, typer.Option(help="Another seed, other worlds.")] = 0,
    train: Annotated[int, typer.Option(help="Clips to train on, half dense, half sparse.")] = 900,
    valid: Annotated[int, typer.Option(help="Clips to choose checkpoints by.")] = 60,
    test: Annotated[int, typer.Option(help="Held-out clips of unseen worlds, a third of each level.")] = 450,
    levels: Annotated[str, typer.Option(help="Any of dense, sparse and none, with commas.")] = "dense,sparse,none",
    size: Annotated[int, typer.Option(help="Side of the square frames in pixels, 32 to 256.")] = 64,
    workers: Annotated[int, typer.Option(help="Processes; 0 takes all cores.")] = 0,
) -> None:
    """Renders ten-second clips of a little world whose physics make its sound, each with a JSON sidecar."""
    if workers < 0:
        raise UserError(f"--workers {workers} is negative. Give 0 for all cores, or their number.")
    chosen = tuple(level.strip() for level in levels.split(",") if level.strip())
    counts = {"train": train, "valid": valid, "test": test}
    clips = plan(out, seed, counts, chosen, size)
    try:
        made = _render(clips, workers)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on where this one was.", file=sys.stderr)
        raise typer.Exit(130) from None
    write_summary(out, seed, counts, chosen, size)
    print(f"{out}: {len(clips)} clips, {made} of them new.")


def _render(clips: list[Clip], workers: int) -> int:
    """Renders behind a progress bar with the time left; gives the number of new clips."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True)) as progress:
        task = progress.add_task("Rendering clips", total=len(clips))
        return render_all(clips, workers, lambda number: progress.advance(task, number))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the pool is closed, too
    typer.run(main)
