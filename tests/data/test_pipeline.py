"""Batches: what is in them, that they are the same however they are made, and what damage does to them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from synchformer_jax import clock
from synchformer_jax.errors import UserError
from synchformer_jax.ops.colour import planes_to_rgb
from tests.data import make_records as make
from tests.data.make_records import COUNT, positions, same, take
from tests.simulated import environment

GRID = clock.offset_grid()


# Of every stage, of cached features and of a mixture: what must hold for all batches is tested for each.
KINDS = {
    "stage 1": {"stage": "segment_avclip", "data.pixels": "yuv420", "augment.upscale": 0.5},
    "sync": {},
    "synchronizability": {"stage": "synchronizability", "model.segments": 13, "model.head.classes": 2},
    "cached": {},
    "mixture": {"stage": "segment_avclip", "data.weights": (0.3, 0.7)},
}


def with_cache(config, kind, cache):
    if kind == "cached":
        config.data.visual_features = str(cache)
    if kind == "mixture":
        config.data.train = f"{config.data.train},{cache / 'more'}"


def test_stage1_batches(folder, run):
    """14 segments; the sound is at the picture's place but for the jitter."""
    seen = []
    for batch in take(run(make.config(folder, stage="segment_avclip")), 6):
        assert batch["frames"].shape == (4, 224, 32, 32, 3) and batch["frames"].dtype == np.uint8
        assert batch["audio"].shape == (4, 143_360) and batch["audio"].dtype == np.int16
        assert batch.keys() == {"frames", "audio", "record"} and batch["record"].dtype == np.int64
        seen += [(frame, sample - 640 * frame) for frame, sample in positions(batch)]
    assert len({frame for frame, _ in seen}) > 8
    jitter = np.array([jitter for _, jitter in seen])
    assert abs(jitter).max() <= 800 and jitter.std() > 300


def test_sync_batches(folder, run):
    """The sound starts `offset_sec` after the picture in the file, so what is heard comes early."""
    targets = set()
    for batch in take(run(make.config(folder)), 12):
        assert batch["frames"].shape == (4, 120, 32, 32, 3) and batch["audio"].shape == (4, 76_800)
        assert batch["target"].dtype == np.int32 and batch["offset_sec"].dtype == np.float32
        np.testing.assert_allclose(batch["offset_sec"], GRID[batch["target"]], atol=1e-6)
        for (frame, sample), offset in zip(positions(batch), batch["offset_sec"], strict=True):
            shift = (sample - 640 * frame) / 16_000
            assert abs(shift - offset) <= 0.05 + 1e-4
        targets |= set(batch["target"].tolist())
    assert len(targets) > 14


def test_synchronizability_batches(folder, run):
    config = make.config(folder, **{"stage": "synchronizability", "model.segments": 13, "model.head.classes": 2})
    targets = []
    for batch in take(run(config), 5):
        assert batch["frames"].shape == (4, 112, 32, 32, 3) and batch["audio"].shape == (4, 71_680)
        assert ((abs(batch["offset_sec"]) > 2.1) == (batch["target"] == 0)).all()
        for (frame, sample), offset in zip(positions(batch), batch["offset_sec"], strict=True):
            assert abs((sample - 640 * frame) / 16_000 - offset) <= 0.05 + 1e-4
        targets += batch["target"].tolist()
    assert set(targets) == {0, 1}


def test_cached_features(folder, cache, run):
    """Features tell their start, record and view, so the window and its sound can be told."""
    config = make.config(folder, **{"data.visual_features": str(cache)})
    starts, views = set(), set()
    for batch in take(run(config), 12):
        assert batch.keys() == {"visual", "audio", "target", "offset_sec", "record"}
        assert batch["visual"].shape == (4, 14, 2, 3) and batch["visual"].dtype == ml_dtypes.bfloat16
        visual = batch["visual"].astype(int)
        first, views = visual[:, 0, 0, 0], views | set(visual[..., 2].ravel().tolist())
        np.testing.assert_array_equal(visual[:, :, 1, 0], first[:, None] + np.arange(14))
        np.testing.assert_array_equal(visual[:, :, 0, 1], np.repeat(batch["record"][:, None], 14, 1))
        for start, audio, offset in zip(first, batch["audio"], batch["offset_sec"], strict=True):
            sample = make.sample_number(audio, start * 8 * 640)
            assert len(audio) == 76_800 and abs(sample / 16_000 - start * 0.32 - offset) <= 0.05 + 1e-4
        starts |= set(first.tolist())
    assert len(starts) > 10 and views == {0, 1}
    config.data.workers = 1  # bfloat16 travels between processes, too
    np.testing.assert_array_equal(batch["visual"], take(run(config), 12)[-1]["visual"])
    with pytest.raises(UserError, match="other records"):
        run(make.config(f"{folder},{folder}", **{"data.visual_features": str(cache)}))


