"""A folder of videos, some of them bad, becomes a data set: whole, resumable, the same each time."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from data_prep import folder, run_control, sources, workers
from data_prep.frontend import Settings, prepare
from synchformer_jax.data import records
from synchformer_jax.errors import UserError
from synchformer_jax.media import decode
from tests.data_prep.videos import SMALL, contents, write_clip

OPTIONS = {"name": "small", "short_side": 48, "min_sec": 1.5, "max_sec": 2.0, "shards": 3, "workers": 1}
REPOSITORY = Path(__file__).resolve().parents[2]


def prepare_folder(videos, out, **changes) -> dict:
    return prepare(folder.find_splits, videos, Settings(out=out, **{**OPTIONS, **changes}))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Seven good videos and six bad ones."""
    here = tmp_path_factory.mktemp("videos")
    for i in range(5):
        write_clip(here / f"good {i}.mp4", seed=i)
    write_clip(here / "deep" / "ä [#6].mp4", seed=6, sec=2.4, size=(96, 80))
    write_clip(here / "good 0.mov", seed=7)
    (here / "good 1.json").write_text('{"level": "sparse"}')
    (here / "good 2.json").write_text("not json")
    write_clip(here / "short.mp4", seed=8, sec=0.8)
    write_clip(here / "still.mp4", seed=9, still_share=1.0)
    write_clip(here / "silent.mp4", seed=10, loud=False)
    (here / "broken.mp4").write_bytes(b"not a video" * 100)
    (here / "empty.mkv").touch()
    with av.open(str(here / "good 3.mp4")) as source, av.open(str(here / "mute.mp4"), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    (here / "notes.txt").write_text("no video")
    (here / ".hidden.mp4").write_bytes(b"a file in the making")
    return here


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory) -> Path:
    """The data set of `videos`, OUT/NAME/VERSION."""
    out = tmp_path_factory.mktemp("out")
    prepare_folder(videos, out)
    return out / "small" / "1.0.0"


def read_manifest(out) -> dict:
    return json.loads((records.find(out) / "manifest.json").read_text())


def all_records(folder: Path) -> dict[str, dict]:
    found = {}
    for split in sources.SPLITS:
        shards = records.Shards(folder, split)
        for i in range(len(shards)):
            example = records.decode_example(shards[i])
            found[example["clip_id"].decode()] = {**example, "split": split}
    return found


def test_every_video_is_a_record_or_has_a_reason(prepared, videos):
    found = all_records(prepared)
    assert set(found) == {"good 0.mp4", "good 0.mov", "good 1", "good 2", "good 3", "good 4", "deep/ä [#6]"}
    reasons = {}
    for line in (prepared / "rejected.jsonl").read_text().splitlines():
        entry = json.loads(line)
        reasons[entry["clip"]] = entry["reason"]
        assert entry["split"] == "train"  # what its header shows to be bad is not held out
    assert reasons.pop("broken").startswith("it cannot be read")
    assert reasons == {
        "short": "too short: 0.8 s of picture with sound",
        "still": "still picture",
        "silent": "silent",
        "empty": "the file is empty",
        "mute": "no sound",
    }


def test_records_hold_what_the_videos_show(prepared, videos):
    found = all_records(prepared)
    for name, path in (("good 1", "good 1.mp4"), ("deep/ä [#6]", "deep/ä [#6].mp4"), ("good 0.mov", "good 0.mov")):
        record, clip = found[name], decode.decode(videos / path, short_side=48, duration_sec=2.0)
        with av.open(io.BytesIO(record["video"])) as container:
            assert [s.type for s in container.streams] == ["video"]
            stream = container.streams.video[0]
            pictures = list(container.decode(stream))
            times = [picture.time for picture in pictures]
            frames = np.stack([picture.to_ndarray(format="rgb24") for picture in pictures])
        np.testing.assert_allclose(times, np.arange(50) / 25, atol=1e-6)
        assert [i for i, picture in enumerate(pictures) if picture.key_frame] == [0, 25]
        assert frames.shape == clip.frames.shape == (record["num_frames"], record["height"], record["width"], 3)
        distance = np.abs(frames[:, None, ::3, ::3].astype(float) - clip.frames[None, :, ::3, ::3]).mean((2, 3, 4))
        assert distance.diagonal().mean() < 5
        np.testing.assert_array_equal(distance.argmin(1), np.arange(50))
        audio, rate = soundfile.read(io.BytesIO(record["audio"]), dtype="int16")
        assert (rate, len(audio)) == (16000, record["num_samples"]) == (16000, 32000)
        np.testing.assert_array_equal(audio, clip.audio)
    assert found["deep/ä [#6]"]["width"] == 58  # 96 * 48 / 80 is 57.6
    assert {name: record["level"] for name, record in found.items() if record["level"]} == {"good 1": b"sparse"}


