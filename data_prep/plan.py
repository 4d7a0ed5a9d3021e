"""Which clip goes into which shard: a pure function of the names."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path

from data_prep.clips import ClipOptions
from data_prep.sources import Source, read_level
from synchformer_jax.data import records
from synchformer_jax.media.decode import MediaError, probe

# A shard is one unit of work, which is lost if the work is interrupted: at most so many videos.
SHARD_VIDEOS = (32, 256)


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
            names = [source.clip_id, source.segment, source.label]
            try:
                stat = source.path.stat()
                described.append([*names, stat.st_size, stat.st_mtime_ns, read_level(source.path)])
            except OSError:
                described.append(names)
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def flaw(source: Source, options: ClipOptions) -> str:
    """Why a video will be rejected, as far as its header tells; "" if it looks usable."""
    try:
        info = probe(source.path)
    except MediaError as error:
        return error.reason
    if not info.has_video or not info.has_audio:
        return "no sound" if info.has_video else "no picture"
    short = 0 < info.duration_sec < options.min_sec - 0.1
    return f"too short: {info.duration_sec:.1f} s" if short else ""


def plan_shards(
    folder: Path,
    splits: dict[str, list[Source]],
    options: ClipOptions,
    train_shards: int | None = None,
    file_format: str = records.FORMATS[0],
) -> list[ShardPlan]:
    """Cuts each split into shards. Clips without a file keep their place, so a file that comes later moves no other.

    Args:
        folder: OUT/NAME/VERSION.
        splits: the clips of each.
        options: of every clip.
        train_shards: how many shards the training split gets, the others in proportion; by default as many as give
            32 to 256 videos each.
        file_format: of the shards.
    """
    plans = []
    most = max(len(sources) for sources in splits.values())
    size = len(splits.get("train", ())) or most
    per_shard = min(max(size / 256, SHARD_VIDEOS[0]), SHARD_VIDEOS[1]) if not train_shards else size / train_shards
    for split, sources in splits.items():
        shards = min(max(1, math.ceil(len(sources) / per_shard - 1e-9)), len(sources))
        for shard in range(shards):
            low, high = len(sources) * shard // shards, len(sources) * (shard + 1) // shards
            path = records.shard_path(folder, split, shard, shards, file_format=file_format)
            wanted = tuple(source for source in sources[low:high] if source.wanted)
            plans.append(ShardPlan(path, split, wanted, options))
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
            old = any(f".{kind}-" in path.name for kind in records.FORMATS) and path.name not in wanted
            if path.is_file() and (left_over or old):
                path.unlink(missing_ok=True)
                removed += 1
    return removed