def test_evaluation_sees_each_record_once(folder, run):
    config = make.config(folder)
    batches = run(config, train=False)
    assert len(batches) == 3
    made = list(batches)
    assert len(made) == 3 and all(len(batch["frames"]) == 4 for batch in made)
    record, valid, target = (np.concatenate([batch[name] for batch in made]) for name in ("record", "valid", "target"))
    assert valid.dtype == bool and valid.tolist() == [True] * COUNT + [False] * 2
    assert record[valid].tolist() == list(range(COUNT))
    assert target[valid].tolist() == [(8 * index + 5) % 21 for index in range(COUNT)]
    for batch in made:
        for (frame, sample), offset in zip(positions(batch), batch["offset_sec"], strict=True):
            assert sample - 640 * frame == round(float(offset) * 16_000)
    again = list(run(make.config(folder, seed=99), train=False))
    assert all(same(*pair) for pair in zip(made, again, strict=True))
    with pytest.raises(StopIteration):
        next(batches)


def test_crop_is_random_in_training_and_central_in_evaluation(media, tmp_path, run):
    """Columns as bright as their number."""
    ramp = np.broadcast_to((np.arange(44) * 5)[None, :, None], (32, 44, 3)).astype(np.uint8)
    film = make.video(make=lambda number: ramp)
    folder = make.write(tmp_path, [make.fields(index, (film, media[1])) for index in range(8)])
    columns = lambda batch: batch["frames"][:, 0, :, :, 0].mean(1)[:, 4] / 5 - 4  # noqa: E731
    config = make.config(folder, **{"data.batch_size": 8})
    np.testing.assert_allclose(columns(next(run(config, train=False))), 6, atol=0.7)
    left = columns(next(run(config)))
    assert left.min() > -0.7 and left.max() < 12.7 and left.std() > 2


def test_every_epoch_is_another_permutation(folder, run):
    order = np.concatenate([batch["record"] for batch in take(run(make.config(folder)), 10)]).reshape(4, COUNT)
    for epoch in order:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in order}) == 4
    other = np.concatenate([batch["record"] for batch in take(run(make.config(folder, seed=6)), 3)])
    assert other[:COUNT].tolist() != order[0].tolist()


def test_choices_change_with_the_epoch(folder, run):
    """One record, again and again: its offsets differ."""
    batches = take(run(make.config(folder, **{"data.batch_size": COUNT})), 4)
    targets = [int(batch["target"][batch["record"] == 3][0]) for batch in batches]
    assert len(set(targets)) > 1


