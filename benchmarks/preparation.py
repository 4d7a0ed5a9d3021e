"""python -m benchmarks.preparation: how fast videos become records, and what five kills on the way do to the result.

Clips are prepared once without disturbance. Then again, and the whole group of processes is killed (SIGKILL, nothing is
told to anybody) at random times, five times; what the sixth start leaves must be the same bytes, down to the metadata.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from synchformer_jax.errors import UserError, exit_on_user_error

REPOSITORY = Path(__file__).resolve().parents[1]


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a data set."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def link_clips(videos: Path, folder: Path, count: int) -> int:
    """Links the videos of a folder under `count` names; the number of different ones."""
    found = sorted(path for path in videos.rglob("*.mp4") if path.is_file())
    if not found:
        raise UserError(f"{videos} holds no mp4. Give a folder of videos, or leave --videos out.")
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:05d}.mp4").symlink_to(found[number % len(found)].resolve())
    return min(len(found), count)


def start(videos: Path, out: Path, short_side: int, workers: int) -> subprocess.Popen:
    """Starts the preparation in a group of processes of its own."""
    command = [sys.executable, "-m", "data_prep.folder", str(videos), str(out)]
    options = [f"--short-side={short_side}", f"--workers={workers}"]
    return subprocess.Popen([*command, *options], cwd=REPOSITORY, stderr=subprocess.PIPE, start_new_session=True)


def finish(process: subprocess.Popen) -> float:
    """Waits for its end; the CPU seconds of the process and its children so far."""
    told = process.stderr.read().decode()
    if process.wait():
        raise UserError(f"The preparation ended with {process.returncode}: {told}")
    usage = os.times()
    return usage.children_user + usage.children_system


def kill(process: subprocess.Popen, after_sec: float) -> bool:
    """Kills all its processes after a time; whether they were still at work."""
    try:
        process.wait(after_sec)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    finally:
        process.stderr.close()


@exit_on_user_error()
def main(
    clips: Annotated[int, typer.Option(help="How many clips.")] = 1000,
    videos: Annotated[Path | None, typer.Option(help="A folder of videos; without it, procedural ones.")] = None,
    unique: Annotated[int, typer.Option(help="Procedural clips to render and link under all names.")] = 60,
    short_side: Annotated[int, typer.Option(help="Of the records, and of procedural clips.")] = 64,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    kills: Annotated[int, typer.Option(help="How often; 0 measures the rate alone.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the times of the kills.")] = 0,
) -> None:
    """Measures the rate of preparation, and that kills change nothing."""
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        if videos is None:
            videos = here / "rendered"
            counts = ["--train", unique - 2, "--valid", 1, "--test", 1, "--size", short_side]
            render = [sys.executable, "-m", "data_prep.procedural", videos, *counts, "--levels", "dense,sparse"]
            subprocess.run(list(map(str, render)), cwd=REPOSITORY, check=True, capture_output=True)
        different = link_clips(videos, here / "clips", clips)
        before, begun = sum(os.times()[2:4]), time.perf_counter()
        cpu = finish(start(here / "clips", here / "whole", short_side, workers)) - before
        wall = time.perf_counter() - begun
        manifest = json.loads((here / "whole" / "clips" / "1.0.0" / "manifest.json").read_text())
        done = sum(split["records"] for split in manifest["splits"].values())
        size = sum(split["bytes"] for split in manifest["splits"].values())
        print(f"{clips} clips ({different} different), shorter side {short_side}, {workers} workers")
        print(f"{done} records of {size / done / 1000:.0f} kB in {wall:.1f} s, CPU {cpu:.1f} s")
        print(f"{done / wall:.2f} clips/s; {done / cpu:.2f} clips per second of one core's CPU time")
        if not kills:
            return
        moments = random.Random(seed)
        for number in range(kills):
            after = moments.uniform(0.02, 0.9 / kills) * wall
            process = start(here / "clips", here / "killed", short_side, workers)
            if not kill(process, after):
                raise UserError(f"It was done before kill {number + 1}. Try more --clips.")
            there = len(list((here / "killed").rglob(".done/*.json")))
            print(f"kill {number + 1} after {after:.1f} s: {there} shards done")
        finish(start(here / "clips", here / "killed", short_side, workers))
        same = contents(here / "whole") == contents(here / "killed")
        print(f"{len(contents(here / 'whole'))} files, {'the same bytes' if same else 'DIFFERENT'}")
        if not same:
            raise UserError("A kill changed the result.")


if __name__ == "__main__":
    typer.run(main)
