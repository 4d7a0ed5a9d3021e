"""What became of the clips: the manifest, the lists of rejected and missing ones, and what a dry run foresees."""

import collections
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from data_prep.clips import ClipOptions
from data_prep.plan import ShardPlan, finished, flaw, sweep
from data_prep.run_control import console
from data_prep.sources import Source
from synchformer_jax.data import records
from synchformer_jax.errors import UserError
from synchformer_jax.files import atomic_path, write_json

PROBED = 200  # of so many videos the headers are read before the work
Splits = Mapping[str, list[Source]]


def _listed(splits: Splits) -> tuple[list[dict], list[dict]]:
    """(excluded, missing) clips."""
    excluded, missing = [], []
    for split, sources in splits.items():
        for source in sources:
            entry = {"split": split, "clip": source.clip_id}
            if source.excluded:
                excluded.append({**entry, "reason": source.excluded})
            elif source.path is None:
                missing.append(entry)
    return excluded, missing


def _summary(splits: Splits, plans: list[ShardPlan], options: ClipOptions) -> tuple[dict, list[dict], list[dict]]:
    """(manifest, rejected clips, missing clips) of finished plans."""
    rejected, missing = _listed(splits)
    lost = collections.Counter(entry["split"] for entry in missing)
    left_out = collections.Counter(entry["split"] for entry in rejected)
    manifest: dict = {"options": vars(options), "splits": {}}
    for plan in plans:
        done = json.loads(plan.done_path.read_text())
        new = {"records": 0, "bytes": 0, "rejected": left_out[plan.split], "missing": lost[plan.split], "shards": []}
        entry = manifest["splits"].setdefault(plan.split, new)
        entry["records"] += done["records"]
        entry["bytes"] += done["bytes"]
        entry["rejected"] += len(done["rejected"])
        entry["shards"].append({"file": plan.path.name, **{key: done[key] for key in ("sha256", "bytes", "records")}})
        rejected += [{"split": plan.split, "clip": clip, "reason": reason} for clip, reason in done["rejected"]]
    return manifest, rejected, missing


def _why(rejected: list[dict]) -> str:
    counts = collections.Counter(entry["reason"].split(":")[0] for entry in rejected)
    return "; ".join(f"{count} {reason}" for reason, count in counts.most_common(6))


def _write_lines(path: Path, entries: Iterable[dict]) -> None:
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(lines))


def finish(videos: Path, folder: Path, splits: Splits, plans: list[ShardPlan], options: ClipOptions) -> dict:
    """Writes what describes the finished shards, and says what became of the videos.

    Returns:
        The manifest.

    Raises:
        UserError: not one video could be used.
    """
    manifest, rejected, missing = _summary(splits, plans, options)
    _write_lines(folder / "rejected.jsonl", rejected)
    if missing:
        _write_lines(folder / "missing.jsonl", missing)
    else:
        (folder / "missing.jsonl").unlink(missing_ok=True)
    if not any(entry["records"] for entry in manifest["splits"].values()):
        sweep(folder, ())
        advice = "See rejected.jsonl there, then give videos with sound of which"
        raise UserError(
            f"None of the {len(rejected)} videos in {videos} can be used ({_why(rejected)}). {advice} "
            f"{options.min_sec:g} s or more can be decoded, or a smaller --min-sec. The list: {folder}/rejected.jsonl"
        )
    write_json(folder / "manifest.json", manifest, indent=2)
    records.write_metadata(folder, description=f"Videos prepared with a shorter side of {options.short_side} pixels.")
    for split, entry in manifest["splits"].items():
        size = f"{entry['bytes'] / 1e6:.1f} MB in {len(entry['shards'])} shard{'s' * (len(entry['shards']) > 1)}"
        absent = f", {entry['missing']} listed but not there" if entry["missing"] else ""
        console.print(f"  {split}: {entry['records']} clips, {size}, {entry['rejected']} rejected{absent}")
        if not entry["records"]:
            console.print(f"Warning: {split} is empty. Give it videos that can be used.", style="yellow")
    if rejected:
        console.print(f"Rejected {len(rejected)} ({_why(rejected)}); each with its reason in {folder}/rejected.jsonl")
    if missing:
        console.print(f"Not there: {len(missing)} listed clips, named in {folder}/missing.jsonl")
    return manifest


def dry_run(splits: Splits, plans: list[ShardPlan], options: ClipOptions) -> None:
    """Prints what would be done."""
    needed = [plan for plan in plans if not finished(plan)]
    excluded, missing = _listed(splits)
    for split in dict.fromkeys(plan.split for plan in plans):
        mine = [plan for plan in plans if plan.split == split]
        videos, kept = sum(len(plan.sources) for plan in mine), sum(plan not in needed for plan in mine)
        print(f"{split}: {videos} videos into {len(mine)} shards, of which {kept} are there")
    if excluded:
        print(f"{len(excluded)} listed clips are excluded ({_why(excluded)})")
    if missing:
        print(f"{len(missing)} listed clips are not there, such as {missing[0]['clip']}")
    sources = {source for plan in plans for source in plan.sources}
    if len(sources) <= PROBED:
        for source in sorted(sources, key=lambda source: source.clip_id):
            if reason := flaw(source, options):
                print(f"would reject {source.clip_id}: {reason}")
    else:
        print(f"{len(sources)} videos are too many to look into now; some may be rejected")
    count = sum(len(plan.sources) for plan in needed)
    print(f"about {count * options.estimated_bytes() / 1e6:.0f} MB to write for {count} clips in {len(needed)} shards")