@pytest.mark.parametrize(
    "kind, workers",
    [
        pytest.param(kind, workers, marks=() if (kind, workers) == ("mixture", 2) else pytest.mark.slow)
        for kind in KINDS
        for workers in (1, 2, 4)
    ],
)
def test_batches_do_not_depend_on_workers(folder, cache, run, kind, workers):
    config = make.config(folder, **{**KINDS[kind], "data.batch_size": 2})
    with_cache(config, kind, cache)
    want = take(run(config), 5)
    config.data.workers = workers
    batches = run(config)
    assert all(same(*pair) for pair in zip(want[:4], take(batches, 4), strict=True))
    state = batches.get_state()
    config.data.workers = 0
    resumed = run(config)
    resumed.set_state(state)
    assert same(want[4], next(resumed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hosts, train", [(4, True), (2, True), (4, False)])
def test_hosts_together_have_the_batch(folder, cache, run, kind, hosts, train):
    """Row by row, so that groups of neighbours in contrastive learning are the same too."""
    config = make.config(folder, **{**KINDS[kind], "data.batch_size": 8})
    with_cache(config, kind, cache)
    count = 4 if train else 2
    want = take(run(config, train), count)
    made = [take(run(config, train, process, hosts), count) for process in range(hosts)]
    for step in range(count):
        for name in want[step]:
            assert np.array_equal(np.concatenate([host[step][name] for host in made]), want[step][name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train", [True, False])
def test_resume_at_any_step(folder, cache, run, kind, train):
    config = make.config(folder, **KINDS[kind])
    with_cache(config, kind, cache)
    count = 6 if train else 3
    whole, states = run(config, train), []
    want = []
    for _ in range(count):
        states.append(json.loads(json.dumps(whole.get_state())))
        want.append(next(whole))
    for step, state in enumerate(states):
        resumed = run(config, train)
        next(resumed)
        resumed.set_state(state)
        assert same(next(resumed), want[step])
    assert same(next(run(config, train, start_step=2)), want[2])


def test_planes_are_the_pixels(folder, run):
    """Turned into RGB on the device they are what RGB batches hold."""
    for stage in ({"stage": "segment_avclip"}, {}):
        planes = next(run(make.config(folder, **{**stage, "data.pixels": "yuv420"})))
        rgb = next(run(make.config(folder, **stage)))
        assert planes["frames"].shape == (*rgb["frames"].shape[:2], 32 * 32 * 3 // 2)
        got = np.asarray(planes_to_rgb(planes["frames"], 32, 32)).astype(int)
        assert abs(got - rgb["frames"]).max() <= 3  # 0 where FFmpeg uses its vector instructions


def test_zoom(folder, run):
    """Half the clips carry a part of their square, chosen anew each epoch; evaluation never does."""
    config = make.config(folder, **{"data.batch_size": COUNT, "augment.upscale": 0.5, "stage": "segment_avclip"})
    zoom = np.concatenate([batch["zoom"] for batch in take(run(config), 12)])
    assert zoom.dtype == np.int32 and zoom.shape == (120, 3)
    whole = zoom[:, 2] == 32
    assert (zoom[whole, :2] == 0).all() and set(zoom[~whole, 2]) == {27} and 40 < whole.sum() < 80
    assert "zoom" not in next(run(config, train=False))


def test_small_data_sets_repeat(media, tmp_path, run, caplog):
    folder = make.write(tmp_path, [make.fields(index, media) for index in range(3)], shards=1)
    batch = next(run(make.config(folder, **{"data.batch_size": 8})))
    assert np.bincount(batch["record"], minlength=3).min() >= 2
    assert "fewer than a batch" in caplog.text


def test_whole_clips(media, tmp_path, run):
    """For the feature cache: 248 frames from the start, and how many half-segment starts a clip has."""
    clips = [make.fields(0, media), make.fields(1, (make.video(230), media[1]), num_frames=230)]
    folder = make.write(tmp_path, clips, shards=1)
    batch = next(run(make.config(folder, **{"data.batch_size": 2}), train=False, stage="clip"))
    assert batch["frames"].shape == (2, 248, 32, 32, 3) and batch["starts"].tolist() == [30, 27]
    assert [make.frame_number(frame) for frame in batch["frames"][0]] == list(range(248))
    assert [make.frame_number(frame) for frame in batch["frames"][1][:230]] == list(range(230))
    assert (batch["frames"][1][230:] == 0).all()


@pytest.mark.parametrize(
    "more, changes, message",
    [
        ({"num_frames": 200}, {"stage": "segment_avclip"}, r"record 0 \(clip 0\) lasts 8.00 s and .* needs 8.96 s"),
        ({"num_frames": 1}, {}, r"lasts 0.04 s"),
        ({"num_samples": 0}, {}, r"lasts 0.00 s"),
        ({}, {"data.size": 64}, r"is 44x32 and config.data.size asks for 64x64"),
    ],
)
def test_clips_that_do_not_serve(media, tmp_path, run, more, changes, message):
    folder = make.write(tmp_path, [make.fields(0, media, **more)], shards=1)
    with pytest.raises(UserError, match=message):
        next(run(make.config(folder, **changes)))


def test_split_without_records(tmp_path, run):
    with pytest.raises(UserError, match=r"split 'train' of .* is empty"):
        run(make.config(make.write(tmp_path, [], shards=1)))


def test_configs_that_do_not_serve(folder, run):
    with pytest.raises(UserError, match="batch_size=4 cannot be divided over 3 hosts"):
        run(make.config(folder), processes=3)
    with pytest.raises(UserError, match="names no folder"):
        run(make.config(""))
    with pytest.raises(UserError, match="no folder"):
        run(make.config("/nowhere/at/all"))
    with pytest.raises(UserError, match="no visual features"):
        run(make.config(folder, **{"data.visual_features": folder}))


GO_ON = """
import multiprocessing, signal, sys
from synchformer_jax.data import pipeline
from tests.data import make_records as make

if __name__ == "__main__":
    config = make.config(sys.argv[1])
    config.data.workers = 1
    for several in (1, None):  # a pass that is given up, and one to its end
        batches = pipeline.batches(config, "train", train=False)
        for batch, _ in zip(batches, range(several or 99)):
            pass
        batches.close()
    asked = []
    signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    batches = pipeline.batches(config, "train", train=True)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    while not asked:
        next(batches)
    batches.close()
"""


@pytest.fixture
def going_on(folder, tmp_path):
    """A process that loads batches until it gets a signal, and its workers."""
    (tmp_path / "go_on.py").write_text(GO_ON)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, tmp_path / "go_on.py", folder]
    process = subprocess.Popen(command, env=environment(1), start_new_session=True, **pipes)
    yield process, [int(worker) for worker in process.stdout.readline().split()]
    process.kill()


def test_workers_leave_ctrl_c_to_the_run_and_no_shared_memory_behind(going_on):
    process, workers = going_on
    assert workers
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert "leaked" not in told and "Traceback" not in told


def test_workers_go_with_a_run_that_was_killed(going_on):
    def lives(worker):
        stat = Path(f"/proc/{worker}/stat")
        return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"

    process, workers = going_on
    assert workers and all(map(lives, workers))
    process.kill()
    process.wait()
    ends = time.monotonic() + 20
    while any(map(lives, workers)) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not any(map(lives, workers))
