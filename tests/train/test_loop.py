"""Whole runs of a tiny model: what they leave on disk, and that stopping in any way changes nothing."""

import itertools
import json
import os
import shutil
import signal
from typing import ClassVar

import jax
import numpy as np
import pytest

from synchformer_jax.errors import UserError
from synchformer_jax.train import bad_steps, checkpoint, initial, loop, state
from synchformer_jax.train.interrupt import Interrupted
from synchformer_jax.train.optimizer import make_schedule
from tests.train.tiny import FakeBatches


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder whose runs read batches from a formula."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.pipeline, "batches", FakeBatches)
        yield folder


@pytest.fixture(scope="module")
def config(tiny_config, place):
    return tiny_config("sync", place)


@pytest.fixture(scope="module")
def straight(config, place):
    """A run that nothing disturbs."""
    return place / "straight", loop.fit(config, place / "straight")


SPEEDS = ("clips_per_sec", "data_wait", "model_tflops_per_sec", "host_memory_gib")


def lines(workdir, split):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in SPEEDS} for row in rows if row["split"] == split]


def assert_same_run(workdir, other):
    for split in ("train", "valid"):
        assert lines(workdir, split) == lines(other, split)
    mine, theirs = (checkpoint.load_arrays(folder, 6)[0] for folder in (workdir, other))
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


class Disturbed(FakeBatches):
    """Does something at a step of training, once."""

    at, what = 0, None

    def __next__(self):
        batch = super().__next__()
        if self.train and self.step == Disturbed.at and Disturbed.what:
            what, Disturbed.what = Disturbed.what, None
            what()
        return batch


def test_a_run_leaves_metrics_config_events_and_checkpoints(straight, config):
    workdir, metrics = straight
    assert [row["step"] for row in lines(workdir, "train")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in lines(workdir, "valid")] == [3, 6]
    assert lines(workdir, "valid")[-1] == {"step": 6, "split": "valid", **metrics}
    assert json.loads((workdir / "config.json").read_text())["stage"] == "sync"
    assert list((workdir / "tensorboard").glob("events*"))
    row = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert {"loss", "learning_rate", "grad_norm", *SPEEDS} <= row.keys()
    assert "mfu" not in row  # no peak is known of a CPU
    best = json.loads((workdir / "best.json").read_text())["step"]
    assert set(checkpoint.steps(workdir)) == {4, 6, best}


def test_evaluation_counts_every_clip_once(straight, config):
    from synchformer_jax.objectives import offset

    workdir, metrics = straight
    model, _ = checkpoint.load_model(workdir, 6)
    batches = FakeBatches(config, "valid", train=False)
    from synchformer_jax.train import step

    blueprint, arrays = state.take_apart(model)
    run = state.prepare(config, loop.meshes.make_mesh(config), blueprint)
    some = [next(batches), next(batches)]
    logits = np.concatenate([step.make_eval_step(run)(arrays, step.device_fields(batch))["logits"] for batch in some])
    target = np.concatenate([batch["target"] for batch in some])
    assert metrics["loss"] == pytest.approx(float(offset.cross_entropy(logits, target)), rel=1e-4)
    assert metrics["accuracy"] == pytest.approx(float(offset.accuracy(logits, target)))


def test_frozen_parameters_stay_bit_for_bit_and_have_no_moments(straight, config):
    workdir, _ = straight
    blueprint, before = initial.make_initial(config)
    after, _, _ = checkpoint.load_arrays(workdir, 6)
    for name in before:
        frozen = name.startswith(("visual", "audio"))
        assert np.array_equal(before[name], after[name]) == frozen or not np.any(np.asarray(before[name])), name
    run = state.prepare(config, loop.meshes.make_mesh(config), blueprint)
    moments = jax.eval_shape(run.optimizer.init, run.abstract_params())
    trained = sum(np.size(after[name]) for name in after if name.startswith("head"))
    assert sum(leaf.size for leaf in jax.tree.leaves(moments)) == 2 * trained + 2  # and two counters


def test_a_finished_run_is_over_at_once(straight, config, capsys, monkeypatch):
    monkeypatch.setattr(loop, "Training", None)
    assert loop.fit(config, straight[0]) == straight[1]
    assert "is finished: 6 of 6 steps" in capsys.readouterr().out


