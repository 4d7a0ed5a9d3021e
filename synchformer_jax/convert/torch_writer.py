"""Files that `torch.load(path, weights_only=True)` opens, written without PyTorch.

The archive is PyTorch's: `data.pkl` names an array after the other and where it lies, `data/N` holds the N-th one's
values at a multiple of 64 bytes, so that it can be mapped. The same arrays give the same bytes.
"""

import math
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from synchformer_jax.convert.torch_file import CONFIG

ALIGNMENT = 64  # bytes
HEADER = 30  # bytes of a zip record's local header, before its name
PADDING = struct.Struct("<2sH")  # PyTorch's field for what aligns: "FB", length
LARGE = 2**31  # bytes from which a record gets a field for sizes of 64 bits
SIZES_64 = 20  # bytes of that field


def write(path: Path, arrays: Mapping[str, np.ndarray], config: str = "", container: str = "") -> None:
    """Writes a `state_dict`.

    Args:
        path: of the file; the caller sees to it that it appears whole.
        arrays: float32, by name.
        config: text of a record of our own, which PyTorch passes over.
        container: the key of a dict to put the `state_dict` in; none if empty.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _record(archive, "data.pkl", _pickled(arrays, container))
        _record(archive, "byteorder", b"little")
        if config:
            _record(archive, CONFIG, config.encode())
        for i, array in enumerate(arrays.values()):
            _record(archive, f"data/{i}", np.asarray(array, "<f4").tobytes())
        _record(archive, "version", b"3\n")


def _record(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(f"archive/{name}")  # a date of its own would make each file another
    entry.file_size = len(data)
    large = len(data) >= LARGE
    start = archive.fp.tell() + HEADER + len(entry.filename) + PADDING.size + (SIZES_64 if large else 0)
    padding = -start % ALIGNMENT
    entry.extra = PADDING.pack(b"FB", padding) + b"Z" * padding
    with archive.open(entry, "w", force_zip64=large) as file:
        file.write(data)


def _pickled(arrays: Mapping[str, np.ndarray], container: str) -> bytes:
    """The pickle of the `state_dict`, whose names belong to PyTorch and need not be here to be written."""
    parts = [pickle.PROTO + b"\x02"]
    if container:
        parts += [pickle.EMPTY_DICT, _text(container)]
    parts += [_ordered_dict(), pickle.MARK]
    for i, (name, array) in enumerate(arrays.items()):
        strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        storage = [_text("storage"), _name("torch", "FloatStorage"), _text(str(i)), _text("cpu"), _number(array.size)]
        parts += [_text(name), _name("torch._utils", "_rebuild_tensor_v2"), pickle.MARK]
        parts += [pickle.MARK, *storage, pickle.TUPLE, pickle.BINPERSID, _number(0)]
        parts += [
            _numbers(array.shape),
            _numbers(strides),
            pickle.NEWFALSE,
            _ordered_dict(),
            pickle.TUPLE,
            pickle.REDUCE,
        ]
    parts += [pickle.SETITEMS]
    if container:
        parts += [pickle.SETITEM]
    return b"".join([*parts, pickle.STOP])


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _ordered_dict() -> bytes:
    return _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _number(number: int) -> bytes:
    if number < 2**31:
        return pickle.BININT + struct.pack("<i", number)
    data = pickle.encode_long(number)
    return pickle.LONG1 + bytes([len(data)]) + data


def _numbers(numbers: Sequence[int]) -> bytes:
    return pickle.MARK + b"".join(map(_number, numbers)) + pickle.TUPLE
