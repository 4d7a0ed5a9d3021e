"""One shard of records on disk, in either format, and the index beside it.

`.tfrecord-` shards hold TFRecord: each record framed by its length and CRC-32C checksums. `.array_record-` shards hold
ArrayRecord, whose own library finds a record. The index gives the place of each record and a CRC-32 that Python
computes sixty times faster than TFRecord's; a lost index is rebuilt in memory from the records.
"""

import contextlib
import functools
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from synchformer_jax.data.example import masked_crc32c
from synchformer_jax.errors import UserError
from synchformer_jax.files import atomic_path

FORMATS = ("tfrecord", "array_record")
_INDEX_MAGIC = b"SYNCIDX1"
# Of the frame in a TFRecord, of the record in an ArrayRecord, where the offset is the record's number.
_INDEX_ENTRY = np.dtype([("offset", "<u8"), ("length", "<u8"), ("crc32", "<u4")])
_HEAD, _FRAME = 12, 16  # bytes before the payload of a TFRecord frame; bytes around it


class CorruptRecord(Exception):
    """A record cannot be trusted; the message names its shard and index in it."""


def is_array_record(shard: Path) -> bool:
    """Whether a shard's name says that it is an ArrayRecord."""
    return ".array_record-" in shard.name


def index_path(shard: Path) -> Path:
    """Where the index of a shard lies."""
    return shard.with_name(shard.name + ".index")


class ShardWriter:
    """Writes one shard and its index, whole or not at all, in the format that its name says.

    with ShardWriter(path) as writer:
        writer.write(encode_example({...}))

    The index is put in place before the shard, so that a shard that is there is complete.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._entries: list[tuple[int, int, int]] = []

    def __enter__(self) -> "ShardWriter":
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            stack.push(self._finish)
            kind = _ArrayRecordFile if is_array_record(self.path) else _TFRecordFile
            self._file = kind(temporary)
            stack.push(self._close)
            self._stack = stack.pop_all()
        return self

    def _close(self, kind: type | None, *_) -> None:
        with contextlib.nullcontext() if kind is None else contextlib.suppress(OSError):
            self._file.close()

    def _finish(self, kind: type | None, *_) -> None:
        """Between the closing of the shard and its renaming."""
        if kind is None:
            size = self._entries[-1][0] + self._entries[-1][1] if self._entries else 0
            _write_index(self.path, self._entries, size)

    def __exit__(self, *error) -> bool | None:
        return self._stack.__exit__(*error)

    def write(self, record: bytes) -> None:
        """Appends one record."""
        self._entries.append(self._file.write(record))

    def __len__(self) -> int:
        return len(self._entries)


class _TFRecordFile:
    """Frames records as TensorFlow does."""

    def __init__(self, path: Path):
        self._file, self._offset = open(path, "wb"), 0  # noqa: SIM115

    def write(self, record: bytes) -> tuple[int, int, int]:
        length = struct.pack("<Q", len(record))
        head = length + struct.pack("<I", masked_crc32c(length))
        tail = struct.pack("<I", masked_crc32c(record))
        for part in (head, record, tail):
            self._file.write(part)
        entry = (self._offset, len(record) + _FRAME, zlib.crc32(tail, zlib.crc32(record, zlib.crc32(head))))
        self._offset += len(record) + _FRAME
        return entry

    def close(self) -> None:
        self._file.close()


class _ArrayRecordFile:
    """Every record is a group of its own, as random access wants it; media does not get smaller by compression."""

    def __init__(self, path: Path):
        self._count = 0
        with _as_os_error():
            self._writer = _array_record().ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    def write(self, record: bytes) -> tuple[int, int, int]:
        with _as_os_error():
            self._writer.write(record)
        self._count += 1
        return self._count - 1, len(record), zlib.crc32(record)

    def close(self) -> None:
        with _as_os_error():
            self._writer.close()


@contextlib.contextmanager
def _as_os_error():
    """ArrayRecord reports a full disk, and everything else, as RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


@functools.cache
def _array_record():
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise UserError("ArrayRecord shards need a package: pip install array_record") from error
    return array_record_module


