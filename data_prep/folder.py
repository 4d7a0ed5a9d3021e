"""python -m data_prep.folder SRC OUT: any folder of videos -> record shards to train on.

Started again after an interruption it makes only what is missing. Rejected videos are listed with the reason in
rejected.jsonl, the shards with their checksums in manifest.json.
"""

import collections
import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_prep import workers as work
from data_prep.clips import ClipOptions
from data_prep.plan import PROBED, ShardPlan, find_splits, finished, flaw, plan_shards, sweep
from synchformer_jax.data import records
from synchformer_jax.errors import UserError, exit_on_user_error
from synchformer_jax.files import atomic_path, require_disk

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True, highlight=False, soft_wrap=True)
LINE_EVERY_SEC = 20.0  # between lines of progress where there is no terminal to draw a bar


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
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
def _stopped_by_signals(board: work.Board) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM stop the work within a clip; the list holds the signal that came."""
    came: list[int] = []

    def stop(number, _) -> None:
        came.append(number)
        board.stop.set()

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
def _progress(board: work.Board, total: int) -> Iterator[None]:
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


def _run(plans: list[ShardPlan], workers: int, board: work.Board) -> None:
    """Beam is imported here and not above: it takes seconds, and the worker processes import this file too."""
    logging.disable(logging.WARNING)  # Beam warns of cloud clients that nobody asked for
    try:
        from data_prep import pipeline

        pipeline.run(plans, workers, board)
    finally:
        logging.disable(logging.NOTSET)


def _summary(folder: Path, plans: list[ShardPlan], options: ClipOptions) -> tuple[dict, list[dict]]:
    """(manifest, rejected clips) of finished plans."""
    manifest: dict = {"options": vars(options), "splits": {}}
    rejected = []
    for plan in plans:
        done = json.loads(plan.done_path.read_text())
        entry = manifest["splits"].setdefault(plan.split, {"records": 0, "bytes": 0, "rejected": 0, "shards": []})
        entry["records"] += done["records"]
        entry["bytes"] += done["bytes"]
        entry["rejected"] += len(done["rejected"])
        entry["shards"].append({"file": plan.path.name, **{key: done[key] for key in ("sha256", "bytes", "records")}})
        rejected += [{"split": plan.split, "clip": clip, "reason": reason} for clip, reason in done["rejected"]]
    return manifest, rejected


def _why(rejected: list[dict]) -> str:
    counts = collections.Counter(entry["reason"].split(":")[0] for entry in rejected)
    return "; ".join(f"{count} {reason}" for reason, count in counts.most_common(6))


def _finish(source: Path, folder: Path, plans: list[ShardPlan], options: ClipOptions) -> dict:
    """Writes what describes the finished shards, and says what became of the videos."""
    manifest, rejected = _summary(folder, plans, options)
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in rejected]
    with atomic_path(folder / "rejected.jsonl") as temporary:
        temporary.write_text("".join(lines))
    if not any(entry["records"] for entry in manifest["splits"].values()):
        sweep(folder, ())
        advice = "See rejected.jsonl there, then give videos with sound of which"
        raise UserError(
            f"None of the {len(rejected)} videos in {source} can be used ({_why(rejected)}). {advice} "
            f"{options.min_sec:g} s or more can be decoded, or a smaller --min-sec. The list: {folder}/rejected.jsonl"
        )
    with atomic_path(folder / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    records.write_metadata(folder, description=f"Videos prepared with a shorter side of {options.short_side} pixels.")
    for split, entry in manifest["splits"].items():
        size = f"{entry['bytes'] / 1e6:.1f} MB in {len(entry['shards'])} shard{'s' * (len(entry['shards']) > 1)}"
        console.print(f"  {split}: {entry['records']} clips, {size}, {entry['rejected']} rejected")
        if not entry["records"]:
            console.print(
                f"Warning: {split} is empty. Put videos that can be used into {source}/{split}.", style="yellow"
            )
    if rejected:
        console.print(f"Rejected {len(rejected)} ({_why(rejected)}); each with its reason in {folder}/rejected.jsonl")
    return manifest


def _dry_run(plans: list[ShardPlan], options: ClipOptions) -> None:
    """Prints what would be done."""
    needed = [plan for plan in plans if not finished(plan)]
    for split in dict.fromkeys(plan.split for plan in plans):
        mine = [plan for plan in plans if plan.split == split]
        videos, kept = sum(len(plan.sources) for plan in mine), sum(plan not in needed for plan in mine)
        print(f"{split}: {videos} videos into {len(mine)} shards, of which {kept} are there")
    sources = {source for plan in plans for source in plan.sources}
    if len(sources) <= PROBED:
        for source in sorted(sources, key=lambda source: source.clip_id):
            if reason := flaw(source.path, options):
                print(f"would reject {source.clip_id}: {reason}")
    else:
        print(f"{len(sources)} videos are too many to look into now; some may be rejected")
    count = sum(len(plan.sources) for plan in needed)
    print(f"about {count * options.estimated_bytes() / 1e6:.0f} MB to write for {count} clips in {len(needed)} shards")


def prepare(
    source: Path,
    out: Path,
    *,
    name: str = "clips",
    options: ClipOptions | None = None,
    shards: int | None = None,
    workers: int = 0,
    dry_run: bool = False,
) -> dict:
    """Prepares a folder of videos as the data set OUT/NAME/1.0.0.

    Args:
        source: the folder; sub-folders train, valid and test are the splits if they are there.
        out: where data sets lie.
        name: of this data set.
        options: of the clips.
        shards: how many the training split gets; None chooses.
        workers: processes; 0 takes one per core.
        dry_run: only print what would be done.

    Returns:
        The manifest; empty for a dry run.

    Raises:
        UserError: there are no videos, none can be used, or the disk has no room.
        KeyboardInterrupt: stopped by a signal, whose number is its argument.
    """
    options = options or ClipOptions()
    if not name or not name.replace("_", "").isalnum() or not name.isascii():
        raise UserError(f"--name {name!r} cannot name a data set. Use letters, digits and underscores.")
    if options.short_side < 16 or options.short_side % 2:
        raise UserError(f"--short-side {options.short_side} cannot be encoded. Give an even number from 16 on.")
    if not 0 < options.min_sec <= options.max_sec:
        raise UserError(f"--min-sec {options.min_sec:g} must lie between 0 and --max-sec {options.max_sec:g}.")
    if (shards is not None and shards < 1) or workers < 0:
        raise UserError("--shards must be 1 or more and --workers 0 or more.")
    folder = Path(out) / name / records.VERSION
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plans = plan_shards(folder, find_splits(Path(source), options), options, shards)
    for warning in caught:
        console.print(f"Warning: {warning.message}", style="yellow")
    if dry_run:
        _dry_run(plans, options)
        return {}
    with _alone(folder):
        needed = [plan for plan in plans if not finished(plan)]
        clips = sum(len(plan.sources) for plan in needed)
        require_disk(folder, int(1.05 * clips * options.estimated_bytes()))
        sweep(folder, plans)
        if needed:
            # A data set in the making must not look like a whole one.
            for description in ("dataset_info.json", "manifest.json"):
                (folder / description).unlink(missing_ok=True)
        if len(needed) < len(plans):
            console.print(f"{len(plans) - len(needed)} of {len(plans)} shards are there already.")
        workers = workers or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        board = work.Board()
        with _stopped_by_signals(board) as came:
            try:
                if needed:
                    with _progress(board, clips):
                        _run(needed, workers, board)
            except work.Stopped:
                raise KeyboardInterrupt(*came[:1]) from None
        manifest = _finish(Path(source), folder, plans, options)
    console.print(f"Prepared: {folder}")
    return manifest


@app.command()
def main(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder of videos; sub-folders are searched too.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the data set goes, as OUT/NAME/1.0.0.")],
    name: Annotated[str, typer.Option(help="The data set's name.")] = "clips",
    short_side: Annotated[int, typer.Option(help="Pixels of the pictures' shorter side.")] = 256,
    shards: Annotated[int | None, typer.Option(help="Shards of the training split. [default: by size]")] = None,
    workers: Annotated[int, typer.Option(help="Worker processes; 0 takes one per core.")] = 0,
    min_sec: Annotated[float, typer.Option(help="Reject videos with less than this.")] = 9.0,
    max_sec: Annotated[float, typer.Option(help="Take this much from the start of longer videos.")] = 10.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Turns any folder of videos into record shards to train on."""
    options = ClipOptions(short_side=short_side, min_sec=min_sec, max_sec=max_sec)
    try:
        with exit_on_user_error():
            prepare(source, out, name=name, options=options, shards=shards, workers=workers, dry_run=dry_run)
    except KeyboardInterrupt as stop:
        console.print("Stopped. The same command goes on where this one was: finished shards are kept.")
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))


if __name__ == "__main__":
    app()
