"""Several data sets in one run: all their records alike, or by weight."""

import numpy as np
import pytest

from synchformer_jax.data import pipeline
from synchformer_jax.errors import UserError
from tests.data import make_records as make
from tests.data.make_records import COUNT, take


def test_mixtures_hold_all_their_records(folder, media, tmp_path, run):
    other = make.write(tmp_path, [make.fields(index, media, level="none") for index in range(3)], name="more")
    config = make.config(f"{folder}, {other}", **{"data.batch_size": 13})
    assert sorted(next(run(config))["record"]) == list(range(13))
    assert pipeline.levels(config, "train") == ["dense", "sparse"] * 5 + ["none"] * 3


def mixed(folder, media, tmp_path, weights, batch_size, others=3):
    other = make.write(tmp_path, [make.fields(index, media) for index in range(others)], name="more", shards=1)
    return make.config(f"{folder},{other}", **{"data.weights": weights, "data.batch_size": batch_size})


def test_weights_are_the_shares_of_every_batch(folder, media, tmp_path, run):
    """30 : 70 of 10 clips is 3 : 7, to within one, though the data sets have 10 and 3 records."""
    batches = run(mixed(folder, media, tmp_path, (0.3, 0.7), 10))
    records = [batch["record"] for batch in take(batches, 12)]
    first = np.array([(batch < COUNT).sum() for batch in records])
    assert abs(first - 3).max() <= 1 and abs(first.sum() - 36) <= 1
    # Neighbours are not always of the same two data sets.
    pairs = np.concatenate(records).reshape(-1, 2) < COUNT
    assert {tuple(pair) for pair in pairs} == {(False, False), (False, True), (True, False), (True, True)}


def test_each_data_set_of_a_mixture_has_its_own_epochs(folder, media, tmp_path, run):
    """Of 60 clips 45 are of the three records, cut in another way each time they come round."""
    config = mixed(folder, media, tmp_path, (1, 3), 12)
    batches = take(run(config), 5)
    order = np.concatenate([batch["record"] for batch in batches])
    big, small = order[order < COUNT], order[order >= COUNT]
    assert abs(len(small) - 45) <= 1
    assert (abs(np.bincount(small - COUNT) - 15) <= 1).all()
    assert (abs(np.bincount(big, minlength=COUNT) - 1.5) < 1).all()
    audio = np.concatenate([batch["audio"] for batch in batches])[order == COUNT]
    assert len({clip.tobytes() for clip in audio}) == len(audio)
    # Batch by batch its records are the next ones of the order in which it is read by itself.
    alone = np.concatenate([batch["record"] for batch in take(run(make.config(folder)), 5)])
    counts = np.cumsum([(batch["record"] < COUNT).sum() for batch in batches])
    for start, end in zip([0, *counts[:-1]], counts, strict=True):
        assert sorted(big[start:end]) == sorted(alone[start:end])


def test_weights_only_for_training(folder, media, tmp_path, run):
    config = mixed(folder, media, tmp_path, (1, 3), 13)
    assert next(run(config, train=False))["record"].tolist() == list(range(13))


@pytest.mark.parametrize("weights", [(1,), (1, 2, 3), (1, 0), (1, -1)])
def test_weights_that_do_not_fit(folder, media, tmp_path, run, weights):
    with pytest.raises(UserError, match=r"config.data.weights.* 2 data sets"):
        run(mixed(folder, media, tmp_path, weights, 4))
