"""Record shards of `tf.train.Example` in the folder layout of TensorFlow Datasets, read at random.

OUT/NAME/1.0.0/NAME-train.tfrecord-00000-of-00004         the records (or .array_record-...)
               NAME-train.tfrecord-00000-of-00004.index   where each record lies, and its checksum
               dataset_info.json, features.json           what TFDS needs to open the folder
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

from synchformer_jax.data.example import decode_example, encode_example
from synchformer_jax.data.shard_files import FORMATS, CorruptRecord, ShardReader, ShardWriter, read_index
from synchformer_jax.errors import UserError
from synchformer_jax.files import write_json

__all__ = [
    "FORMATS",
    "CorruptRecord",
    "ShardWriter",
    "Shards",
    "decode_example",
    "encode_example",
    "find",
    "read_index",
    "shard_path",
    "split_shards",
    "write_metadata",
]

VERSION = "1.0.0"
_START_BYTES = 4096  # of a record, which hold its small fields
_SHARD_NAME = re.compile(
    rf"(?P<name>.+)-(?P<split>[^-]+)\.(?P<format>{'|'.join(FORMATS)})-(?P<shard>\d{{5,}})-of-(?P<shards>\d{{5,}})$"
)
_FEATURES = {  # name: (TFDS class, NumPy type)
    "audio": "string",
    "clip_id": "string",
    "height": "int64",
    "label": "string",
    "level": "string",
    "num_frames": "int64",
    "num_samples": "int64",
    "video": "string",
    "width": "int64",
}


def shard_path(
    folder: str | os.PathLike,
    split: str,
    shard: int,
    shards: int,
    name: str | None = None,
    file_format: str = FORMATS[0],
) -> Path:
    """Where shard `shard` of `shards` of a split lies; `folder` is OUT/NAME/VERSION and gives the data set's name."""
    folder = Path(folder)
    return folder / f"{name or folder.absolute().parent.name}-{split}.{file_format}-{shard:05d}-of-{shards:05d}"


def split_shards(folder: str | os.PathLike) -> dict[str, list[Path]]:
    """The shards of each split in a version folder, in order."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).iterdir()):
        if match := _SHARD_NAME.match(path.name):
            splits.setdefault(match["split"], []).append(path)
    return splits


def find(folder: str | os.PathLike, split: str | None = None) -> Path:
    """The version folder of the one data set in `folder`, which is OUT, OUT/NAME or OUT/NAME/VERSION.

    Raises:
        UserError: there is no data set or more than one, or it lacks `split`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Prepare one with: python -m data_prep.folder VIDEOS {folder}")
    for pattern in ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json"):
        found = [path.parent for path in sorted(folder.glob(pattern)) if split_shards(path.parent)]
        if len({path.parent for path in found}) > 1:
            names = ", ".join(str(path) for path in found)
            raise UserError(f"{folder} holds several data sets. Name one of them: {names}.")
        if found:
            break
    else:
        raise UserError(
            f"{folder} holds no prepared data set (no dataset_info.json with shards beside it). "
            f"Prepare one with: python -m data_prep.folder VIDEOS {folder}"
        )
    version = max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])
    splits = split_shards(version)
    if split is not None and split not in splits:
        raise UserError(f"{version} has no split {split!r}. It has: {', '.join(splits)}.")
    return version


class Shards:
    """The records of one split, by index, in the order of the shards.

    Safe to pickle and to share between threads. `shards[i]` is the serialised record.

    Raises:
        UserError: the data set, the split or one of its shards is missing.
    """

    def __init__(self, folder: str | os.PathLike, split: str):
        self.folder, self.split = find(folder, split), split
        self.paths = split_shards(self.folder)[split]
        expected = int(_SHARD_NAME.match(self.paths[0].name)["shards"])
        if len(self.paths) != expected:
            have = {int(_SHARD_NAME.match(path.name)["shard"]) for path in self.paths}
            missing = [shard for shard in range(expected) if shard not in have]
            raise UserError(
                f"{self.folder} has {len(self.paths)} of the {expected} shards of {split!r} (missing: "
                f"{missing[:8]}). Run the preparation again; it makes what is missing."
            )
        self._files = [ShardReader(path, read_index(path)) for path in self.paths]
        self._starts = np.cumsum([0] + [len(file.index) for file in self._files])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, index: int) -> tuple[Path, int]:
        """The shard that holds a record, and the record's index in it."""
        shard, within = self._locate(index)
        return self.paths[shard], within

    def checksums(self) -> np.ndarray:
        """CRC-32 of every record or its frame, uint32 `[records]`."""
        return np.concatenate([file.index["crc32"] for file in self._files])

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def __getitem__(self, index: int) -> bytes:
        """The serialised record.

        Raises:
            CorruptRecord: its bytes are not what was written.
            IndexError: there is no such record.
        """
        shard, within = self._locate(index)
        return self._files[shard].read(within)

    def fields(self, index: int, names: Collection[str]) -> dict:
        """Some small fields of a record, from its start alone.

        Raises:
            CorruptRecord: it lacks one of them.
        """
        shard, within = self._locate(index)
        fields = decode_example(self._files[shard].start(within, _START_BYTES), names, cut=True)
        if missing := set(names) - set(fields):
            raise CorruptRecord(f"{self.paths[shard]}, record {within}: no {', '.join(sorted(missing))}")
        return fields


def _features_json() -> dict:
    def feature(kind: str, **content) -> dict:
        return {"pythonClassName": f"tensorflow_datasets.core.features.{kind}", **content}

    scalars = {
        name: feature("scalar.Scalar", tensor={"shape": {}, "dtype": kind, "encoding": "none"})
        for name, kind in _FEATURES.items()
    }
    return feature("features_dict.FeaturesDict", featuresDict={"features": scalars})


def write_metadata(folder: str | os.PathLike, *, description: str = "") -> None:
    """Writes dataset_info.json and features.json of a version folder OUT/NAME/VERSION from the shards that lie there.

    Args:
        folder: the version folder, with its shards complete.
        description: a sentence about the data set.

    Raises:
        UserError: there are no shards.
    """
    folder = Path(folder)
    splits = split_shards(folder) if folder.is_dir() else {}
    if not splits:
        raise UserError(f"{folder} holds no shards. Write them before their metadata.")
    file_format = _SHARD_NAME.match(next(iter(splits.values()))[0].name)["format"]
    info = {
        "name": folder.absolute().parent.name,
        "version": folder.absolute().name,
        "description": description,
        "fileFormat": file_format,
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(len(read_index(path))) for path in paths],
                "numBytes": str(sum(path.stat().st_size for path in paths)),
            }
            for split, paths in sorted(splits.items())
        ],
    }
    for name, content in (("features.json", _features_json()), ("dataset_info.json", info)):
        write_json(folder / name, content, indent=4, sort_keys=True)
