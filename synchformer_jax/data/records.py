"""Record shards: TFRecord files of `tf.train.Example` in the folder layout of TensorFlow Datasets, read at random.

    OUT/NAME/1.0.0/NAME-train.tfrecord-00000-of-00004         the records
                   NAME-train.tfrecord-00000-of-00004.index   where each record lies, and its checksum
                   dataset_info.json, features.json           what TFDS needs to open the folder

TFRecord frames each record with its length and CRC-32C checksums. The index repeats where each frame lies and adds a
CRC-32 of the whole frame, which Python computes sixty times faster. A lost index is rebuilt in memory from the frames.
"""

import contextlib
import json
import os
import re
import struct
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from synchformer_jax.data.example import decode_example, encode_example, masked_crc32c
from synchformer_jax.errors import UserError
from synchformer_jax.files import atomic_path

__all__ = [
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
_INDEX_MAGIC = b"SYNCIDX1"
_INDEX_ENTRY = np.dtype([("offset", "<u8"), ("length", "<u8"), ("crc32", "<u4")])  # of the frame, not the payload
_HEAD, _FRAME = 12, 16  # bytes before the payload; bytes around it
_SHARD_NAME = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<shard>\d{5,})-of-(?P<shards>\d{5,})$")
_FEATURES = {  # name: (TFDS class, NumPy type)
    "audio": "string",
    "clip_id": "string",
    "height": "int64",
    "level": "string",
    "num_frames": "int64",
    "num_samples": "int64",
    "video": "string",
    "width": "int64",
}


class CorruptRecord(Exception):
    """A record cannot be trusted; the message names its shard and index in it."""


def shard_path(folder: str | os.PathLike, split: str, shard: int, shards: int, name: str | None = None) -> Path:
    """Where shard `shard` of `shards` of a split lies; `folder` is OUT/NAME/VERSION and gives the data set's name."""
    folder = Path(folder)
    return folder / f"{name or folder.absolute().parent.name}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


def _index_path(shard: Path) -> Path:
    return shard.with_name(shard.name + ".index")