def test_manifest_and_metadata_agree_with_the_files(prepared):
    import tensorflow_datasets as tfds

    manifest = json.loads((prepared / "manifest.json").read_text())
    assert {split: entry["records"] for split, entry in manifest["splits"].items()} == {
        split: len(records.Shards(prepared, split)) for split in sources.SPLITS
    }
    assert sum(entry["rejected"] for entry in manifest["splits"].values()) == 6
    for entry in manifest["splits"].values():
        for shard in entry["shards"]:
            data = (prepared / shard["file"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    info = tfds.builder_from_directory(str(prepared)).info
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        split: entry["records"] for split, entry in manifest["splits"].items()
    }


def test_processes_and_order_of_files_change_nothing(prepared, videos, tmp_path):
    # Another place, other processes: the same bytes, down to what describes them.
    command = [sys.executable, "-m", "data_prep.folder", videos, tmp_path, *SMALL, "--workers=2"]
    done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "small" / "1.0.0") == contents(prepared)
    assert "Rejected 6" in done.stderr and "1 silent" in done.stderr


def test_only_what_is_missing_is_made_again(prepared, videos, tmp_path, monkeypatch):
    there = tmp_path / "small" / "1.0.0"
    shutil.copytree(prepared, there)
    before = contents(there)
    lost = records.split_shards(there)["train"][1]
    lost.unlink()
    (there / f".{lost.name}.99999.tmp").write_bytes(b"half a shard")
    (there / ".done" / ".x.99999.tmp.json").write_text("{")
    (there / "small-train.tfrecord-00000-of-00007").write_bytes(b"of an earlier plan")
    made = []
    make = workers.make_record
    monkeypatch.setattr(workers, "make_record", lambda source, options: made.append(source) or make(source, options))
    prepare_folder(videos, tmp_path)
    assert contents(there) == before
    assert 0 < len(made) < 6
    # A video that changed is made again, and so is everything under other options.
    made.clear()
    prepare_folder(videos, tmp_path, short_side=32, shards=1)
    assert len(made) == 13
    assert all(len(paths) == 1 for paths in records.split_shards(there).values())
    assert {record["height"] for record in all_records(there).values()} == {32}


def test_stopping_leaves_whole_shards_only(prepared, videos, tmp_path, monkeypatch):
    there = tmp_path / "small" / "1.0.0"
    make, seen = workers.make_record, []

    def interrupted(*args):
        seen.append(args)
        if len(seen) == 6:
            signal.raise_signal(signal.SIGINT)
        return make(*args)

    monkeypatch.setattr(workers, "make_record", interrupted)
    result = CliRunner().invoke(
        folder.app,
        [str(videos), str(tmp_path), *SMALL, "--workers=1"],
    )
    assert result.exit_code == 130
    assert len(seen) == 6
    shards = [path.name for path in there.iterdir() if ".tfrecord-" in path.name and not path.name.endswith(".index")]
    assert 0 < len(shards) < 5
    assert sorted(f"{name}.json" for name in shards) == sorted(path.name for path in (there / ".done").iterdir())
    assert not [path for path in there.rglob("*") if ".tmp" in path.name]
    with pytest.raises(UserError, match="no prepared data set"):
        records.find(tmp_path)
    monkeypatch.setattr(workers, "make_record", make)
    prepare_folder(videos, tmp_path)
    assert contents(there) == contents(prepared)


