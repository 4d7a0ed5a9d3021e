"""ArrayRecord shards: read like TFRecord shards, by TFDS and by Grain, with the same answers to damage."""

import io
import pickle
import sys

import numpy as np
import pytest

from synchformer_jax.data import records
from synchformer_jax.errors import UserError

pytest.importorskip("array_record")


def record(index: int) -> bytes:
    media = np.random.default_rng(index).bytes(100_000)
    numbers = {"num_frames": 250, "num_samples": 160_000, "height": 64, "width": 64}
    return records.encode_example(
        {"clip_id": f"clip {index}", "video": media, "audio": b"a", "level": "", "label": "dog barking", **numbers}
    )


def write(folder, counts=(4, 3)):
    version, total = folder / "clips" / records.VERSION, 0
    for shard, count in enumerate(counts):
        path = records.shard_path(version, "train", shard, len(counts), file_format="array_record")
        with records.ShardWriter(path) as writer:
            for index in range(total, total + count):
                writer.write(record(index))
        total += count
    records.write_metadata(version)
    return version


def readable(shards) -> list[int]:
    good = []
    for index in range(len(shards)):
        try:
            assert shards[index] == record(index)
            good.append(index)
        except records.CorruptRecord:
            pass
    return good


def test_shards_read_what_was_written_in_any_order(tmp_path):
    version = write(tmp_path)
    shards = records.Shards(tmp_path, "train")
    assert [path.name for path in shards.paths] == [f"clips-train.array_record-0000{i}-of-00002" for i in (0, 1)]
    assert [shards[i] for i in (6, 0, 3, 4)] == [record(i) for i in (6, 0, 3, 4)]
    assert shards.fields(5, ["label", "height"]) == {"label": b"dog barking", "height": 64}
    assert shards.locate(4) == (version / "clips-train.array_record-00001-of-00002", 0)
    again = pickle.loads(pickle.dumps(shards))
    assert again[2] == record(2) and (again.checksums() == shards.checksums()).all()


def test_the_same_records_give_the_same_bytes(tmp_path):
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    for path in sorted(one.iterdir()):
        assert path.read_bytes() == (two / path.name).read_bytes()


def test_tfds_reads_the_folder_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder_from_directory(write(tmp_path))
    source = builder.as_data_source("train")
    assert len(source) == 7
    assert source[5]["clip_id"] == b"clip 5" and source[5]["label"] == b"dog barking"
    assert source[5]["video"] == np.random.default_rng(5).bytes(100_000)
    assert "tensorflow" not in sys.modules


def test_grain_reads_the_shards(tmp_path):
    import grain

    source = grain.sources.ArrayRecordDataSource([str(p) for p in records.split_shards(write(tmp_path))["train"]])
    assert len(source) == 7 and source[6] == record(6)


@pytest.mark.parametrize("index_lost", [False, True])
def test_damage_costs_its_own_record(tmp_path, index_lost):
    path = records.shard_path(write(tmp_path), "train", 0, 2, file_format="array_record")
    data = bytearray(path.read_bytes())
    data[data.index(np.random.default_rng(1).bytes(100_000)[:64]) + 20] ^= 1
    path.write_bytes(data)
    if index_lost:
        path.with_name(path.name + ".index").unlink()
    shards = records.Shards(tmp_path, "train")
    assert len(shards) == 7 and readable(shards) == [0, 2, 3, 4, 5, 6]
    with pytest.raises(records.CorruptRecord, match="00000-of-00002, record 1"):
        shards[1]


@pytest.mark.parametrize("left", [0, 1000, 250_000])
def test_a_truncated_shard_has_no_table_of_records(tmp_path, left):
    path = records.shard_path(write(tmp_path), "train", 0, 2, file_format="array_record")
    path.write_bytes(path.read_bytes()[:left])
    assert readable(records.Shards(tmp_path, "train")) == [4, 5, 6]  # the others are counted one by one
    path.with_name(path.name + ".index").unlink()
    with pytest.raises(UserError, match="00000-of-00002 holds no record"):
        records.Shards(tmp_path, "train")


def test_killed_writer_leaves_nothing(tmp_path):
    path = records.shard_path(tmp_path / "clips" / "1.0.0", "train", 0, 1, file_format="array_record")
    with pytest.raises(KeyboardInterrupt), records.ShardWriter(path) as writer:
        writer.write(record(0))
        raise KeyboardInterrupt
    assert not list(path.parent.iterdir())


def test_a_full_disk_is_an_error_that_tells(tmp_path, monkeypatch):
    from synchformer_jax.data import shard_files

    class Full(io.RawIOBase):
        def __init__(self, *_):
            pass

        def write(self, _):
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(shard_files._array_record(), "ArrayRecordWriter", Full)
    with (
        pytest.raises(UserError, match="No space left on device"),
        records.ShardWriter(
            records.shard_path(tmp_path / "clips" / "1.0.0", "train", 0, 1, file_format="array_record")
        ) as writer,
    ):
        writer.write(record(0))
