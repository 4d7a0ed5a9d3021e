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


def start(videos: Path, out: Path, options: list[str]) -> subprocess.Popen:
    """Starts the preparation in a group of processes of its own."""
    command = [sys.executable, "-m", "data_prep.folder", str(videos), str(out), *options]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, start_new_session=True)


def shards_done(out: Path) -> int:
    """How many shards are finished."""
    return len(list(out.rglob(".done/*.json")))


def finish(process: subprocess.Popen, out: Path) -> tuple[float, float]:
    """Waits for its end; (seconds until the first shard was there, CPU seconds of all children of this process)."""
    begun, first = time.perf_counter(), 0.0
    while process.poll() is None:
        if not first and shards_done(out):
            first = time.perf_counter() - begun
        time.sleep(0.05)
    told = process.stderr.read().decode()
    if process.returncode:
        raise UserError(f"The preparation ended with {process.returncode}: {told}")
    return first, sum(os.times()[2:4])


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
    max_sec: Annotated[float, typer.Option(help="How much of each clip is prepared.")] = 10.0,
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
        options = [f"--short-side={short_side}", f"--workers={workers}"]
        options += [f"--max-sec={max_sec}", f"--min-sec={0.9 * max_sec}"]
        whole, killed = here / "whole", here / "killed"
        before, begun = sum(os.times()[2:4]), time.perf_counter()
        first, cpu = finish(start(here / "clips", whole, options), whole)
        cpu, wall = cpu - before, time.perf_counter() - begun
        manifest = json.loads((whole / "clips" / "1.0.0" / "manifest.json").read_text())
        done = sum(split["records"] for split in manifest["splits"].values())
        size = sum(split["bytes"] for split in manifest["splits"].values())
        print(f"{clips} clips of {max_sec:g} s ({different} different), shorter side {short_side}, {workers} workers")
        print(f"{done} records of {size / done / 1000:.0f} kB in {wall:.1f} s, CPU {cpu:.1f} s")
        print(f"{done / wall:.2f} clips/s; {done / cpu:.2f} clips per second of one core's CPU time")
        if not kills:
            return
        moments = random.Random(seed)
        for number in range(kills):
            after = moments.uniform(0.5, 1.0) * first + moments.uniform(0, 0.9) * (wall - first) / kills
            if not kill(start(here / "clips", killed, options), after):
                raise UserError(f"It was done before kill {number + 1}. Try more --clips.")
            print(f"kill {number + 1} after {after:.1f} s: {shards_done(killed)} of {shards_done(whole)} shards done")
        finish(start(here / "clips", killed, options), killed)
        same = contents(whole) == contents(killed)
        print(f"{len(contents(whole))} files, {'the same bytes' if same else 'DIFFERENT'}")
        if not same:
            raise UserError("A kill changed the result.")


if __name__ == "__main__":
    typer.run(main)
