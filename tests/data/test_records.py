"""Records: the wire format against protobuf's own, checksums against published vectors, damage named or counted."""

import struct
import sys
import zlib

import numpy as np
import pytest

from synchformer_jax.data import example, records
from synchformer_jax.errors import UserError


def record(index: int, **more) -> bytes:
    fields = {
        "clip_id": f"clip {index}",
        "video": bytes([index]) * 6000,
        "audio": b"",
        "num_frames": 250,
        "num_samples": 160_000,
        "height": 64,
        "width": 64,
        "level": "sparse" if index % 2 else "dense",
        "label": "dog barking",
    }
    return records.encode_example(fields | more)


def write(folder, split="train", counts=(3, 2)):
    version, total = folder / "clips" / records.VERSION, 0
    for shard, count in enumerate(counts):
        with records.ShardWriter(records.shard_path(version, split, shard, len(counts))) as writer:
            for index in range(total, total + count):
                writer.write(record(index))
        total += count
    records.write_metadata(version, description="five clips")
    return version


def example_message():
    """tf.train.Example, declared to the protobuf library by hand."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example_for_test.proto", package="t", syntax="proto3")
    for name, kind in (("BytesList", 12), ("FloatList", 2), ("Int64List", 3)):
        message = file.message_type.add(name=name)
        message.field.add(name="value", number=1, label=3, type=kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("BytesList", "FloatList", "Int64List"), 1):
        feature.field.add(name=name.lower(), number=number, label=1, type=11, type_name=f".t.{name}", oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".t.Feature")
    features.field.add(name="feature", number=1, label=3, type=11, type_name=".t.Features.FeatureEntry")
    message = file.message_type.add(name="Example")
    message.field.add(name="features", number=1, label=1, type=11, type_name=".t.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


FIELDS = {
    "b": b"\x00\xff",
    "s": "é",
    "n": 300,
    "neg": -7,
    "f": 0.5,
    "ints": [1, -2, 1 << 40],
    "two": [b"x", b""],
    "e": b"",
}


def test_example_is_protobufs():
    message = example_message().FromString(records.encode_example(FIELDS))
    got = message.features.feature
    assert got["b"].byteslist.value[0] == b"\x00\xff" and got["s"].byteslist.value[0] == "é".encode()
    assert list(got["ints"].int64list.value) == [1, -2, 1 << 40] and got["neg"].int64list.value[0] == -7
    assert got["f"].floatlist.value[0] == 0.5 and list(got["two"].byteslist.value) == [b"x", b""]
    want = {**FIELDS, "s": "é".encode()}
    assert records.decode_example(message.SerializeToString()) == want
    assert records.decode_example(records.encode_example(FIELDS), {"n", "e"}) == {"n": 300, "e": b""}


def test_example_of_unpacked_numbers():
    """Old writers did not pack repeated numbers."""
    message = example_message()()
    data = example._field(
        1, example._field(1, example._field(1, b"n"), example._field(2, example._field(3, b"\x08\x05")))
    )
    message.MergeFromString(data)
    assert message.features.feature["n"].int64list.value[0] == 5
    assert records.decode_example(data) == {"n": 5}


@pytest.mark.parametrize("damage", [b"\x07", b"\x0a\xff", b"\x12\x00", record(0)[:-10], b"not an example"])
def test_example_refuses_nonsense(damage):
    with pytest.raises(ValueError):
        records.decode_example(damage)


def test_example_refuses_other_types():
    with pytest.raises(TypeError):
        records.encode_example({"x": {1: 2}})


def test_crc32c_vectors():
    """RFC 3720, appendix B.4, and the check value of the CRC catalogue."""
    assert example.crc32c(b"123456789") == 0xE3069283
    assert example.crc32c(bytes(32)) == 0x8A9136AA
    assert example.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert example.crc32c(bytes(range(32))) == 0x46DD794E
    assert example.crc32c(bytes(range(31, -1, -1))) == 0x113FDB5C
    assert example.crc32c(b"") == 0


def test_shards_read_what_was_written(tmp_path):
    version = write(tmp_path)
    shards = records.Shards(tmp_path, "train")
    assert len(shards) == 5
    assert [shards[i] for i in (4, 0, 2, 3, 1)] == [record(i) for i in (4, 0, 2, 3, 1)]
    assert shards.fields(3, ["level", "num_frames"]) == {"level": b"sparse", "num_frames": 250}
    assert shards.locate(3) == (version / "clips-train.tfrecord-00001-of-00002", 0)
    with pytest.raises(IndexError):
        shards[5]
    with pytest.raises(records.CorruptRecord, match="no nothing"):
        shards.fields(0, ["nothing"])


def test_frames_are_tfrecords(tmp_path):
    """Length, masked CRC of the length, payload, masked CRC of the payload."""
    data = (write(tmp_path) / "clips-train.tfrecord-00000-of-00002").read_bytes()

    def masked(part):
        crc = example.crc32c(part)
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32

    payload = record(0)
    assert data[:8] == struct.pack("<Q", len(payload))
    assert data[8:12] == struct.pack("<I", masked(data[:8]))
    assert data[12 : 12 + len(payload)] == payload
    assert data[12 + len(payload) : 16 + len(payload)] == struct.pack("<I", masked(payload))


def test_tfds_opens_the_folder(tmp_path):
    """Without TensorFlow: the builder, its splits, and a record through TFDS's own parser."""
    tfds = pytest.importorskip("tensorflow_datasets")
    write(tmp_path, "test", (1,))
    version = write(tmp_path)
    builder = tfds.builder_from_directory(version)
    assert builder.info.full_name == "clips/1.0.0"
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"test": 1, "train": 5}
    assert [str(path) for path in builder.info.splits["train"].filepaths] == [
        str(path) for path in records.Shards(version, "train").paths
    ]
    parsed = builder.info.features.deserialize_example_np(record(3))
    assert (
        parsed["num_samples"] == 160_000
        and parsed["level"] == b"sparse"
        and parsed["label"] == b"dog barking"
        and parsed["video"] == b"\x03" * 6000
    )
    assert "tensorflow" not in sys.modules