class ShardReader:
    """Reads records of one shard by number; opened at the first reading, safe to share between threads.

    Args:
        shard: the file.
        index: as `read_index` gives it.
    """

    def __init__(self, shard: Path, index: np.ndarray):
        self.path, self.index, self._file = shard, index, None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def __del__(self):
        if isinstance(self.__dict__.get("_file"), int):
            with contextlib.suppress(OSError):
                os.close(self._file)

    def _corrupt(self, number: int, why: object) -> CorruptRecord:
        return CorruptRecord(f"{self.path}, record {number}: {why}")

    def read(self, number: int) -> bytes:
        """A whole record.

        Raises:
            CorruptRecord: its bytes are not what was written.
            UserError: the shard cannot be opened.
        """
        frame = self._raw(number, None)
        if len(frame) < self.index[number]["length"]:
            raise self._corrupt(number, "the shard is cut off")
        if zlib.crc32(frame) != self.index[number]["crc32"]:
            raise self._corrupt(number, "the checksum does not match")
        return frame if is_array_record(self.path) else frame[_HEAD:-4]

    def start(self, number: int, size: int) -> bytes:
        """The first `size` bytes of a record or more, unchecked. Raises as `read` does."""
        frame = self._raw(number, size)
        return frame if is_array_record(self.path) else frame[_HEAD:]

    def _raw(self, number: int, limit: int | None) -> bytes:
        if is_array_record(self.path):
            return self._raw_array_record(number)
        entry = self.index[number]
        length = int(entry["length"])
        if self._file is None:
            try:
                self._file = os.open(self.path, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{self.path} cannot be read: {error.strerror}. Prepare the data set again.") from error
        try:
            return os.pread(self._file, min(length, limit or length), int(entry["offset"]))
        except OSError as error:
            raise self._corrupt(number, error.strerror) from error

    def _raw_array_record(self, number: int) -> bytes:
        if self._file is None:
            self._file = _open_array_record(self.path)
        if number >= self._file.num_records():
            raise self._corrupt(number, "the shard is cut off")
        try:
            return self._file.read([number])[0]
        except RuntimeError as error:
            raise self._corrupt(number, error) from error


def _open_array_record(shard: Path):
    try:
        reader = _array_record().ArrayRecordReader(
            str(shard), options="readahead_buffer_size:0", file_reader_buffer_size=1 << 15
        )
    except RuntimeError as error:
        raise UserError(f"{shard} cannot be read: {error}. Prepare the data set again.") from error
    return reader


def _write_index(shard: Path, entries: list[tuple[int, int, int]], size: int) -> None:
    body = _INDEX_MAGIC + struct.pack("<QQ", len(entries), size) + np.array(entries, _INDEX_ENTRY).tobytes()
    with atomic_path(index_path(shard)) as temporary:
        temporary.write_bytes(body + struct.pack("<I", zlib.crc32(body)))


def _parse_index(data: bytes) -> np.ndarray | None:
    """The entries, or None if `data` is no sound index."""
    start = len(_INDEX_MAGIC) + 16
    if len(data) < start + 4 or data[:8] != _INDEX_MAGIC:
        return None
    count = struct.unpack("<Q", data[8:16])[0]
    whole = len(data) == start + count * _INDEX_ENTRY.itemsize + 4
    if not whole or struct.unpack("<I", data[-4:])[0] != zlib.crc32(data[:-4]):
        return None
    return np.frombuffer(data, _INDEX_ENTRY, count, start)


def _scan(shard: Path) -> np.ndarray:
    """The index made anew. A record that does not hold is kept as one that cannot be read: counted, not lost."""
    entries = _scan_array_record(shard) if is_array_record(shard) else _scan_tfrecord(shard)
    return np.array(entries, _INDEX_ENTRY)


def _scan_tfrecord(shard: Path) -> list[tuple[int, int, int]]:
    """Walks the frames, and stops where the walk breaks off."""
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
            entries.append((offset, length + _FRAME, crc if sound else crc ^ 1))
            offset += length + _FRAME
    return entries


def _scan_array_record(shard: Path) -> list[tuple[int, int, int]]:
    reader, entries = _open_array_record(shard), []
    for number in range(reader.num_records()):
        try:
            record = reader.read([number])[0]
            entries.append((number, len(record), zlib.crc32(record)))
        except RuntimeError:
            entries.append((number, 0, 1))
    return entries


def read_index(shard: str | os.PathLike) -> np.ndarray:
    """The index of a shard, `[records]` of (offset, length, crc32), from its file or made anew.

    Raises:
        UserError: the shard cannot be read or holds nothing.
    """
    shard = Path(shard)
    try:
        try:
            stored = _parse_index(index_path(shard).read_bytes())
        except FileNotFoundError:
            stored = None
        entries = _scan(shard) if stored is None else stored
        size = shard.stat().st_size
    except OSError as error:
        raise UserError(f"{shard} cannot be read: {error.strerror}. Prepare the data set again.") from error
    if not len(entries) and (stored is None or (size and not is_array_record(shard))):
        raise UserError(f"{shard} holds no record that can be read. Delete it and prepare the data set again.")
    return entries