class ShardWriter:
    """Writes one shard and its index, whole or not at all.

    with ShardWriter(path) as writer:
        writer.write(encode_example({...}))

    The index is put in place before the shard, so that a shard that is there is complete.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._entries: list[tuple[int, int, int]] = []
        self._offset = 0

    def __enter__(self) -> "ShardWriter":
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            stack.push(self._finish)
            self._file = stack.enter_context(open(temporary, "wb"))
            self._stack = stack.pop_all()
        return self

    def _finish(self, kind: type | None, *_) -> None:
        """Between the closing of the shard and its renaming."""
        if kind is None:
            _write_index(self.path, self._entries, self._offset)

    def __exit__(self, *error) -> bool | None:
        return self._stack.__exit__(*error)

    def write(self, record: bytes) -> None:
        """Appends one record."""
        length = struct.pack("<Q", len(record))
        head = length + struct.pack("<I", masked_crc32c(length))
        tail = struct.pack("<I", masked_crc32c(record))
        crc = zlib.crc32(tail, zlib.crc32(record, zlib.crc32(head)))
        for part in (head, record, tail):
            self._file.write(part)
        self._entries.append((self._offset, len(record) + _FRAME, crc))
        self._offset += len(record) + _FRAME

    def __len__(self) -> int:
        return len(self._entries)


def _write_index(shard: Path, entries: list[tuple[int, int, int]], size: int) -> None:
    body = _INDEX_MAGIC + struct.pack("<QQ", len(entries), size) + np.array(entries, _INDEX_ENTRY).tobytes()
    with atomic_path(_index_path(shard)) as temporary:
        temporary.write_bytes(body + struct.pack("<I", zlib.crc32(body)))


def _parse_index(data: bytes) -> tuple[np.ndarray, int] | None:
    """(entries, size of the shard), or None if `data` is no sound index."""
    start = len(_INDEX_MAGIC) + 16
    if len(data) < start + 4 or data[:8] != _INDEX_MAGIC:
        return None
    count, size = struct.unpack("<QQ", data[8:start])
    whole = len(data) == start + count * _INDEX_ENTRY.itemsize + 4
    if not whole or struct.unpack("<I", data[-4:])[0] != zlib.crc32(data[:-4]):
        return None
    return np.frombuffer(data, _INDEX_ENTRY, count, start), size


def _scan(shard: Path) -> np.ndarray:
    """The index made anew by walking the frames; stops where the walk breaks off."""
    entries = []
    with open(shard, "rb") as file:
        size, offset = os.fstat(file.fileno()).st_size, 0
        while offset < size:
            head = file.read(_HEAD)
            if len(head) < _HEAD or struct.unpack("<I", head[8:])[0] != masked_crc32c(head[:8]):
                break
            length = struct.unpack("<Q", head[:8])[0]
            rest = file.read(length + 4)
            crc = zlib.crc32(rest, zlib.crc32(head))
            sound = len(rest) == length + 4 and struct.unpack("<I", rest[-4:])[0] == masked_crc32c(rest[:-4])
            # A frame that does not hold is kept as an entry that cannot be read: counted later, not lost here.
            entries.append((offset, length + _FRAME, crc if sound else crc ^ 1))
            offset += length + _FRAME
    return np.array(entries, _INDEX_ENTRY)


def read_index(shard: str | os.PathLike) -> np.ndarray:
    """The index of a shard, `[records]` of (offset, length, crc32) of each frame, from its file or made anew.

    Raises:
        UserError: the shard cannot be read or holds nothing.
    """
    shard = Path(shard)
    try:
        try:
            parsed = _parse_index(_index_path(shard).read_bytes())
        except FileNotFoundError:
            parsed = None
        entries = parsed[0] if parsed else _scan(shard)
    except OSError as error:
        raise UserError(f"{shard} cannot be read: {error.strerror}. Prepare the data set again.") from error
    if not len(entries) and (parsed is None or shard.stat().st_size):
        raise UserError(f"{shard} holds no record that can be read. Delete it and prepare the data set again.")
    return entries


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
            f"{folder} holds no prepared data set (no dataset_info.json with TFRecord shards beside it). "
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
        self._indices = [read_index(path) for path in self.paths]
        self._starts = np.cumsum([0] + [len(index) for index in self._indices])
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}

    def __del__(self):
        for file in self.__dict__.get("_files", {}).values():
            with contextlib.suppress(OSError):
                os.close(file)

    def locate(self, index: int) -> tuple[Path, int]:
        """The shard that holds a record, and the record's index in it."""
        shard, within = self._locate(index)
        return self.paths[shard], within

    def checksums(self) -> np.ndarray:
        """CRC-32 of the frame of every record, uint32 `[records]`."""
        return np.concatenate([index["crc32"] for index in self._indices])

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def _read(self, index: int, limit: int | None = None) -> tuple[bytes, np.void, Path, int]:
        shard, within = self._locate(index)
        path = self.paths[shard]
        if shard not in self._files:
            try:
                self._files[shard] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}. Prepare the data set again.") from error
        entry = self._indices[shard][within]
        length = int(entry["length"])
        try:
            frame = os.pread(self._files[shard], min(length, limit or length), int(entry["offset"]))
        except OSError as error:
            raise CorruptRecord(f"{path}, record {within}: {error.strerror}") from error
        return frame, entry, path, within

    def __getitem__(self, index: int) -> bytes:
        """The serialised record.

        Raises:
            CorruptRecord: its bytes are not what was written.
            IndexError: there is no such record.
        """
        frame, entry, path, within = self._read(index)
        if len(frame) < entry["length"]:
            raise CorruptRecord(f"{path}, record {within}: the shard is cut off")
        if zlib.crc32(frame) != entry["crc32"]:
            raise CorruptRecord(f"{path}, record {within}: the checksum does not match")
        return frame[_HEAD:-4]

    def fields(self, index: int, names: Collection[str]) -> dict:
        """Some small fields of a record, from its start alone.

        Raises:
            CorruptRecord: it lacks one of them.
        """
        frame, _, path, within = self._read(index, limit=4096)
        fields = decode_example(frame[_HEAD:], names, cut=True)
        if missing := set(names) - set(fields):
            raise CorruptRecord(f"{path}, record {within}: no {', '.join(sorted(missing))}")
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
        raise UserError(f"{folder} holds no TFRecord shards. Write them before their metadata.")
    info = {
        "name": folder.absolute().parent.name,
        "version": folder.absolute().name,
        "description": description,
        "fileFormat": "tfrecord",
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
        with atomic_path(folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=4, sort_keys=True) + "\n")
