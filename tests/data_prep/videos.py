"""Small videos to prepare."""

import hashlib
from pathlib import Path

import numpy as np

from synchformer_jax.media.encode import write_mp4

# Options for them, as they are typed.
SMALL = ("--name=small", "--short-side=48", "--min-sec=1.5", "--max-sec=2", "--shards=3")


def write_clip(path: Path, seed: int = 0, sec: float = 2.0, *, still_share=0.0, loud=True, size=(64, 48)) -> Path:
    """Smooth colours that drift, and noise that can be heard.

    Args:
        path: where to.
        seed: another seed, other colours and noise.
        sec: how long.
        still_share: of the clip, at its end, over which the picture stands still.
        loud: or next to silent.
        size: width and height.
    """
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: size[1], : size[0]] / 48
    phase = random.uniform(0, 6, 3)
    count = round(25 * sec)
    moving = round(count * (1 - still_share))
    frames = [
        np.stack([127 + 100 * np.sin(3 * x + 2 * y + p + min(i, moving) / 8) for p in phase], -1).astype(np.uint8)
        for i in range(count)
    ]
    audio = (random.normal(size=round(16000 * sec)) * (3000 if loud else 1)).astype(np.int16)
    write_mp4(path, frames, audio)
    return path


def contents(folder: Path) -> dict[str, str]:
    """The checksum of every file that matters."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
