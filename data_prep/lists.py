"""Published lists of clips, and the files that belong to them.

AudioSet's segments      three lines of comment, then: YTID, 30.000, 40.000, "/m/09x0r,/m/05zppz"
VGGSound's list          ID,30,dog barking,train
tables with a header     video_id,start_sec (VGGSound-Sparse) or path (fixed offsets), other columns after choice
lists of names           a line each: ID_30000_40000, or a path such as pretrain/VIDEO/00001
"""

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from data_prep.sources import SPLITS, YOUTUBE_CLIP, FileIndex, Source, in_order
from synchformer_jax.errors import UserError

CLIP_SEC = 10  # where a list gives the start alone
_HEADER_NAMES = ("path", "video_id")


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
    """One clip of a list.

    Attributes:
        name: ID_startms_endms, or the path of the file.
        video: the YouTube ID; "" if the name is a path of another kind.
        start_sec, end_sec: where in the video; both 0 for another kind.
        label: classes as the list has them.
        split: as the list has it, or "".
    """

    name: str
    video: str = ""
    start_sec: float = 0.0
    end_sec: float = 0.0
    label: str = ""
    split: str = ""


def _segment(video: str, start_sec: float, end_sec: float, label: str = "", split: str = "") -> Listed:
    name = f"{video}_{round(start_sec * 1000)}_{round(end_sec * 1000)}"
    return Listed(name, video, start_sec, end_sec, label, split)


def _name(name: str) -> Listed:
    match = YOUTUBE_CLIP.fullmatch(name.removesuffix(".mp4").rpartition("/")[2])
    if not match:
        return Listed(name.removesuffix(".mp4"))
    return _segment(match["video"], int(match["start"]) / 1000, int(match["end"]) / 1000)


def read_list(path: Path) -> list[Listed]:
    """The clips of a list in any of the formats above, in its order, each once.

    Clips that a table itself marks as missing or out of sync are left out.

    Raises:
        UserError: the list cannot be read, holds no clip, or has a line of no known form.
    """
    clips: dict[str, Listed] = {}
    header: list[str] = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            for row in reader:
                if not row or row[0].startswith("#"):
                    continue
                if not header and not clips and set(row) & {*_HEADER_NAMES, "YTID", "id"}:
                    header = row
                    continue
                clip = _row(path, reader.line_num, row, header)
                if clip is not None:
                    clips.setdefault(clip.name, clip)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}. Give a published list of clips.") from error
    if not clips:
        raise UserError(f"{path} lists no clip. Give a published list of clips.")
    return list(clips.values())


def _row(path: Path, line: int, row: list[str], header: list[str]) -> Listed | None:
    try:
        if column := next((name for name in _HEADER_NAMES if name in header), None):
            fields = dict(zip(header, row, strict=True))
            if fields.get("is_sync", "1") == "0" or fields.get("vid_is_missing", "0") == "1":
                return None
            if "start_sec" in fields:
                start = float(fields["start_sec"])
                return _segment(fields[column], start, start + CLIP_SEC)
            return _name(fields[column])
        if len(row) == 1:
            return _name(row[0].strip())
        if len(row) == 4:
            video, start = row[0], float(row[1])
            if row[2].replace(".", "", 1).isdigit():
                return _segment(video, start, float(row[2]), label=row[3])
            return _segment(video, start, start + CLIP_SEC, label=row[2], split=row[3])
    except ValueError:
        pass
    raise UserError(
        f"{path}, line {line}: {','.join(row)!r} is in none of the known formats: AudioSet's segments "
        '(YTID, start, end, "labels"), VGGSound\'s list (id,start,label,split), a table with a column video_id or '
        "path, or names, one a line."
    )


def read_classes(path: Path) -> dict[str, str]:
    """AudioSet's classes, {id: name}, from a table of index, id and name.

    Raises:
        UserError: it is no such table.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
            return {mid: name for _, mid, name in rows}
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Give a table of index, id and name of each class.") from error


def read_sparse(path: Path) -> set[str]:
    """VGGSound's classes with sparse cues, from a table of class and "y" or "n", separated by a tabulator.

    Raises:
        UserError: it is no such table.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            chosen = {row["class"] for row in csv.DictReader(file, delimiter="\t") if row["is_sparse"] == "y"}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. Give a table with the columns class and is_sparse."
        ) from error
    if not chosen:
        raise UserError(f"{path} marks no class as sparse (is_sparse y).")
    return chosen


def _file_names(clip: Listed, folders: Iterable[str]) -> Iterable[tuple[str, bool]]:
    """Under which names the file of a clip is kept in the field, and whether such a file is the whole video."""
    start, end = clip.start_sec, clip.end_sec
    cut = [
        clip.name,
        f"{clip.video}_{start:g}_{end:g}",
        f"{clip.video}_{int(start):06d}",
        f"{clip.video}_{start:g}",
        f"{clip.video}_{round(start * 1000)}",
    ]
    for names, whole in ((cut, False), ([clip.video, f"Y{clip.video}"], True)):
        for name in names:
            yield from ((f"{folder}/{name}", whole) for folder in folders)
            yield name, whole


def find_clip(
    clip: Listed, files: FileIndex, *, prefix: str = "", folders: Iterable[str] = (), label: str = ""
) -> Source:
    """The source of a clip that is kept as ID_startms_endms, ID_start_end, ID_start (also with six digits), or ID.

    Args:
        clip: of a list, with a YouTube ID.
        files: what there is.
        prefix: a folder before the name in the record's `clip_id`.
        folders: of files, preferred where a name comes several times.
        label: of the record.
    """
    whole_by_name = dict(_file_names(clip, folders))
    clip_id = f"{prefix}/{clip.name}" if prefix else clip.name
    found = files.find(whole_by_name)
    if found is None:
        return Source(clip_id, None, label=label)
    segment = (clip.start_sec, clip.end_sec) if whole_by_name[found[0]] else None
    return Source(clip_id, found[1], segment, label)


def without_overlap(splits: dict[str, list[Source]]) -> dict[str, list[Source]]:
    """The splits, each clip once, in the order of the records.

    Raises:
        UserError: a clip is in two splits.
    """
    where: dict[str, str] = {}
    for split, sources in splits.items():
        for source in sources:
            if where.setdefault(source.clip_id, split) != split:
                raise UserError(
                    f"The lists have {source.clip_id} in {where[source.clip_id]} and in {split}. "
                    "Take it out of one: what was trained on tests nothing."
                )
    once = {split: {source.clip_id: source for source in splits[split]} for split in SPLITS if split in splits}
    return {split: in_order(sources.values()) for split, sources in once.items()}


def require_found(splits: dict[str, list[Source]], videos: Path, example: str) -> None:
    """Raises `UserError` if not one listed clip has a file."""
    sources = [source for sources in splits.values() for source in sources]
    if not any(source.path for source in sources):
        raise UserError(
            f"None of the {len(sources)} listed clips, such as {sources[0].clip_id}, has a file in {videos}. "
            f"Give the folder, and name files like {example}."
        )
