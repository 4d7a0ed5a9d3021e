"""Both formats of torch.save: arrays, damage, and what is written."""

import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from synchformer_jax.convert import torch_file, torch_writer
from synchformer_jax.errors import UserError
from tests.convert.crafted import (
    SIX,
    call,
    nothing_runs,
    number,
    state_dict,
    tensor,
    text,
    write_archive,
    write_streams,
)

WRITE = {"archive": write_archive, "streams": write_streams}


def read(path):
    """All values of a file, its arrays read."""
    with nothing_runs():
        value, _ = torch_file.read(path)
        return {name: np.asarray(found) for name, found in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("format", WRITE)
def test_arrays_of_every_layout(format, tmp_path):
    arrays = {
        "whole": (tensor([2, 3], [3, 1]), SIX.reshape(2, 3)),
        "turned": (tensor([3, 2], [1, 3]), SIX.reshape(2, 3).T),
        "part": (tensor([2], [2], offset=1), SIX[1:4:2]),
        "scalar": (tensor([], [], offset=5), SIX[5]),
        "empty": (tensor([0, 3], [3, 1]), np.empty((0, 3), np.float32)),
        "repeated": (tensor([4, 2], [0, 1]), np.tile(SIX[:2], (4, 1))),
    }
    stream = state_dict(**{name: made for name, (made, _) in arrays.items()})
    if format == "archive":
        path = write_archive(tmp_path / "a.pt", stream, {"0": SIX.tobytes()})
    else:
        path = write_streams(tmp_path / "a.pt", stream.replace(b"tQ", b"NtQ"), {"0": SIX})
    found = read(path)
    for name, (_, expected) in arrays.items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
        assert found[name].dtype == np.float32 and found[name].shape == expected.shape


def test_a_part_of_a_storage_in_the_old_format(tmp_path):
    view = b"(" + text("1") + number(2) + number(3) + b"t"
    path = write_streams(tmp_path / "a.pt", state_dict(a=tensor([3], [1], tail=view)), {"0": SIX})
    np.testing.assert_array_equal(read(path)["a"], SIX[2:5])
    view = b"(" + text("1") + number(2) + number(5) + b"t"
    with pytest.raises(UserError, match="lies outside"):
        torch_file.read(write_streams(tmp_path / "b.pt", state_dict(a=tensor([3], [1], tail=view)), {"0": SIX}))


def test_big_endian_numbers(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("x/data.pkl", state_dict(a=tensor([2, 3], [3, 1])))
        archive.writestr("x/byteorder", b"big")
        archive.writestr("x/data/0", SIX.astype(">f4").tobytes())
    np.testing.assert_array_equal(read(tmp_path / "a.pt")["a"], SIX.reshape(2, 3))


BAD_ARRAYS = {
    "a negative stride": ({"shape": [2, 3], "strides": [3, -1]}, "a negative or strange"),
    "a negative offset": ({"shape": [2], "strides": [1], "offset": -1}, "a negative or strange"),
    "a negative size": ({"shape": [-1], "strides": [1]}, "a negative or strange"),
    "more than the storage": ({"shape": [7], "strides": [1]}, "lies outside of its storage"),
    "behind the storage": ({"shape": [1], "strides": [1], "offset": 6}, "lies outside of its storage"),
    "strides out of it": ({"shape": [2, 3], "strides": [4, 1]}, "lies outside of its storage"),
    "sizes that overflow": ({"shape": [2**62, 2**62], "strides": [2**62, 1]}, "lies outside of its storage"),
    "too many axes": ({"shape": [1] * 40, "strides": [1] * 40}, "a strange shape"),
    "strides for other axes": ({"shape": [2, 3], "strides": [1]}, "a strange shape"),
    "a storage that is not there": ({"shape": [2], "strides": [1], "key": "9"}, "cannot be read"),
    "a storage of another size": ({"shape": [2], "strides": [1], "count": 7}, "another size than announced"),
    "a storage of negative size": ({"shape": [0], "strides": [1], "count": -1}, "no storage of numbers"),
    "a quantized storage": ({"shape": [2], "strides": [1], "storage": "QInt8Storage"}, r"torch\.QInt8Storage"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_cannot_be_are_refused(case, tmp_path):
    made, message = BAD_ARRAYS[case]
    with pytest.raises(UserError, match=message):
        torch_file.read(write_archive(tmp_path / "a.pt", state_dict(a=tensor(**made)), {"0": SIX.tobytes()}))


def test_archives_that_pytorch_would_not_write_are_refused(tmp_path):
    stream, data = state_dict(a=tensor([2, 3], [3, 1])), {"0": SIX.tobytes()}
    path = write_archive(tmp_path / "a.pt", stream, data, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="a compressed record"):
        torch_file.read(path)
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("model.py", b"")
    with pytest.raises(UserError, match="not of PyTorch's"):
        torch_file.read(tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("c/data.pkl", stream)
        archive.writestr("c/constants.pkl", b"")
    with pytest.raises(UserError, match="TorchScript"):
        torch_file.read(tmp_path / "c.pt")
    with zipfile.ZipFile(tmp_path / "d.pt", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("d/data.pkl", stream)
        archive.writestr("d/data/0", data["0"])
        archive.writestr("d/data/0", data["0"])
    with pytest.raises(UserError, match="two records of one name"):
        torch_file.read(tmp_path / "d.pt")


def test_records_that_overlap_are_refused(tmp_path):
    """Two entries of the directory that name the same bytes, by which a small file unpacks to a large one."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", state_dict(a=tensor([2, 3], [3, 1])))
        archive.writestr("a/data/0", SIX.tobytes())
        archive.filelist[-1].file_size += 8
        archive.filelist[-1].compress_size += 8
        archive._didModify = True
    with pytest.raises(UserError, match="records that overlap"):
        torch_file.read(tmp_path / "a.pt")


def test_flipped_values_do_not_pass(tmp_path):
    path = write_archive(tmp_path / "a.pt", state_dict(a=tensor([2, 3], [3, 1])), {"0": SIX.tobytes()})
    content = bytearray(path.read_bytes())
    content[content.index(SIX.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        read(path)


@pytest.mark.parametrize("format", WRITE)
def test_a_truncated_file_is_told_at_every_length(format, tmp_path):
    stream = state_dict(a=tensor([2, 3], [3, 1], tail=b"" if format == "archive" else b"N"))
    path = WRITE[format](tmp_path / "a.pt", stream, {"0": SIX.tobytes() if format == "archive" else SIX})
    content = path.read_bytes()
    read(path)
    for length in range(0, len(content) - 1, 3):
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            read(path)


def test_other_files_are_told_from_checkpoints(tmp_path):
    whole = b"\x80\x02(X\x06\x00\x00\x00moduleK\x01tQ."
    for content, message in [
        (pickle.dumps({"a": 1}), "not of PyTorch's"),
        (b"", "cannot be read"),
        (b"\x00" * 600, "cannot be read"),
        (b"\x00" * 257 + b"ustar" + b"\x00" * 300, "PyTorch 0.1"),
        (write_streams(tmp_path / "m.pt", whole).read_bytes(), "a whole module"),
    ]:
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(UserError, match=message):
            torch_file.read(tmp_path / "a.pt")


def arrays_of(value):
    """The arrays of a value that are small enough to be read, wherever they are near its top."""
    if isinstance(value, torch_file.Tensor):
        return [value] if np.prod(value.shape, dtype=object) < 1_000_000 else []
    if isinstance(value, dict):
        return [array for item in value.values() if item is not value for array in arrays_of(item)][:100]
    return []


VALID = state_dict(
    a=tensor([2, 3], [3, 1]), b=tensor([3], [2], offset=1), c=call("collections", "Counter", {"x": 1})[2:-1]
)
POSITIONS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8)


@pytest.mark.parametrize("format", WRITE)
@settings(max_examples=400, deadline=None)
@given(changes=POSITIONS, cut=st.none() | st.integers(1, 10_000), whole=st.booleans())
@example(changes=[(0, 0)], cut=None, whole=True)
def test_any_damage_ends_in_an_error_or_a_sound_result(tmp_path_factory, format, changes, cut, whole):
    """Of the file, or of the pickle in it, which no checksum guards then."""
    path = tmp_path_factory.getbasetemp() / f"fuzz.{format}"
    storages = {"0": SIX.tobytes() if format == "archive" else SIX}
    valid = VALID if format == "archive" else VALID.replace(b"tQ", b"NtQ")

    def damaged(content):
        content = bytearray(content)
        for position, value in changes:
            content[position % len(content)] = value
        return bytes(content[: cut % len(content)] if cut else content)

    WRITE[format](path, valid if whole else damaged(valid), storages)
    if whole:
        path.write_bytes(damaged(path.read_bytes()))
    with nothing_runs():
        try:
            value, _ = torch_file.read(path)
            for array in arrays_of(value):
                read = np.asarray(array)
                assert read.shape == array.shape and read.dtype == array.dtype
        except UserError as error:
            assert str(path) in str(error)


def test_written_files_are_read_and_alike(tmp_path):
    arrays = {"a.weight": SIX.reshape(2, 3), "a.scale": np.float32(0.07), "b": np.empty((0, 2), np.float32)}
    for name in ("a.pth", "b.pth"):
        torch_writer.write(tmp_path / name, arrays, '{"x": 1}')
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    value, text = torch_file.read(tmp_path / "a.pth")
    assert text == '{"x": 1}' and list(value) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(value[name]), array)
    for record in torch_file._records(tmp_path / "a.pth").values():
        assert record.start % torch_writer.ALIGNMENT == 0


def test_records_of_more_than_two_gigabytes_stay_aligned(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_writer, "LARGE", 16)
    torch_writer.write(tmp_path / "a.pth", {"a": SIX})
    assert torch_file._records(tmp_path / "a.pth")["data/0"].start % torch_writer.ALIGNMENT == 0
    np.testing.assert_array_equal(read(tmp_path / "a.pth")["a"], SIX)
    assert torch_writer._number(2**40) == b"\x8a\x06" + (2**40).to_bytes(6, "little")
