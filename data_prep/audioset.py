"""python -m data_prep.audioset VIDEOS OUT --train unbalanced_train_segments.csv ...: AudioSet -> record shards.

Records are called as in the published tables of fixed offsets: unbalanced/ID_startms_endms, and balanced/ or eval/ for
the other lists. Their `label` holds the names of the classes, or their ids without --classes.
"""

from pathlib import Path
from typing import Annotated

import typer

from data_prep import frontend
from data_prep.clips import ClipOptions
from data_prep.lists import find_clip, read_classes, read_list, require_found, without_overlap
from data_prep.sources import FileIndex, Source
from synchformer_jax.errors import UserError

_SETS = ("unbalanced", "balanced", "eval")
Lists = Annotated[list[Path] | None, typer.Option(help="A list of segments; may come several times.")]


def find_splits(
    options: ClipOptions,
    videos: Annotated[Path, typer.Argument(metavar="VIDEOS", help="Where the videos are, at any depth.")],
    train: Lists = None,
    valid: Lists = None,
    test: Lists = None,
    classes: Annotated[Path | None, typer.Option(help="class_labels_indices.csv, to keep names of classes.")] = None,
) -> dict[str, list[Source]]:
    """The clips of AudioSet's lists by split.

    Raises:
        UserError: no list or no video, a list cannot be read, or a clip is in two splits.
    """
    given = {split: lists for split, lists in (("train", train), ("valid", valid), ("test", test)) if lists}
    if not given:
        raise UserError(
            "No list was given. Give AudioSet's: --train unbalanced_train_segments.csv "
            "--valid balanced_train_segments.csv --test eval_segments.csv"
        )
    names = read_classes(classes) if classes else {}
    clips = {split: [(path, read_list(path)) for path in lists] for split, lists in given.items()}
    files, splits = FileIndex(videos), {}
    for split, lists in clips.items():
        splits[split] = []
        for path, listed in lists:
            part = next((name for name in _SETS if path.stem.startswith(name)), "")
            folders = [path.stem, part] if part else [path.stem]
            for clip in listed:
                if not clip.video:
                    raise UserError(f"{path} lists {clip.name!r}, which names no YouTube video and time.")
                label = "; ".join(names.get(mid, mid) for mid in clip.label.split(",")) if clip.label else ""
                splits[split].append(find_clip(clip, files, prefix=part, folders=folders, label=label))
    splits = without_overlap(splits)
    require_found(splits, videos, "ID_startms_endms.mp4 or, for whole videos, ID.mp4")
    return splits


app = frontend.command(find_splits, name="audioset", help="Turns AudioSet into record shards to train on.")

if __name__ == "__main__":
    app()
