"""python -m data_prep.folder VIDEOS OUT: any folder of videos -> record shards to train on.

Started again after an interruption it makes only what is missing. Rejected videos are listed with the reason in
rejected.jsonl, the shards with their checksums in manifest.json.
"""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from data_prep import frontend
from data_prep.clips import ClipOptions
from data_prep.plan import flaw
from data_prep.report import PROBED
from data_prep.sources import HELD_OUT_SHARE, SPLITS, Source, in_order, named, no_videos, rank, videos_under


def find_splits(
    options: ClipOptions,
    videos: Annotated[Path, typer.Argument(metavar="VIDEOS", help="A folder; sub-folders are searched too.")],
) -> dict[str, list[Source]]:
    """The videos below a folder by split, each split in an order given by the hashes of the names.

    Sub-folders named train, valid and test are the splits. Where they are not all there, what is missing is taken from
    the rest (from train, or from all videos): 5% for each, at least one, chosen by the hash of the name. Of fewer than
    three usable videos every split holds all, with a warning. In folders of up to `PROBED` videos the headers are read
    first, so that no unusable video is held out.

    Raises:
        UserError: there is no such folder or no video in it.
    """
    found = {split: videos_under(videos / split) for split in SPLITS if (videos / split).is_dir()}
    given = {split: named(videos / split, paths) for split, paths in found.items() if paths}
    if "train" in given:
        rest = given.pop("train")
    elif given:
        return {split: in_order(sources) for split, sources in given.items()}
    else:
        rest = named(videos, videos_under(videos))
    if not rest:
        raise no_videos(videos)
    missing = [split for split in SPLITS[1:] if split not in given]
    small = len(rest) <= PROBED
    flawed = {source for source in rest if small and missing and flaw(source, options)}
    rest.sort(key=lambda s: (s in flawed, rank(s.clip_id)))
    usable = len(rest) - len(flawed)
    if missing and usable < 3:
        warnings.warn(
            f"{videos} holds {usable} usable video{'s' * (usable != 1)} to train on, too few to hold some out: "
            f"{' and '.join(missing)} will hold the same. What is measured on them says nothing about other videos.",
            stacklevel=2,
        )
        return {"train": rest, **{split: given.get(split, rest) for split in SPLITS[1:]}}
    held = max(1, round(HELD_OUT_SHARE * len(rest)))
    for split in missing:
        given[split], rest = rest[:held], rest[held:]
    splits = {"train": rest, **given}
    return {split: in_order(splits[split]) for split in SPLITS}


app = frontend.command(find_splits, name="clips", help="Turns any folder of videos into record shards to train on.")

if __name__ == "__main__":
    app()
