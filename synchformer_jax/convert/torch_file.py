"""What `torch.save` writes, read without PyTorch and without running what is pickled in it (`pickled` has the rule).

Both formats are read: the zip archives of PyTorch 1.6 and later, and the bare streams of the versions before. Arrays
are read when they are asked for, so a checkpoint's optimizer costs nothing.
"""

import contextlib
import dataclasses
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from synchformer_jax.convert.pickled import Name, Reader, Refused
from synchformer_jax.errors import UserError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the bare streams
CONFIG = "synchformer.json"  # a record of our own in the archives that we write; PyTorch passes over it
NUMBERS = {
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{name: name for name in ("bool", "float16", "float32", "float64", "complex64", "complex128")},
    **{name: getattr(jnp, name) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")},
}
STORAGES = {
    **{"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"},
    **{"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Untyped": "uint8"},
    **{"ComplexFloat": "complex64", "ComplexDouble": "complex128"},
}
DTYPES = {name: np.dtype(kind) for name, kind in NUMBERS.items()}
VALUES = {
    **{Name("torch", name): dtype for name, dtype in DTYPES.items()},
    **{Name("torch", f"{name}Storage"): DTYPES[kind] for name, kind in STORAGES.items()},
    Name("torch.storage", "UntypedStorage"): DTYPES["uint8"],
}


@dataclasses.dataclass(eq=False, repr=False)
class Storage:
    """A row of numbers that arrays of a file lie in."""

    dtype: np.dtype
    count: int
    fetch: Callable[[], bytes | memoryview] | None = None  # reads its bytes

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    def part(self, start: int, count: int) -> "Storage":
        """Numbers of this storage as a storage of their own."""
        if not (_whole(start, count) and start + count <= self.count):
            raise ValueError("a part of a storage lies outside of it")
        size = self.dtype.itemsize
        return Storage(self.dtype, count, lambda: memoryview(self.fetch())[start * size : (start + count) * size])


@dataclasses.dataclass(eq=False, repr=False)
class Tensor:
    """An array in a file: what is said of it. `np.asarray` reads it; a UserError tells if its values are not there."""

    path: Path
    storage: Storage
    dtype: np.dtype
    offset: int  # in numbers, as the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    swapped: bool = False  # whether the file has big-endian numbers

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with errors_named(self.path):
            data = memoryview(self.storage.fetch())
            if len(data) != self.storage.nbytes:
                raise ValueError(f"{self.storage.nbytes:,} bytes are announced, {len(data):,} are there")
            size = self.dtype.itemsize
            strides = tuple(stride * size for stride in self.strides)
            there = data if 0 not in self.shape else bytes(size)
            view = np.ndarray(self.shape, self.dtype, there, self.offset * size if there is data else 0, strides)
            return (view.byteswap() if self.swapped else view).astype(dtype or self.dtype, order="C")


def read(path: Path) -> tuple[Any, str]:
    """The value that was saved, with a `Tensor` in the place of each array, and the config if the file is of ours.

    Raises:
        UserError: the file is of another kind, is damaged, or asks for more than data; the message names it.
    """
    with errors_named(path), open(path, "rb") as file:
        start = file.read(512)
        if start[:4] == b"PK\x03\x04":
            return _read_archive(path)
        if start[257:262] == b"ustar":
            raise UserError(f"{path} has the format of PyTorch 0.1. Load it with PyTorch and save its arrays again.")
        file.seek(0)
        return _read_streams(path, file), ""


@contextlib.contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Tells whatever goes wrong with a file as a UserError: a foreign file can be wrong in any way."""
    try:
        yield
    except UserError:
        raise
    except Refused as error:
        raise UserError(
            f"{path} is refused: it asks for {error}. Weights need arrays, containers and plain values only. Get the "
            "file from where it was published, or save its arrays alone (.safetensors) where you trust it."
        ) from error
    except Exception as error:
        text = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{path} cannot be read: it is damaged or no checkpoint ({text}). Get it again.") from error


@dataclasses.dataclass(frozen=True)
class Record:
    """Where a record of an archive lies, in bytes."""

    start: int
    size: int
    checksum: int  # CRC-32; 0 where PyTorch was told to write none

    def read(self, path: Path) -> bytes:
        data = _bytes_at(path, self.start, self.size)
        if self.checksum and zlib.crc32(data) != self.checksum:
            raise ValueError("a record does not have its checksum")
        return data


def _read_archive(path: Path) -> tuple[Any, str]:
    records = _records(path)
    swapped = "byteorder" in records and records["byteorder"].read(path) == b"big"
    storages: dict[str, Storage] = {}
    last: dict[str, bytes] = {}  # arrays may share a storage, so one is kept

    def fetch(key: str) -> bytes:
        if key not in last:
            last.clear()
            last[key] = records[f"data/{key}"].read(path)
        return last[key]

    def persistent(given: Any) -> Storage:
        storage, key, *_ = _announced(given, storages)
        storage.fetch = lambda: fetch(key)
        if records[f"data/{key}"].size != storage.nbytes:
            raise ValueError(f"storage {key[:20]} has another size than announced")
        return storage

    value = _reader(path, persistent, swapped).read(io.BytesIO(records["data.pkl"].read(path)))
    return value, records[CONFIG].read(path).decode() if CONFIG in records else ""


def _records(path: Path) -> dict[str, Record]:
    """The records by their name in the archive's folder.

    PyTorch writes them one after the other and uncompressed. An archive that is otherwise could unpack to far more than
    its size, and different readers could see different records in it.
    """
    with zipfile.ZipFile(path) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        ends = [*(entry.header_offset for entry in entries[1:]), archive.start_dir]
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise UserError(f"{path} is a compiled TorchScript model. Give a checkpoint or a state_dict.")
    pickles = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"{path} is a zip archive, but not of PyTorch's. Give a file that torch.save has written.")
    folder = pickles[0].removesuffix("data.pkl")
    records = {}
    with open(path, "rb") as file:
        for entry, end in zip(entries, ends, strict=True):
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise Refused("a compressed record; PyTorch writes none (unpack the archive, then zip -0 -r)")
            file.seek(entry.header_offset)
            signature, lengths = struct.unpack("<4s22x4s", file.read(30))
            start = entry.header_offset + 30 + sum(struct.unpack("<HH", lengths))
            if signature != b"PK\x03\x04" or start + entry.file_size > end:
                raise Refused("records that overlap")
            name = entry.filename.removeprefix(folder)
            if name in records:
                raise Refused("two records of one name")
            records[name] = Record(start, entry.file_size, entry.CRC)
    return records


def _announced(given: Any, storages: dict[str, Storage]) -> tuple[Any, ...]:
    """The storage that a persistent id names, its key, and what else the id holds."""
    kind, dtype, key, _, count, *rest = given
    if kind != "storage" or not isinstance(key, str) or not isinstance(dtype, np.dtype) or not _whole(count):
        raise Refused(f"something outside of its pickle that is no storage of numbers ({_kind_of(dtype)})")
    storage = storages.setdefault(key, Storage(dtype, count))
    if (storage.dtype, storage.count) != (dtype, count):
        raise ValueError(f"storage {key[:20]} is announced twice, differently")
    return storage, key, *rest


def _kind_of(value: Any) -> str:
    return str(value)[:80] if isinstance(value, Name) else type(value).__name__


def _read_streams(path: Path, file: BinaryIO) -> Any:
    storages: dict[str, Storage] = {}
    parts: dict[str, Storage] = {}

    def persistent(given: Any) -> Storage:
        if given[0] == "module":
            raise UserError(f"{path} holds a whole module with its code. Save the module's state_dict.")
        storage, _, *view = _announced(given, storages)
        if not view or view[0] is None:
            return storage
        name, start, count = view[0]
        return parts.setdefault(_key(name), storage.part(start, count))

    plain = _reader(path, None, False)
    if plain.read(file) != MAGIC:
        raise UserError(f"{path} is a pickle, but not of PyTorch's. Give a file that torch.save has written.")
    if plain.read(file) != PROTOCOL:
        raise ValueError("an unknown version of PyTorch's format")
    swapped = not plain.read(file)["little_endian"]
    value = _reader(path, persistent, swapped).read(file)
    size = os.fstat(file.fileno()).st_size
    for key in plain.read(file):
        storage = storages[_key(key)]
        (count,) = struct.unpack("<q", file.read(8))
        start = file.tell()
        if count != storage.count or start + storage.nbytes > size:
            raise ValueError(f"storage {_key(key)[:20]} has another size than announced")
        storage.fetch = lambda start=start, nbytes=storage.nbytes: _bytes_at(path, start, nbytes)
        file.seek(start + storage.nbytes)
    if any(storage.fetch is None for storage in storages.values()):
        raise ValueError("a storage is missing")
    return value


def _key(value: Any) -> str:
    if not isinstance(value, (str, int)):
        raise ValueError("the key of a storage is no text")
    return str(value)


def _bytes_at(path: Path, start: int, count: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(count)


def _reader(path: Path, persistent: Callable[[Any], Storage] | None, swapped: bool) -> Reader:
    """A reader that knows how PyTorch puts arrays into a pickle."""

    def tensor(
        storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: np.dtype | None = None
    ) -> Tensor:
        if not isinstance(storage, Storage):
            raise Refused("an array without a storage")
        if not (type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= 32):
            raise Refused("an array of a strange shape")
        if not _whole(offset, *shape, *strides):
            raise Refused("an array of a negative or strange offset, shape or stride")
        if any(isinstance(part, dict) and any(part.values()) for part in rest[2:]):
            raise Refused("a conjugate or negative view of an array")
        dtype = storage.dtype if dtype is None else dtype
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if 0 not in shape and (last + 1) * dtype.itemsize > storage.nbytes:
            raise Refused("an array that lies outside of its storage")
        return Tensor(path, storage, dtype, offset, shape, strides, swapped)

    def tensor_v3(storage, offset, shape, strides, grad, hooks, dtype, *rest: Any) -> Tensor:
        return tensor(storage, offset, shape, strides, grad, hooks, *rest, dtype=dtype)

    def of_type(make: Name, kind: Name, given: tuple, state: Any) -> Any:
        return reader.call(make, given, is_class=False)

    def device(kind: str, *index: int) -> str:
        return ":".join([kind, *(f"{number:d}" for number in index)])

    calls = {
        Name("torch._utils", "_rebuild_tensor"): tensor,
        Name("torch._utils", "_rebuild_tensor_v2"): tensor,
        Name("torch._utils", "_rebuild_tensor_v3"): tensor_v3,
        Name("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        Name("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
        Name("torch._tensor", "_rebuild_from_type_v2"): of_type,
        Name("torch", "Size"): tuple,
        Name("torch", "device"): device,
        Name("torch.serialization", "_get_layout"): lambda name: name,
    }
    reader = Reader(calls, VALUES, persistent)
    return reader


def _whole(*values: Any) -> bool:
    """Whether all are whole numbers from 0 to what an address can be."""
    return all(type(value) is int and 0 <= value < 2**63 for value in values)