@pytest.mark.slow
def test_killed_at_random_times_it_ends_with_the_same_bytes(videos, tmp_path):
    (tmp_path / "videos").mkdir()
    for i in range(104):
        (tmp_path / "videos" / f"{i}.mp4").symlink_to(videos / f"good {i % 5}.mp4")

    def start(out):
        command = [sys.executable, "-m", "data_prep.folder", tmp_path / "videos", out, *SMALL, "--shards=10"]
        command = [str(part) for part in [*command, "--workers=2"]]
        return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True)

    begun = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    took = time.monotonic() - begun
    moments, shards = random.Random(7), []
    for _ in range(5):
        process = start(tmp_path / "killed")
        time.sleep(moments.uniform(0.2, 0.7) * took)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shards.append(len(list((tmp_path / "killed").rglob(".done/*.json"))))
    assert start(tmp_path / "killed").wait() == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert sum(split["records"] for split in read_manifest(tmp_path / "killed")["splits"].values()) == 104
    assert shards[-1] > 0  # the kills came amid the work, which went on from there


def test_a_full_disk_is_noticed_before_and_while_writing(videos, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"MB free and about .* needed"):
        prepare_folder(videos, tmp_path)
    monkeypatch.undo()

    def full(self, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.ShardWriter, "write", full)
    with pytest.raises(UserError, match=r"No space left on device.*Give a folder"):
        prepare_folder(videos, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if ".tfrecord-" in path.name]


def test_no_video_left_is_an_error(tmp_path):
    for i in range(3):
        write_clip(tmp_path / "videos" / f"{i}.mp4", seed=i, sec=0.4)
    with pytest.raises(UserError, match=r"None of the 9 videos .* can be used \(9 too short\).*--min-sec"):
        prepare_folder(tmp_path / "videos", tmp_path / "out", min_sec=9.0, max_sec=10.0)
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(left) == [".lock", "rejected.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "There is no folder none"),
        (["."], "holds no videos"),
        ([".", "--name", "a/b"], "--name 'a/b' cannot name a data set"),
        ([".", "--short-side", "75"], "Give an even number"),
        ([".", "--min-sec", "11"], "must lie between 0 and --max-sec"),
        ([".", "--shards", "0"], "--shards must be 1 or more"),
    ],
)
def test_errors_name_cause_and_fix(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(folder.app, [arguments[0], "out", *arguments[1:]])
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_two_runs_do_not_write_one_data_set(videos, tmp_path):
    with (
        run_control.alone(tmp_path / "small" / "1.0.0"),
        pytest.raises(UserError, match="Another process is preparing"),
    ):
        prepare_folder(videos, tmp_path)


def test_a_dry_run_tells_and_writes_nothing(videos, tmp_path, capsys):
    assert prepare_folder(videos, tmp_path / "out", dry_run=True) == {}
    told = capsys.readouterr().out
    assert "train: 11 videos into 3 shards, of which 0 are there" in told
    assert "would reject mute: no sound" in told and "would reject short: too short: 0.8 s" in told
    assert "for 13 clips in 5 shards" in told
    assert not (tmp_path / "out").exists()


def test_a_level_is_read_from_the_sidecar(videos):
    assert sources.read_level(videos / "good 1.mp4") == "sparse"
    assert sources.read_level(videos / "good 2.mp4") == sources.read_level(videos / "good 3.mp4") == ""


def test_real_clips_prepare(shared_media, tmp_path):
    (tmp_path / "videos").mkdir()
    for path in shared_media.glob("*.mp4"):
        (tmp_path / "videos" / path.name).symlink_to(path)
    manifest = prepare(
        folder.find_splits, tmp_path / "videos", Settings(out=tmp_path / "out", short_side=64, workers=1)
    )
    counts = {split: entry["records"] for split, entry in manifest["splits"].items()}
    assert counts == {"train": 2, "valid": 1, "test": 1}
    for record in all_records(tmp_path / "out" / "clips" / "1.0.0").values():
        assert (record["num_frames"], record["num_samples"], record["height"]) == (250, 160000, 64)
