"""The cache of visual features: what comes out is what went in; half-written or foreign caches are refused."""

import dataclasses
import json
import pickle

import ml_dtypes
import numpy as np
import pytest

from synchformer_jax.data import features
from synchformer_jax.errors import UserError

HEADER = features.Header("abc", 7, records=5, tokens=2, width=3, views=2, shard_records=2)
VALUES = np.random.default_rng(0).normal(size=(2, 5, 30, 2, 3)).astype(np.float32)
HALF = VALUES.astype(ml_dtypes.bfloat16)


def write(folder, header=HEADER, split="train", shards=None):
    features.write_header(folder, split, header)
    for view, shard in shards or header.missing(folder, split):
        features.write_shard(folder, split, header, view, shard, VALUES[view, header.rows(shard)])
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path)


def test_windows(folder):
    cache = features.Features(folder, "train", 7)
    for record, first, view in ((0, 0, 0), (3, 8, 1), (4, 128, 0)):
        window = cache.window(record, first, 14, view)
        assert window.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(window, HALF[view, record, first // 8 : first // 8 + 14])
    for first in (4, 136, -8):
        with pytest.raises(ValueError):
            cache.window(0, first, 14)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache)).window(2, 16, 3), cache.window(2, 16, 3))


def test_a_view_is_a_pure_even_choice(folder):
    cache = features.Features(folder, "train")
    drawn = [[cache.view(0, epoch, record) for record in range(5)] for epoch in range(200)]
    assert drawn[7] == [features.Features(folder, "train").view(0, 7, record) for record in range(5)]
    assert abs(np.mean(drawn) - 0.5) < 0.05  # three standard deviations of 1,000 coins
    assert drawn != [[cache.view(1, epoch, record) for record in range(5)] for epoch in range(200)]


def test_starts_of_a_clip():
    assert [features.num_starts(frames) for frames in (15, 16, 23, 24, 225, 247, 248, 250, 400)] == [
        0, 1, 1, 2, 27, 29, 30, 30, 30,
    ]  # fmt: skip
    assert features.covered_frames() == 248


def test_shards_cover_all_records_once():
    assert [list(HEADER.rows(shard)) for shard in range(HEADER.shards)] == [[0, 1], [2, 3], [4]]
    assert sum(HEADER.bytes(shard) for shard in range(3)) == 2 * 5 * 30 * 2 * 3


def test_half_a_cache_is_none(tmp_path):
    write(tmp_path, shards=[(0, 0), (0, 1), (0, 2), (1, 1)])
    with pytest.raises(UserError, match=r"2 of 6 shards .*view1-00000-of-00003.npy.*goes on where it was"):
        features.Features(tmp_path, "train")
    with pytest.raises(UserError, match="holds no visual features of 'valid'"):
        features.Features(tmp_path, "valid")


def test_a_shard_is_whole_or_not_there(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(features.np, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "train.json"]


def test_a_damaged_shard_is_named(folder):
    path = HEADER.path(folder, "train", 0, 1)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"view0-00001-of-00003.npy cannot be read.*write the features again"):
        features.Features(folder, "train").window(2, 0, 14)


def test_features_that_are_not_finite(tmp_path):
    with pytest.raises(UserError, match="not finite"):
        features.write_shard(tmp_path, "train", HEADER, 0, 0, VALUES[0, :2] * np.inf)


def test_another_extractor_or_other_records_are_another_cache(folder):
    assert features.read_header(folder, "train") == HEADER
    with pytest.raises(UserError, match="other records"):
        features.Features(folder, "train", 8)
    other = dataclasses.replace(HEADER, source="xyz")
    assert len(other.missing(folder, "train")) == 6
    assert not HEADER.missing(folder, "train")


@pytest.mark.parametrize("text", ["", "{}", "[1]", json.dumps({"source": "", "shape": [4, 30, 2, 3]})])
def test_broken_headers(folder, text):
    (folder / "train.json").write_text(text)
    with pytest.raises(UserError, match=r"train.json is no header"):
        features.Features(folder, "train", 7)