def test_find_takes_any_of_the_three_folders(tmp_path):
    version = write(tmp_path)
    assert records.find(tmp_path) == records.find(version.parent) == records.find(version, "train") == version


def test_find_names_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        records.find(tmp_path / "nothing")
    with pytest.raises(UserError, match="no prepared data set"):
        records.find(tmp_path)
    version = write(tmp_path)
    with pytest.raises(UserError, match=r"no split 'valid'\. It has: train"):
        records.find(tmp_path, "valid")
    version.parent.parent.joinpath("more").mkdir()
    version.parent.rename(tmp_path / "more" / "a")
    write(tmp_path / "other").parent.rename(tmp_path / "more" / "b")
    with pytest.raises(UserError, match="several"):
        records.find(tmp_path / "more")


def test_missing_shard_is_named(tmp_path):
    (write(tmp_path) / "clips-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(UserError, match=r"1 of the 2 shards of 'train' \(missing: \[1\]\)"):
        records.Shards(tmp_path, "train")


def test_killed_writer_leaves_nothing(tmp_path):
    path = records.shard_path(tmp_path / "clips" / "1.0.0", "train", 0, 1)
    with pytest.raises(KeyboardInterrupt), records.ShardWriter(path) as writer:
        writer.write(record(0))
        raise KeyboardInterrupt
    assert not list(path.parent.iterdir())


def readable(shards) -> list[int]:
    good = []
    for index in range(len(shards)):
        try:
            assert shards[index] == record(index)
            good.append(index)
        except records.CorruptRecord:
            pass
    return good


@pytest.mark.parametrize("index_lost", [False, True])
def test_damage_is_named_and_nothing_else_is_lost(tmp_path, index_lost):
    """A flipped byte, a wrong checksum and a cut end cost their own records only, with the index and without."""
    version = write(tmp_path, counts=(4, 3))
    first, second = (records.shard_path(version, "train", shard, 2) for shard in (0, 1))
    size = len(record(0)) + 16
    data = bytearray(first.read_bytes())
    data[size + 2000] ^= 1  # the payload of record 1
    data[3 * size - 1] ^= 1  # the checksum of record 2
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-100])  # record 6
    if index_lost:
        for path in (first, second):
            path.with_name(path.name + ".index").unlink()
    shards = records.Shards(tmp_path, "train")
    assert len(shards) == 7 and readable(shards) == [0, 3, 4, 5]
    with pytest.raises(records.CorruptRecord, match="00000-of-00002, record 1: the checksum"):
        shards[1]
    with pytest.raises(records.CorruptRecord, match="00001-of-00002, record 2: the "):
        shards[6]


def test_damaged_or_missing_index_is_made_anew(tmp_path):
    version = write(tmp_path)
    before = [records.read_index(path) for path in records.split_shards(version)["train"]]
    indices = sorted(version.glob("*.index"))
    indices[0].unlink()
    indices[1].write_bytes(indices[1].read_bytes()[:-9])
    for path, index in zip(records.split_shards(version)["train"], before, strict=True):
        np.testing.assert_array_equal(records.read_index(path), index)
    assert readable(records.Shards(tmp_path, "train")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("content", [b"", b"no TFRecord at all, but some words"])
def test_empty_and_foreign_files_are_named(tmp_path, content):
    version = write(tmp_path)
    path = records.shard_path(version, "train", 0, 2)
    path.write_bytes(content)
    path.with_name(path.name + ".index").unlink()
    with pytest.raises(UserError, match="00000-of-00002 holds no record"):
        records.Shards(tmp_path, "train")


def test_index_checksum_is_of_the_frame(tmp_path):
    path = records.shard_path(write(tmp_path), "train", 0, 2)
    entry = records.read_index(path)[1]
    frame = path.read_bytes()[int(entry["offset"]) :][: int(entry["length"])]
    assert zlib.crc32(frame) == entry["crc32"] and frame[12:-4] == record(1)
