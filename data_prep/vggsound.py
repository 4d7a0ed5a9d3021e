"""python -m data_prep.vggsound VIDEOS OUT --list vggsound.csv: VGGSound -> record shards.

Records are called ID_startms_endms, as in the published tables of fixed offsets; their `label` is the class. The list
tells train from test. For validation 5% of the training videos are held out, unless --valid names the clips, as the
published split does; --train and --test may name theirs, too.
"""

from pathlib import Path
from typing import Annotated

import typer

from data_prep import frontend
from data_prep.clips import ClipOptions
from data_prep.lists import Listed, find_clip, read_list, read_sparse, require_found, without_overlap
from data_prep.sources import SPLITS, YOUTUBE_CLIP, FileIndex, Source, hold_out
from synchformer_jax.errors import UserError

Names = Annotated[Path | None, typer.Option(help="A list of clips for this split, such as vggsound_train.txt.")]


def find_splits(
    options: ClipOptions,
    videos: Annotated[Path, typer.Argument(metavar="VIDEOS", help="Where the videos are, at any depth.")],
    list_: Annotated[Path | None, typer.Option("--list", help="vggsound.csv: id,start,label,split.")] = None,
    train: Names = None,
    valid: Names = None,
    test: Names = None,
    sparse: Annotated[
        Path | None, typer.Option(help="picked_sparse_classes.csv: keep only classes with sparse cues.")
    ] = None,
) -> dict[str, list[Source]]:
    """The clips of VGGSound by split.

    Raises:
        UserError: no list or no video, a list cannot be read, or a clip is in two splits.
    """
    whole = read_list(list_) if list_ else []
    labels = {clip.name: clip.label for clip in whole}
    given: dict[str, list[Listed]] = {
        split: read_list(path) for split, path in (("train", train), ("valid", valid), ("test", test)) if path
    }
    if not whole and not given:
        raise UserError("No list was given. Give --list vggsound.csv, or --train, --valid and --test.")
    named = {clip.name for clips in given.values() for clip in clips}
    for split in {clip.split for clip in whole} - set(given):
        if split not in SPLITS:
            raise UserError(f"{list_} has the split {split!r}. It should have train and test.")
        given[split] = [clip for clip in whole if clip.split == split and clip.name not in named]
    if sparse:
        if not whole:
            raise UserError("--sparse chooses by class, which only --list vggsound.csv tells. Give it, too.")
        chosen = read_sparse(sparse)
        given = {split: [c for c in clips if labels.get(c.name) in chosen] for split, clips in given.items()}
    files, splits = FileIndex(videos), {}
    for split in (split for split in SPLITS if given.get(split)):
        for clip in given[split]:
            if not clip.video:
                raise UserError(f"The list for {split} has {clip.name!r}, which names no YouTube video and time.")
        splits[split] = [find_clip(clip, files, label=labels.get(clip.name, "")) for clip in given[split]]
    if not splits:
        raise UserError("No clip is left. Check --list and --sparse.")
    if whole and "valid" not in splits and "train" in splits:
        splits["valid"], splits["train"] = hold_out(splits["train"], _video)
    splits = without_overlap(splits)
    require_found(splits, videos, "ID_startms_endms.mp4, ID_start.mp4 or, for whole videos, ID.mp4")
    return splits


def _video(source: Source) -> str:
    return YOUTUBE_CLIP.fullmatch(source.clip_id)["video"]


app = frontend.command(find_splits, name="vggsound", help="Turns VGGSound into record shards to train on.")

if __name__ == "__main__":
    app()
