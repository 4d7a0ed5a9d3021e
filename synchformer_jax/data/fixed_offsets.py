"""Published tables of fixed offsets: the offset and the crop by which each test clip is judged.

Two formats are in use, each with a header that names the columns:

    path,offset_sec,vstart_sec                                  AudioSet, VGGSound and LRS3
    dataset_name,video_id,vstart_sec,offset_sec,is_sync         VGGSound-Sparse (Clean), several crops a clip

`path` is the clip's name as `data_prep` keeps it: eval/ID_startms_endms, ID_startms_endms or pretrain/VIDEO/UTTERANCE.
"""

import csv
import math
import os
from pathlib import Path

from synchformer_jax.errors import UserError

_CLIP, _START = ("path", "video_id"), ("vstart_sec", "v_start_sec")
_SUFFIX = ".mp4"


def read_rows(path: str | os.PathLike) -> list[tuple[str, float, float]]:
    """All rows of a table, (clip_id, offset_sec, vstart_sec), in the file's order; a clip may come several times.

    Rows that the table itself marks as out of sync (`is_sync` 0) are left out: their offset means nothing.

    Args:
        path: a CSV file. `offset_sec > 0`: the audio is early. `vstart_sec`: where the crop's picture starts.

    Raises:
        UserError: the file is missing, lacks a column, has no row, or holds what is no finite number.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            clip = next((name for name in _CLIP if name in columns), None)
            start = next((name for name in _START if name in columns), None)
            if not clip or not start or "offset_sec" not in columns:
                raise UserError(
                    f"{path} is no table of fixed offsets: its header is {','.join(columns)!r}. "
                    "It needs the columns path (or video_id), offset_sec and vstart_sec."
                )
            rows = []
            for row in reader:
                if row.get("is_sync", "1") == "0":
                    continue
                rows.append(_parse(path, reader.line_num, row[clip], row["offset_sec"], row[start]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}. Give a table of fixed offsets (CSV).") from error
    if not rows:
        raise UserError(f"{path} holds no row. Give a table of fixed offsets.")
    return rows


def _parse(path: Path, line: int, clip: str | None, offset: str | None, start: str | None) -> tuple[str, float, float]:
    try:
        numbers = float(offset or "nan"), float(start or "nan")
    except ValueError:
        numbers = (math.nan, math.nan)
    if not clip or not all(map(math.isfinite, numbers)) or numbers[1] < 0:
        raise UserError(
            f"{path}, line {line}: clip {clip!r}, offset_sec {offset!r}, vstart_sec {start!r}. "
            "A row needs a clip, a finite offset and a start of 0 or more."
        )
    return clip.removesuffix(_SUFFIX), *numbers


def read_table(path: str | os.PathLike) -> dict[str, tuple[float, float]]:
    """A table with one row for each clip: {clip_id: (offset_sec, vstart_sec)}, as `read_rows` reads it.

    Raises:
        UserError: as `read_rows`; or a clip comes twice with different numbers.
    """
    table: dict[str, tuple[float, float]] = {}
    for clip, offset, start in read_rows(path):
        if table.setdefault(clip, (offset, start)) != (offset, start):
            raise UserError(
                f"{path} has several offsets for {clip}, so one crop a clip cannot be chosen. "
                "Give a table with one row for each clip."
            )
    return table
