"""Which video goes into which shard of which split: a pure function of the names."""

import collections
import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path

from data_prep.clips import ClipOptions, read_level
from synchformer_jax.data import records
from synchformer_jax.errors import UserError
from synchformer_jax.media.decode import MediaError, probe

SPLITS = ("train", "valid", "test")
VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob"),
    *(".flv", ".f4v", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".mxf"),
}
HELD_OUT_SHARE = 0.05
PROBED = 200
# A shard is one unit of work, which is lost if the work is interrupted: at most so many videos.
SHARD_VIDEOS = (32, 256)


@dataclasses.dataclass(frozen=True)
class Source:
    """A video and the name of its record."""

    clip_id: str
    path: Path


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """One unit of work: a shard and the videos in it, in order."""

    path: Path
    split: str
    sources: tuple[Source, ...]
    options: ClipOptions

    @property
    def done_path(self) -> Path:
        """What tells, once the shard is there, from what it was made and what became of each video."""
        return self.path.parent / ".done" / f"{self.path.name}.json"

    def fingerprint(self) -> str:
        """Changes whenever the shard's content might."""
        described = [self.options.fingerprint()]
        for source in self.sources:
            try:
                stat = source.path.stat()
                described.append([source.clip_id, stat.st_size, stat.st_mtime_ns, read_level(source.path)])
            except OSError:
                described.append([source.clip_id])
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _rank(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def _videos_under(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    return sorted(
        p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts) and p.is_file()
    )


def _named(folder: Path, paths: list[Path]) -> list[Source]:
    """Names clips by their path below `folder`, without the suffix where that stays unique."""
    bare = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    count = collections.Counter(bare)
    return [
        Source(path.relative_to(folder).as_posix() if count[name] > 1 else name, path)
        for name, path in zip(bare, paths, strict=True)
    ]


def flaw(video: Path, options: ClipOptions) -> str:
    """Why a video will be rejected, as far as its header tells; "" if it looks usable."""
    try:
        info = probe(video)
    except MediaError as error:
        return error.reason
    if not info.has_video or not info.has_audio:
        return "no sound" if info.has_video else "no picture"
    short = 0 < info.duration_sec < options.min_sec - 0.1
    return f"too short: {info.duration_sec:.1f} s" if short else ""


def find_splits(folder: Path, options: ClipOptions) -> dict[str, list[Source]]:
    """The videos below `folder` by split, each split in an order given by the hashes of the names.

    Sub-folders named train, valid and test are the splits. Where they are not all there, what is missing is taken from
    the rest (from train, or from all videos): 5% for each, at least one, chosen by the hash of the name. Of fewer than
    three usable videos every split holds all, with a warning. In folders of up to `PROBED` videos the headers are read
    first, so that no unusable video is held out.

    Raises:
        UserError: there is no such folder or no video in it.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Check the path; it should hold videos.")
    given = {
        split: _named(folder / split, _videos_under(folder / split)) for split in SPLITS if (folder / split).is_dir()
    }
    given = {split: sources for split, sources in given.items() if sources}
    if "train" in given:
        rest = given.pop("train")
    elif given:
        return {split: sorted(sources, key=lambda s: _rank(s.clip_id)) for split, sources in given.items()}
    else:
        rest = _named(folder, _videos_under(folder))
    if not rest:
        kinds = ", ".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES))
        raise UserError(f"{folder} holds no videos. Give a folder with files of these kinds, at any depth: {kinds}.")
    missing = [split for split in SPLITS[1:] if split not in given]
    small = len(rest) <= PROBED
    flawed = {source for source in rest if small and missing and flaw(source.path, options)}
    rest.sort(key=lambda s: (s in flawed, _rank(s.clip_id)))
    usable = len(rest) - len(flawed)
    if missing and usable < 3:
        warnings.warn(
            f"{folder} holds {usable} usable video{'s' * (usable != 1)} to train on, too few to hold some out: "
            f"{' and '.join(missing)} will hold the same. What is measured on them says nothing about other videos.",
            stacklevel=2,
        )
        return {"train": rest, **{split: given.get(split, rest) for split in SPLITS[1:]}}
    held = max(1, round(HELD_OUT_SHARE * len(rest)))
    for split in missing:
        given[split], rest = rest[:held], rest[held:]
    splits = {"train": rest, **given}
    return {split: sorted(splits[split], key=lambda s: _rank(s.clip_id)) for split in SPLITS}


def plan_shards(
    folder: Path, splits: dict[str, list[Source]], options: ClipOptions, train_shards: int | None = None
) -> list[ShardPlan]:
    """Cuts each split into shards.

    Args:
        folder: OUT/NAME/VERSION.
        splits: as `find_splits` gives them.
        options: of every clip.
        train_shards: how many shards the training split gets, the others in proportion; by default as many as give
            32 to 256 videos each.
    """
    plans = []
    most = max(len(sources) for sources in splits.values())
    size = len(splits.get("train", ())) or most
    per_shard = min(max(size / 256, SHARD_VIDEOS[0]), SHARD_VIDEOS[1]) if not train_shards else size / train_shards
    for split, sources in splits.items():
        shards = min(max(1, math.ceil(len(sources) / per_shard - 1e-9)), len(sources))
        for shard in range(shards):
            low, high = len(sources) * shard // shards, len(sources) * (shard + 1) // shards
            path = records.shard_path(folder, split, shard, shards)
            plans.append(ShardPlan(path, split, tuple(sources[low:high]), options))
    return plans


def finished(plan: ShardPlan) -> dict | None:
    """What became of a shard that is there, whole and made from this very plan; else None."""
    try:
        done = json.loads(plan.done_path.read_text())
        index = plan.path.with_name(plan.path.name + ".index")
        whole = plan.path.stat().st_size == done["bytes"] and index.is_file()
        return done if whole and done["fingerprint"] == plan.fingerprint() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sweep(folder: Path, plans: Iterable[ShardPlan]) -> int:
    """Removes what killed workers left and shards of an earlier plan; the number of files.

    Only for the one process that prepares `folder`.
    """
    wanted = {plan.path.name for plan in plans}
    wanted |= {f"{name}.index" for name in wanted} | {f"{name}.json" for name in wanted}
    removed = 0
    for place in (folder, folder / ".done"):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            left_over = path.name.startswith(".") and ".tmp" in path.name
            old = ".tfrecord-" in path.name and path.name not in wanted
            if path.is_file() and (left_over or old):
                path.unlink(missing_ok=True)
                removed += 1
    return removed
