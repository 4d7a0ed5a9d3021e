"""Which videos there are and what their records are called."""

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from synchformer_jax.errors import UserError

SPLITS = ("train", "valid", "test")
VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob"),
    *(".flv", ".f4v", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".mxf"),
}
HELD_OUT_SHARE = 0.05
YOUTUBE_CLIP = re.compile(r"(?P<video>.{11})_(?P<start>\d+)_(?P<end>\d+)")  # times in milliseconds


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A clip to be: the name of its record and the video it comes from.

    Attributes:
        clip_id: the name of the record.
        path: the file; None where a list names a clip that is not there.
        segment: start and end in seconds of the clip in a longer video; None for the start of the file.
        label: its classes in words, where a list has them.
        excluded: why it is left out without a look at it; "" if it is not.
    """

    clip_id: str
    path: Path | None
    segment: tuple[float, float] | None = None
    label: str = ""
    excluded: str = ""

    @property
    def wanted(self) -> bool:
        """Whether a record is to be made of it."""
        return self.path is not None and not self.excluded


def rank(name: str) -> bytes:
    """Sorts names in an order that looks random and never changes."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def in_order(sources: Iterable[Source]) -> list[Source]:
    """Sources in the order of their records."""
    return sorted(sources, key=lambda source: rank(source.clip_id))


def videos_under(folder: Path) -> list[Path]:
    """All files with a video's suffix, hidden ones aside, sorted.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Check the path; it should hold videos.")
    found = (p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    return sorted(
        p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts) and p.is_file()
    )


def no_videos(folder: Path) -> UserError:
    """The error for a folder without videos."""
    kinds = ", ".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES))
    return UserError(f"{folder} holds no videos. Give a folder with files of these kinds, at any depth: {kinds}.")


def named(folder: Path, paths: list[Path]) -> list[Source]:
    """Names clips by their path below `folder`, without the suffix where that stays unique."""
    bare = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    count = collections.Counter(bare)
    return [
        Source(path.relative_to(folder).as_posix() if count[name] > 1 else name, path)
        for name, path in zip(bare, paths, strict=True)
    ]


class FileIndex:
    """Finds videos below a folder by the end of their path, such as "VIDEO/00001", without the suffix.

    Raises:
        UserError: there is no such folder or no video in it.
    """

    def __init__(self, folder: Path):
        self._by_tail: dict[str, Path] = {}
        for path in videos_under(folder):
            parts = path.relative_to(folder).with_suffix("").parts
            for first in range(len(parts)):
                self._by_tail.setdefault("/".join(parts[first:]), path)
        if not self._by_tail:
            raise no_videos(folder)

    def find(self, names: Iterable[str]) -> tuple[str, Path] | None:
        """The first of `names` that there is, and its file."""
        return next(((name, self._by_tail[name]) for name in names if name in self._by_tail), None)


def hold_out(sources: list[Source], group: Callable[[Source], str]) -> tuple[list[Source], list[Source]]:
    """(held out, rest): 5% of the groups, at least one, chosen by the hash of their names. Groups stay whole."""
    groups = sorted({group(source) for source in sources}, key=rank)
    held = set(groups[: max(1, round(HELD_OUT_SHARE * len(groups)))])
    return [s for s in sources if group(s) in held], [s for s in sources if group(s) not in held]


def exclude(splits: dict[str, list[Source]], lists: Iterable[Path]) -> dict[str, list[Source]]:
    """Marks the clips that exclusion lists name: a clip a line, with or without suffix.

    A name such as ID_startms_endms counts in whatever folder either side has it; others must agree whole.

    Raises:
        UserError: a list cannot be read.
    """
    why: dict[str, str] = {}
    for path in lists:
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}. Give a text file with a clip in each line.") from error
        for name in filter(None, map(str.strip, lines)):
            why.setdefault(_exclusion_key(name), f"excluded: in {Path(path).name}")

    def marked(source: Source) -> Source:
        reason = why.get(_exclusion_key(source.clip_id))
        return dataclasses.replace(source, excluded=reason) if reason else source

    return {split: [marked(source) for source in sources] for split, sources in splits.items()} if why else splits


def _exclusion_key(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    name = stem if dot and f".{suffix.lower()}" in VIDEO_SUFFIXES else name
    last = name.rpartition("/")[2]
    return last if YOUTUBE_CLIP.fullmatch(last) else name


def read_level(video: Path) -> str:
    """The "level" of the JSON file beside a video; "" without one."""
    try:
        sidecar = json.loads(video.with_suffix(".json").read_text())
        return str(sidecar.get("level") or "") if isinstance(sidecar, dict) else ""
    except (OSError, ValueError):
        return ""
