"""What all commands that prepare a data set share; each of them only finds its clips.

`command` turns a function that finds clips, `find_splits(options, videos, ...)`, into a command line that has the
function's own options and those of `Settings`.
"""

import contextlib
import dataclasses
import functools
import inspect
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from data_prep import report
from data_prep import workers as work
from data_prep.clips import ClipOptions
from data_prep.plan import ShardPlan, finished, plan_shards, sweep
from data_prep.run_control import alone, console, progress, stopped_by_signals
from data_prep.sources import Source, exclude
from synchformer_jax.data import records
from synchformer_jax.errors import UserError, exit_on_user_error
from synchformer_jax.files import require_disk

FindSplits = Callable[..., dict[str, list[Source]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a data set is prepared, whatever it is. The help texts say what each is."""

    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the data set goes, as OUT/NAME/1.0.0.")]
    name: Annotated[str, typer.Option(help="The data set's name.")] = "clips"
    short_side: Annotated[int, typer.Option(help="Pixels of the pictures' shorter side.")] = 256
    min_sec: Annotated[float, typer.Option(help="Reject videos with less than this.")] = 9.0
    max_sec: Annotated[float, typer.Option(help="Take this much from the start of longer clips.")] = 10.0
    shards: Annotated[int | None, typer.Option(help="Shards of the training split. [default: by size]")] = None
    file_format: Annotated[str, typer.Option("--format", help="tfrecord or array_record.")] = "tfrecord"
    exclude: Annotated[
        list[Path] | None, typer.Option(help="A list of clips to leave out, one a line; may come several times.")
    ] = None
    workers: Annotated[int, typer.Option(help="Worker processes on this machine; 0 takes one per core.")] = 0
    runner: Annotated[
        str, typer.Option(help="Beam runner on other machines: DataflowRunner, FlinkRunner, SparkRunner, ...")
    ] = ""
    beam_args: Annotated[str, typer.Option(help='Options for that runner, as in "--project=P --region=R".')] = ""
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False

    @property
    def clip_options(self) -> ClipOptions:
        """Those that change records."""
        return ClipOptions(short_side=self.short_side, min_sec=self.min_sec, max_sec=self.max_sec)

    def check(self) -> None:
        """Raises `UserError` for what cannot be."""
        if not self.name or not self.name.replace("_", "").isalnum() or not self.name.isascii():
            raise UserError(f"--name {self.name!r} cannot name a data set. Use letters, digits and underscores.")
        if self.short_side < 16 or self.short_side % 2:
            raise UserError(f"--short-side {self.short_side} cannot be encoded. Give an even number from 16 on.")
        if not 0 < self.min_sec <= self.max_sec:
            raise UserError(f"--min-sec {self.min_sec:g} must lie between 0 and --max-sec {self.max_sec:g}.")
        if (self.shards is not None and self.shards < 1) or self.workers < 0:
            raise UserError("--shards must be 1 or more and --workers 0 or more.")
        if self.file_format not in records.FORMATS:
            raise UserError(f"--format {self.file_format!r} is unknown. Choose from {', '.join(records.FORMATS)}.")
        if self.beam_args and not self.runner:
            raise UserError("--beam-args are for another runner. Name it with --runner.")


def _run(plans: list[ShardPlan], settings: Settings, board: work.Board) -> None:
    """Beam is imported here and not above: it takes seconds, and the worker processes import this file too."""
    with _without_warnings():
        from data_prep import pipeline

    if settings.runner:
        pipeline.run_elsewhere(plans, settings.runner, settings.beam_args, board)
        return
    with _without_warnings():
        pipeline.run(plans, settings.workers or _cores(), board)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Beam warns of cloud clients that nobody asked for."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(find: FindSplits, videos: Path, settings: Settings) -> dict:
    """Prepares the clips that `find` gives as the data set OUT/NAME/1.0.0.

    Args:
        find: `find(options, videos)` gives the clips of each split.
        videos: the folder they are in.
        settings: all else.

    Returns:
        The manifest; empty for a dry run.

    Raises:
        UserError: there are no videos, none can be used, or the disk has no room.
        KeyboardInterrupt: stopped by a signal, whose number is its argument.
    """
    settings.check()
    videos, folder = Path(videos), Path(settings.out) / settings.name / records.VERSION
    options = settings.clip_options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = exclude(find(options, videos), settings.exclude or ())
        plans = plan_shards(folder, splits, options, settings.shards, settings.file_format)
    for warning in caught:
        console.print(f"Warning: {warning.message}", style="yellow")
    if settings.dry_run:
        report.dry_run(splits, plans, options)
        return {}
    with alone(folder):
        needed = [plan for plan in plans if not finished(plan)]
        clips = sum(len(plan.sources) for plan in needed)
        require_disk(folder, int(1.05 * clips * options.estimated_bytes()))
        sweep(folder, plans)
        if needed:
            # A data set in the making must not look like a whole one.
            for description in ("dataset_info.json", "manifest.json"):
                (folder / description).unlink(missing_ok=True)
            for plan in needed:
                plan.done_path.unlink(missing_ok=True)
        if len(needed) < len(plans):
            console.print(f"{len(plans) - len(needed)} of {len(plans)} shards are there already.")
        board = work.Board()
        with stopped_by_signals(board) as came:
            try:
                if needed:
                    with progress(board, clips):
                        _run(needed, settings, board)
            except work.Stopped:
                raise KeyboardInterrupt(*came[:1]) from None
        manifest = report.finish(videos, folder, splits, plans, options)
    console.print(f"Prepared: {folder}")
    return manifest


def command(find: FindSplits, *, name: str, help: str) -> typer.Typer:
    """The command line of a data set.

    Args:
        find: its first two parameters are the options of the clips and the folder of videos; the others, annotated for
            typer, become options.
        name: the default of --name.
        help: what the command does.
    """
    common = dict(inspect.signature(Settings).parameters)
    common["name"] = common["name"].replace(default=name)
    out, *others = common.values()
    _, videos, *own = inspect.signature(find).parameters.values()

    def main(**given) -> None:
        settings = Settings(**{key: given.pop(key) for key in common})
        source = given.pop(videos.name)
        try:
            with exit_on_user_error():
                prepare(functools.partial(find, **given), source, settings)
        except KeyboardInterrupt as stop:
            console.print("Stopped. The same command goes on where this one was: finished shards are kept.")
            sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))

    parameters = [videos, out, *own, *others]
    main.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in parameters])
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=help)(main)
    return app
