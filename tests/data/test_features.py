"""The cache of visual features: what comes out is what went in; half-written or foreign caches are refused."""

import json
import pickle

import numpy as np
import pytest

from synchformer_jax.data import features
from synchformer_jax.errors import UserError

SHAPE = (5, 30, 2, 3)
VALUES = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def writer(folder, split="train", fingerprint=7, source="abc"):
    return features.FeatureWriter(folder, split, fingerprint, records=5, tokens=2, width=3, source=source)


@pytest.fixture
def folder(tmp_path):
    with writer(tmp_path) as out:
        out.write([3, 1], VALUES[[3, 1]])
        out.write(np.array([0, 4, 2]), VALUES[[0, 4, 2]])
    return tmp_path


def test_windows(folder):
    cache = features.Features(folder, "train", 7)
    assert cache.shape == SHAPE
    for record, first in ((0, 0), (3, 8), (4, 128)):
        window = cache.window(record, first, 14)
        assert window.dtype == np.float16
        np.testing.assert_array_equal(window, VALUES[record, first // 8 : first // 8 + 14].astype(np.float16))
    for first in (4, 136, -8):
        with pytest.raises(ValueError):
            cache.window(0, first, 14)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache)).window(2, 16, 3), cache.window(2, 16, 3))


def test_starts_of_a_clip():
    assert [features.num_starts(frames) for frames in (15, 16, 23, 24, 225, 247, 248, 250, 400)] == [
        0, 1, 1, 2, 27, 29, 30, 30, 30,
    ]  # fmt: skip
    assert features.CLIP_FRAMES == 248


def test_short_clips_end_in_zeros(tmp_path):
    with writer(tmp_path) as out:
        out.write(range(5), VALUES[:, :27])
    stored = np.load(tmp_path / "train.npy")
    assert (stored[:, 27:] == 0).all() and (stored[:, :27] == VALUES[:, :27].astype(np.float16)).all()


def test_half_a_cache_is_none(tmp_path):
    with pytest.raises(UserError, match=r"2 of 5 records .*first: \[1, 3\]"), writer(tmp_path) as out:
        out.write([0, 2, 4], VALUES[[0, 2, 4]])
    with pytest.raises(KeyboardInterrupt), writer(tmp_path) as out:
        out.write(range(5), VALUES)
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="holds no visual features of 'train'"):
        features.Features(tmp_path, "train")


def test_features_that_are_not_finite(tmp_path):
    with pytest.raises(UserError, match="not finite"), writer(tmp_path) as out:
        out.write(range(5), VALUES * 1e6)


def test_headers(folder):
    assert features.read_header(folder) == {"fingerprint": 7, "source": "abc", "shape": list(SHAPE)}
    with pytest.raises(UserError, match="other records"):
        features.Features(folder, "train", 8)
    with writer(folder, "valid", source="xyz") as out:
        out.write(range(5), VALUES)
    assert features.read_header(folder, "valid")["source"] == "xyz"
    with pytest.raises(UserError, match="different extractors"):
        features.read_header(folder)


@pytest.mark.parametrize(
    "header", ["", "{}", "[1]", json.dumps({"source": "", "fingerprint": 7, "shape": [4, 30, 2, 3]})]
)
def test_broken_headers(folder, header):
    (folder / "train.json").write_text(header)
    with pytest.raises(UserError):
        features.Features(folder, "train", 7)
