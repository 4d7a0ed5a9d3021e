"""Clips and their sidecars, on all cores: the same files with any number of workers."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from data_prep.procedural.picture import render_frames
from data_prep.procedural.sound import render_sound
from data_prep.procedural.world import DURATION_SEC, LEVELS, SPLITS, VERSION, describe, make_world
from synchformer_jax.errors import UserError
from synchformer_jax.files import require_disk, write_json
from synchformer_jax.media.encode import write_mp4

MIN_SIZE, MAX_SIZE = 32, 256
TRAINING_LEVELS = ("dense", "sparse")  # clips without sync only serve to test for leaks


@dataclass(frozen=True)
class Clip:
    """What one clip is a function of, and where it goes."""

    folder: Path
    seed: int
    split: str
    level: str
    index: int
    size: int

    @property
    def path(self) -> Path:
        """The mp4; the sidecar has the same name with .json."""
        return self.folder / self.split / f"{self.level}_{self.index:05d}.mp4"

    @property
    def identity(self) -> dict:
        """What must agree for a file that is there to be this clip."""
        return {
            "world_version": VERSION,
            "seed": self.seed,
            "split": self.split,
            "level": self.level,
            "index": self.index,
            "size": self.size,
        }

    def is_done(self) -> bool:
        """Whether both files are there, made from the same seed, size and version of the world."""
        try:
            there = json.loads(self.path.with_suffix(".json").read_text())
        except (OSError, ValueError):
            return False
        return self.path.exists() and all(there.get(key) == value for key, value in self.identity.items())


def plan(folder: Path, seed: int, counts: dict[str, int], levels: tuple[str, ...], size: int) -> list[Clip]:
    """All clips of a data set. A split's clips are shared out evenly over its levels.

    Raises:
        UserError: an unknown level, no level to train on, a size or a count out of range.
    """
    unknown = [level for level in levels if level not in LEVELS]
    if unknown or not levels:
        raise UserError(f"There is no level {', '.join(unknown) or '(empty)'}. Choose from {', '.join(LEVELS)}.")
    training = tuple(level for level in LEVELS if level in levels and level in TRAINING_LEVELS)
    if not training:
        raise UserError("Training clips need something to synchronize by. Add dense or sparse to --levels.")
    if not MIN_SIZE <= size <= MAX_SIZE or size % 2:
        raise UserError(f"--size {size} cannot be rendered. Give an even number from {MIN_SIZE} to {MAX_SIZE}.")
    if seed < 0:
        raise UserError(f"--seed {seed} is negative. Give 0 or more.")
    clips = []
    for split in SPLITS:
        if counts[split] < 1:
            raise UserError(f"--{split} {counts[split]} leaves the split empty. Give 1 or more.")
        shares = tuple(level for level in LEVELS if level in levels) if split == "test" else training
        for place, level in enumerate(shares):
            number = counts[split] // len(shares) + (place < counts[split] % len(shares))
            clips += [Clip(folder, seed, split, level, index, size) for index in range(number)]
    return clips


def render_clip(clip: Clip) -> None:
    """Writes one clip: the mp4 first, the sidecar last, so that a sidecar means a whole clip."""
    world = make_world(clip.seed, clip.split, clip.level, clip.index)
    sidecar = {**clip.identity, "duration_sec": DURATION_SEC, **describe(world)}
    clip.path.with_suffix(".json").unlink(missing_ok=True)
    write_mp4(clip.path, render_frames(world, clip.size), render_sound(world))
    write_json(clip.path.with_suffix(".json"), sidecar)


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def render_all(clips: list[Clip], workers: int, advance: Callable[[int], None]) -> int:
    """Renders the clips that are not there yet and gives their number; `advance` hears of progress.

    Raises:
        UserError: a folder that cannot be written, or too little room on its disk.
    """
    todo = []
    for clip in clips:
        if clip.is_done():
            advance(1)
        else:
            todo.append(clip)
    if not todo:
        return 0
    for folder in {clip.path.parent for clip in todo}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made: {error}. Choose a folder that you may write to.") from error
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder} cannot be written. Choose another folder or change its permissions.")
    size = max(clip.size for clip in todo)
    require_disk(clips[0].folder, len(todo) * (120_000 + 30 * size**2))
    workers = min(workers or cores(), len(todo))
    if workers == 1:
        for clip in todo:
            render_clip(clip)
            advance(1)
        return len(todo)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_signals_to_the_parent) as pool:
        try:
            for done in as_completed([pool.submit(render_clip, clip) for clip in todo]):
                done.result()
                advance(1)
        except BrokenProcessPool as error:
            raise UserError(
                "A process that rendered clips was killed, perhaps for want of memory. Run the same command again with "
                "fewer --workers; finished clips are kept."
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)  # clips in hand are finished, the others not begun
            raise
    return len(todo)


def write_summary(folder: Path, seed: int, counts: dict[str, int], levels: tuple[str, ...], size: int) -> None:
    """dataset.json: what the folder holds, written when all of it is there."""
    summary = {
        "world_version": VERSION,
        "seed": seed,
        "counts": counts,
        "levels": list(levels),
        "size": size,
        "duration_sec": DURATION_SEC,
    }
    write_json(folder / "dataset.json", summary, indent=2)
