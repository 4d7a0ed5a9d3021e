"""`tf.train.Example` in protobuf's wire format, and the checksum of TFRecord, without TensorFlow.

Three message types nest: Example{1: Features{1: map<string, Feature>}} and Feature{1: bytes, 2: float, 3: int64 list}.
Reading skips over values it does not want, so a few small fields of a large record cost next to nothing.
"""

import functools
import struct
from collections.abc import Collection, Iterator, Mapping

import numpy as np

Value = bytes | str | int | float | list[bytes] | list[int] | list[float]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), bits reversed


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, *parts: bytes) -> bytes:
    """A length-delimited field."""
    return b"".join([_varint(number << 3 | _BYTES), _varint(sum(map(len, parts))), *parts])


def _feature(value: Value) -> bytes:
    values = value if isinstance(value, (list, tuple)) else [value]
    values = [v.encode() if isinstance(v, str) else v for v in values]
    if all(isinstance(v, (bytes, bytearray, memoryview)) for v in values):
        return _field(_BYTES_LIST, *(_field(1, v) for v in values))
    if all(isinstance(v, (int, np.integer)) for v in values):
        return _field(_INT64_LIST, _field(1, *(_varint(int(v)) for v in values)))
    if all(isinstance(v, (int, float, np.integer, np.floating)) for v in values):
        return _field(_FLOAT_LIST, _field(1, struct.pack(f"<{len(values)}f", *values)))
    raise TypeError(f"A feature holds bytes, integers or floats, not {value!r:.80}")


def encode_example(features: Mapping[str, Value]) -> bytes:
    """Serialises `features` as a `tf.train.Example`; the same features always give the same bytes.

    A value is bytes, str, int, float or a list of one of these. Small values come first, so that the start of a
    record tells everything but its media.

    Raises:
        TypeError: a value of another type.
    """
    encoded = {name: _feature(value) for name, value in features.items()}
    ordered = sorted(encoded.items(), key=lambda item: (len(item[1]), item[0]))
    return _field(1, *(_field(1, _field(1, name.encode()), _field(2, feature)) for name, feature in ordered))


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number is cut off")
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7


def _fields(data: memoryview, cut: bool = False) -> Iterator[tuple[int, int, memoryview | int]]:
    """(field number, wire type, value) of each field of a message; with `cut`, a last value may be incomplete."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            length, at = _read_varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")
        if at + length > len(data) and not cut:
            raise ValueError("a field is cut off")
        yield number, wire, data[at : at + length]
        at += length


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _value(feature: memoryview) -> bytes | int | float | list:
    values: list = []
    for kind, _, message in _fields(feature):
        for _, wire, value in _fields(message):
            if kind == _BYTES_LIST:
                values.append(bytes(value))
            elif kind == _FLOAT_LIST:
                values.extend(struct.unpack(f"<{len(value) // 4}f", value))
            elif wire == _VARINT:
                values.append(_signed(value))
            else:  # packed int64
                at = 0
                while at < len(value):
                    number, at = _read_varint(value, at)
                    values.append(_signed(number))
    return values[0] if len(values) == 1 else values


def decode_example(data: bytes | memoryview, names: Collection[str] | None = None, *, cut: bool = False) -> dict:
    """The features of a serialised `tf.train.Example`: a bare value where there is one, else a list.

    Args:
        data: the serialised message.
        names: the features wanted; all if None.
        cut: `data` is only the start of a message; gives the wanted features that are whole.

    Raises:
        ValueError: `data` is no such message.
    """
    features: dict[str, bytes | int | float | list] = {}
    try:
        for number, wire, message in _fields(memoryview(data), cut):
            if number != 1 or wire != _BYTES:
                raise ValueError("not an Example")
            for _, _, entry in _fields(message, cut):
                pair = {number: value for number, _, value in _fields(entry)}
                name = bytes(pair[1]).decode()
                if names is None or name in names:
                    features[name] = _value(pair[2])
    except (ValueError, KeyError, TypeError, struct.error, UnicodeDecodeError) as error:
        if not cut:
            raise ValueError(f"not a serialised tf.train.Example ({error})") from error
    return features


@functools.lru_cache(maxsize=64)
def _shift_tables(num_bytes: int) -> np.ndarray:
    """Tables `[4, 256]` that carry a CRC state over `num_bytes` zero bytes, one table a byte of the state."""
    if num_bytes == 1:
        table = np.arange(256, dtype=np.uint32)
        for _ in range(8):
            table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)
        later = np.arange(256, dtype=np.uint32)[None] << np.array([0, 8, 16], np.uint32)[:, None]
        return np.concatenate([table[None], later]).astype(np.uint32)
    half = _shift_tables(num_bytes // 2)
    tables = _apply(half, half)
    return _apply(_shift_tables(1), tables) if num_bytes % 2 else tables


def _apply(tables: np.ndarray, state: np.ndarray) -> np.ndarray:
    out = tables[0][state & 0xFF]
    for byte in (1, 2, 3):
        out = out ^ tables[byte][state >> np.uint32(8 * byte) & 0xFF]
    return out


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C of `data`, the checksum of TFRecord.

    The CRC is linear: states of neighbouring pieces join by carrying the left one over the right one's length. So all
    bytes are done at once in log2(n) steps of NumPy instead of one by one in Python.
    """
    octets = np.frombuffer(data, np.uint8)
    state, width = _shift_tables(1)[0][octets], 1
    while len(state) > 1:
        if len(state) % 2:  # a zero piece before the message changes nothing
            state = np.concatenate([np.zeros(1, np.uint32), state])
        state = _apply(_shift_tables(width), state[::2]) ^ state[1::2]
        width *= 2
    start = _apply(_shift_tables(len(octets)), np.full(1, 0xFFFFFFFF, np.uint32))[0] if len(octets) else 0xFFFFFFFF
    return int(start) ^ (int(state[0]) if len(state) else 0) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | memoryview) -> int:
    """TFRecord's checksum: the CRC rotated and shifted, so that checksums of checksums stay sound."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
