"""A small data set, a second one beside cached features, and batches that are closed after each test."""

import numpy as np
import pytest

from synchformer_jax.data import features, pipeline
from tests.data import make_records as make
from tests.data.make_records import COUNT


@pytest.fixture(scope="module")
def media():
    return make.video(), make.audio()


@pytest.fixture(scope="module")
def folder(media, tmp_path_factory):
    clips = [make.fields(index, media) for index in range(COUNT)]
    return make.write(tmp_path_factory.mktemp("data"), clips)


@pytest.fixture
def run():
    """Opens batches and closes them after the test."""
    opened = []

    def open_batches(config, train=True, process=0, processes=1, **more):
        opened.append(pipeline.batches(config, "train", train=train, process=process, processes=processes, **more))
        return opened[-1]

    yield open_batches
    for batches in opened:
        batches.close()


@pytest.fixture(scope="module")
def cache(folder, media, tmp_path_factory):
    """Visual features of `folder` that tell their start, record and view, and beside them a second data set."""
    out = tmp_path_factory.mktemp("cache")
    fingerprint = pipeline.Records(folder, "train").fingerprint
    header = features.Header("", fingerprint, COUNT, tokens=2, width=3, views=2, shard_records=COUNT)
    features.write_header(out, "train", header)
    for view in range(2):
        told = np.broadcast_arrays(np.arange(30), np.arange(COUNT)[:, None], view)
        values = np.broadcast_to(np.stack(told, axis=-1)[:, :, None], (COUNT, 30, 2, 3))
        features.write_shard(out, "train", header, view, 0, values.astype(np.float32))
    make.write(out, [make.fields(index, media) for index in range(3)], name="more", shards=1)
    return out
