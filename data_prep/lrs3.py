"""python -m data_prep.lrs3 VIDEOS OUT: LRS3 (faces or full scenes) -> record shards.

VIDEOS holds pretrain/VIDEO/00001.mp4 and so on; records are called by that path, without the suffix. With lists, such
as lrs3_train.txt, the splits are theirs. Without, pretrain and trainval are for training, but for 5% of the talks,
which are for validation, and test is for testing.
"""

from pathlib import Path
from typing import Annotated

import typer

from data_prep import frontend
from data_prep.clips import ClipOptions
from data_prep.lists import Listed, read_list, require_found, without_overlap
from data_prep.sources import FileIndex, Source, hold_out, named, no_videos, videos_under

_FOLDERS = {"pretrain": "train", "trainval": "train", "test": "test"}
Names = Annotated[Path | None, typer.Option(help="A list of clips for this split, such as lrs3_train.txt.")]


def find_splits(
    options: ClipOptions,
    videos: Annotated[Path, typer.Argument(metavar="VIDEOS", help="Holds pretrain, and trainval and test if there.")],
    train: Names = None,
    valid: Names = None,
    test: Names = None,
) -> dict[str, list[Source]]:
    """The clips of LRS3 by split.

    Raises:
        UserError: no video, a list cannot be read, or a clip is in two splits.
    """
    lists = {split: path for split, path in (("train", train), ("valid", valid), ("test", test)) if path}
    if lists:
        given = {split: read_list(path) for split, path in lists.items()}
        files = FileIndex(videos)
        splits = {split: [_find(clip, files) for clip in clips] for split, clips in given.items()}
    else:
        splits = _by_folder(videos)
    splits = without_overlap(splits)
    require_found(splits, videos, "pretrain/VIDEO/00001.mp4")
    return splits


def _find(clip: Listed, files: FileIndex) -> Source:
    # VIDEOS may be the folder pretrain itself.
    found = files.find([clip.name, clip.name.partition("/")[2]])
    return Source(clip.name, found[1] if found else None)


def _by_folder(videos: Path) -> dict[str, list[Source]]:
    splits: dict[str, list[Source]] = {}
    for source in named(videos, videos_under(videos)):
        if split := _FOLDERS.get(source.clip_id.partition("/")[0]):
            splits.setdefault(split, []).append(source)
    if not splits:
        raise no_videos(videos / "pretrain")
    if "train" in splits:
        splits["valid"], splits["train"] = hold_out(splits["train"], lambda source: source.clip_id.split("/")[1])
    return splits


app = frontend.command(find_splits, name="lrs3", help="Turns LRS3 into record shards to train on.")

if __name__ == "__main__":
    app()