def test_a_crash_changes_nothing(straight, config, place, monkeypatch):
    def crash():
        raise RuntimeError("the lights went out")

    monkeypatch.setattr(loop.pipeline, "batches", Disturbed)
    Disturbed.at, Disturbed.what = 6, crash
    with pytest.raises(RuntimeError, match="lights"):
        loop.fit(config, place / "crash")
    assert checkpoint.steps(place / "crash")[-1] == 4
    # What a process killed while writing leaves behind.
    (place / "crash" / "checkpoints" / "5.orbax-checkpoint-tmp-1").mkdir()
    with (place / "crash" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "spl')
    loop.fit(config, place / "crash")
    assert_same_run(place / "crash", straight[0])
    assert not list((place / "crash" / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_changes_nothing(straight, config, place, monkeypatch, number, code):
    workdir = place / f"signal{code}"
    monkeypatch.setattr(loop.pipeline, "batches", Disturbed)
    Disturbed.at, Disturbed.what = 5, lambda: os.kill(os.getpid(), number)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop:
        loop.fit(config, workdir)
    assert (stop.value.code, stop.value.step) == (code, 5)
    assert signal.getsignal(number) == before
    assert checkpoint.steps(workdir)[-1] == 5
    loop.fit(config, workdir)
    assert_same_run(workdir, straight[0])


def test_a_loader_that_dies_of_the_signal_does_no_harm(straight, config, place, monkeypatch):
    def both():
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("worker is gone")

    monkeypatch.setattr(loop.pipeline, "batches", Disturbed)
    Disturbed.at, Disturbed.what = 4, both
    with pytest.raises(Interrupted) as stop:
        loop.fit(config, place / "loader")
    assert stop.value.step == 3
    loop.fit(config, place / "loader")
    assert_same_run(place / "loader", straight[0])


def test_a_loss_that_is_no_number_stops_with_its_records(config, place, monkeypatch):
    make = loop.steps.make_train_step

    def broken(run):
        step = make(run)

        def call(state, frozen, batch):
            state, metrics = step(state, frozen, batch)
            bad = int(state.step) == 3
            return state, metrics | {"loss": metrics["loss"] + (np.nan if bad else 0)}

        return call

    monkeypatch.setattr(loop.steps, "make_train_step", broken)
    with pytest.raises(UserError, match="loss of step 3 is nan"):
        loop.fit(config, place / "nan")
    told = json.loads((place / "nan" / "bad_step_00000003_0.json").read_text())
    assert told["records"] == list(range(300, 308))
    assert checkpoint.steps(place / "nan") == [2]


class Spoiled(Disturbed):
    """Batches of which some spoil the loss: silence makes it no number, a constant sound makes it a spike."""

    spoil: ClassVar[dict[int, int]] = {}

    def __next__(self):
        batch = super().__next__()
        if self.train and self.step in Spoiled.spoil:
            batch["audio"] = np.full_like(batch["audio"], Spoiled.spoil[self.step])
        return batch


@pytest.fixture
def spoiled(config, monkeypatch):
    """A config that skips bad steps; step 3 is no number and step 5 a spike, inside the compiled step."""
    honest = loop.steps.loss_and_metrics

    def spoil(run, params, frozen, batch, *rest):
        loss, metrics = honest(run, params, frozen, batch, *rest)
        audio = batch["audio"]
        factor = jax.numpy.where((audio == 0).all(), np.nan, jax.numpy.where((audio == 7).all(), 1e4, 1.0))
        return loss * factor, metrics

    monkeypatch.setattr(loop.steps, "loss_and_metrics", spoil)
    monkeypatch.setattr(loop.pipeline, "batches", Spoiled)
    monkeypatch.setattr(bad_steps, "NEEDED", 2)
    Spoiled.spoil = {3: 0, 5: 7}
    config = config.copy_and_resolve_references()
    config.train.update({"on_bad_step": "skip", "spike_factor": 20.0, "checkpoint_every": 1, "keep": 9})
    return config


def test_bad_steps_are_skipped_whole_and_told(spoiled, place, capfd):
    workdir = place / "skip"
    loop.fit(spoiled, workdir)
    arrays = [checkpoint.load_arrays(workdir, step)[0] for step in range(1, 7)]
    moved = [any(not np.array_equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(arrays)]
    assert moved == [True, False, True, False, True]  # steps 2 to 6
    assert all(np.isfinite(value).all() for value in arrays[-1].values())
    rows = lines(workdir, "train")
    assert [row["skipped"] for row in rows] == [0, 0, 1, 0, 1, 0]
    assert rows[2]["loss"] is None and rows[4]["loss"] > 1e3
    rates = [float(make_schedule(spoiled)(good)) for good in (0, 1, 2, 2, 3, 3)]  # by updates that were made
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)
    for step in (3, 5):
        told = json.loads((workdir / f"bad_step_0000000{step}_0.json").read_text())
        assert told["records"] == list(range(100 * step, 100 * step + 8))
    printed = capfd.readouterr().err
    assert "The loss of step 3 is nan" in printed and "spike_factor=20.0 times the usual" in printed


@pytest.mark.parametrize("at", [4, 5])
def test_a_run_with_bad_steps_goes_on_the_same(spoiled, place, at):
    straight = place / "skip"
    if not straight.exists():
        loop.fit(spoiled, straight)
    workdir = place / f"skip{at}"
    Disturbed.at, Disturbed.what = at, lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        loop.fit(spoiled, workdir)
    loop.fit(spoiled, workdir)
    assert_same_run(workdir, straight)


def test_a_spike_stops_where_bad_steps_stop(spoiled, place):
    spoiled.train.on_bad_step = "stop"
    Spoiled.spoil = {5: 7}
    with pytest.raises(UserError, match=r"loss of step 5 .*more than config.train.spike_factor=20.0 times the usual"):
        loop.fit(spoiled, place / "spike")
    assert checkpoint.steps(place / "spike")[-1] == 4


@pytest.mark.parametrize("at", [2, 5])
def test_a_report_over_an_interruption_is_the_same(config, place, at):
    """Reports come after steps 4 and 6; evaluation and interruption fall between them."""
    seldom = config.copy_and_resolve_references()
    seldom.train.log_every = 4
    straight = place / "seldom"
    if not straight.exists():
        loop.fit(seldom, straight)
    workdir = place / f"seldom{at}"
    Disturbed.at, Disturbed.what = at, lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.pipeline, "batches", Disturbed)
        with pytest.raises(Interrupted):
            loop.fit(seldom, workdir)
        loop.fit(seldom, workdir)
    assert_same_run(workdir, straight)
    every = [row["loss"] for row in lines(place / "straight", "train")]
    assert lines(straight, "train")[0]["loss"] == pytest.approx(np.mean(every[:4]), rel=1e-6)


@pytest.mark.parametrize(("looks", "kept"), [(0, []), (2, [2])])
def test_a_full_disk_ends_a_run_without_half_a_checkpoint(config, place, monkeypatch, looks, kept):
    """The disk fills up after it was looked at so many times: before the first step, then before each checkpoint."""
    short = config.copy_and_resolve_references()
    short.train.eval_every = 0
    usage, free = shutil.disk_usage(place), iter([2**40] * looks)
    monkeypatch.setattr("synchformer_jax.files.shutil.disk_usage", lambda _: usage._replace(free=next(free, 1000)))
    with pytest.raises(UserError, match=r"checkpoints has 0 MB free .* Free some space"):
        loop.fit(short, place / f"full{looks}")
    assert checkpoint.steps(place / f"full{looks}") == kept
    assert not list((place / f"full{looks}" / "checkpoints").glob("*tmp*"))


def test_a_profile_is_written(config, place):
    short = config.copy_and_resolve_references()
    short.train.update({"eval_every": 0, "steps": 5})
    loop.fit(short, place / "profile", profile=True)  # ends while the trace still runs
    assert list((place / "profile" / "profile").rglob("*.xplane.pb"))


def test_patience_ends_a_run_that_no_longer_gets_better(config, place, monkeypatch, capsys):
    monkeypatch.setattr(loop, "evaluate", lambda *_: ({"loss": 1.0, "accuracy": 0.5}, {}))
    config = config.copy_and_resolve_references()
    config.train.update({"eval_every": 1, "patience": 2})
    loop.fit(config, place / "patience")
    assert checkpoint.steps(place / "patience") == [1, 2, 3]
    assert json.loads((place / "patience" / "best.json").read_text())["step"] == 1
    loop.fit(config, place / "patience")
    assert "stopped early" in capsys.readouterr().out


def test_another_model_in_the_same_folder_is_refused(straight, config):
    other = config.copy_and_resolve_references()
    other.optimizer.learning_rate = 1.0
    with pytest.raises(UserError, match=r"config.optimizer.learning_rate=0.001, now it is 1.0"):
        loop.fit(other, straight[0])


def test_missing_checkpoints_are_named(tmp_path, straight):
    with pytest.raises(UserError, match="holds no checkpoints"):
        checkpoint.load_model(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint of step 1. It has: .*6"):
        checkpoint.load_model(straight[0], 1)


def test_a_prefix_that_freezes_nothing_is_an_error(config, place):
    other = config.copy_and_resolve_references()
    other.freeze = ("visual", "hat")
    with pytest.raises(UserError, match=r"config.freeze holds 'hat'.*audio, head, visual"):
        loop.fit(other, place / "hat")
