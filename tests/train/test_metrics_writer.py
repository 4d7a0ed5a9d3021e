"""What is written, read back by others."""

import json
import sys
import types

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from synchformer_jax.errors import UserError
from synchformer_jax.train.config import base_config
from synchformer_jax.train.metrics_writer import PIXELS, MetricsWriter


class FakeRun:
    def __init__(self, given):
        self.given, self.logged, self.finished = given, [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def test_weights_and_biases_gets_all_and_a_restart_the_same_run(tmp_path, monkeypatch):
    runs = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **given: runs.append(FakeRun(given)) or runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = base_config("sync", "Ti")
    config.train.wandb_project = "offsets"
    for step in (0, 1):
        writer = MetricsWriter(tmp_path, step, config)
        writer.write(step + 1, "train", {"loss": 2.0})
        writer.close()
    first, second = runs
    assert first.given["project"] == "offsets" and first.given["config"]["stage"] == "sync"
    assert first.given["id"] == second.given["id"] and second.given["resume"] == "allow"
    assert first.logged == [(1, {"train/loss": 2.0})] and first.finished


def test_a_missing_weights_and_biases_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = base_config("sync", "Ti")
    config.train.wandb_project = "offsets"
    with pytest.raises(UserError, match=r"wandb_project=offsets needs .*pip install wandb"):
        MetricsWriter(tmp_path, 0, config)
    assert not list(tmp_path.iterdir())


def test_numbers_and_pictures_reach_tensorboard(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(3, "valid", {"loss": 0.5, "odd": float("nan")})
    writer.picture(3, "valid/similarity", np.eye(4) * 2 - 1)
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 3,
        "split": "valid",
        "loss": 0.5,
        "odd": None,
    }
    values = [value for path in (tmp_path / "tensorboard").glob("events*") for value in events(path)]
    scalars = {value.tag: value.simple_value for value in values if value.HasField("simple_value")}
    assert scalars["valid/loss"] == 0.5
    (picture,) = [value.image for value in values if value.HasField("image")]
    assert (picture.height, picture.width) == (4 * PIXELS, 4 * PIXELS)


def events(path):
    """The summaries of an event file: records of a length, its checksum, the data, its checksum."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        length = int.from_bytes(data[place : place + 8], "little")
        yield from event_pb2.Event.FromString(data[place + 12 : place + 12 + length]).summary.value
        place += 16 + length
