"""AudioSet, VGGSound and LRS3 from their lists to records, by the commands as they are typed."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from data_prep import audioset, folder, lrs3, vggsound
from data_prep.clips import ClipOptions, Rejected, is_silent, make_record
from data_prep.sources import Source
from synchformer_jax.data import fixed_offsets, records
from synchformer_jax.data.clips import decode_audio, decode_frames
from synchformer_jax.media import decode
from tests.data_prep.videos import write_clip

SMALL = ["--short-side=48", "--min-sec=1.5", "--max-sec=2", "--workers=1"]
IDS = [letter * 11 for letter in "ABCDEFGH"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A good video of two seconds."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


def place(clip, folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip, folder / name)


def call(app, *arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def labels(out) -> dict[str, dict[str, str]]:
    """{split: {clip_id: label}} of a data set."""
    found = {}
    for split in records.split_shards(records.find(out)):
        shards = records.Shards(out, split)
        fields = [shards.fields(i, ["clip_id", "label"]) for i in range(len(shards))]
        found[split] = {f["clip_id"].decode(): f["label"].decode() for f in fields}
    return found


def test_audioset(tmp_path, clip):
    comment = "# one\n# two\n# YTID, start_seconds, end_seconds, positive_labels\n"
    rows = [f'{video}, 30.000, 40.000, "/m/1,/m/2"\n' for video in IDS]
    (tmp_path / "balanced_train_segments.csv").write_text(comment + "".join(rows[:4]))
    (tmp_path / "eval_segments.csv").write_text(comment + "".join(rows[4:6]))
    (tmp_path / "labels.csv").write_text(
        'index,mid,display_name\n0,/m/1,"Speech"\n1,/m/2,"Male speech, man speaking"\n'
    )
    (tmp_path / "bad.txt").write_text(f"balanced_train_segments/{IDS[1]}_30000_40000\n")
    videos = tmp_path / "videos"
    place(clip, videos, f"{IDS[0]}_30000_40000.mp4", f"{IDS[1]}_30000_40000.mp4", f"x/{IDS[2]}.mp4")
    place(clip, videos, f"eval_segments/{IDS[4]}_30.mp4", f"other/{IDS[4]}_30.mp4", f"{IDS[5]}.mp4")
    lists = ["--train", tmp_path / "balanced_train_segments.csv", "--test", tmp_path / "eval_segments.csv"]
    more = ["--classes", tmp_path / "labels.csv", "--exclude", tmp_path / "bad.txt", "--format", "array_record"]
    told = call(audioset.app, videos, tmp_path / "out", *lists, *more, *SMALL, "--dry-run")
    assert told.exit_code == 0 and not (tmp_path / "out").exists()
    assert "train: 2 videos into 1 shards" in told.stdout and "test: 2 videos" in told.stdout
    assert "1 listed clips are excluded (1 excluded)" in told.stdout
    assert "1 listed clips are not there, such as balanced/DDDDDDDDDDD_30000_40000" in told.stdout
    done = call(audioset.app, videos, tmp_path / "out", *lists, *more, *SMALL)
    assert done.exit_code == 0, done.output
    label = "Speech; Male speech, man speaking"
    assert labels(tmp_path / "out") == {
        "train": {f"balanced/{IDS[0]}_30000_40000": label, f"balanced/{IDS[2]}_30000_40000": label},
        "test": {f"eval/{IDS[4]}_30000_40000": label, f"eval/{IDS[5]}_30000_40000": label},
    }
    version = records.find(tmp_path / "out")
    assert version == tmp_path / "out" / "audioset" / "1.0.0"
    manifest = json.loads((version / "manifest.json").read_text())["splits"]["train"]
    assert (manifest["records"], manifest["rejected"], manifest["missing"]) == (2, 1, 1)
    assert json.loads((version / "missing.jsonl").read_text())["clip"] == f"balanced/{IDS[3]}_30000_40000"
    assert json.loads((version / "rejected.jsonl").read_text()) == {
        "split": "train",
        "clip": f"balanced/{IDS[1]}_30000_40000",
        "reason": "excluded: in bad.txt",
    }


def test_a_file_that_comes_later_moves_no_other_shard(tmp_path, clip):
    (tmp_path / "t.txt").write_text("".join(f"{letter * 11}_0_10000\n" for letter in "ABCDEFGHIJKLMNOP"))
    names = [f"{letter * 11}_0_10000.mp4" for letter in "ABCDEFGHIJKLMNO"]
    place(clip, tmp_path / "videos", *names)
    arguments = [tmp_path / "videos", tmp_path / "out", "--train", tmp_path / "t.txt", *SMALL, "--shards=4"]
    assert call(vggsound.app, *arguments).exit_code == 0
    place(clip, tmp_path / "videos", "P" * 11 + "_0.mp4")
    again = call(vggsound.app, *arguments)
    assert "3 of 4 shards are there already" in again.output and len(labels(tmp_path / "out")["train"]) == 16
    assert not (records.find(tmp_path / "out") / "missing.jsonl").exists()


def test_vggsound(tmp_path, clip):
    rows = [f"{IDS[0]},{start},dog barking,train\n" for start in (1, 20)]
    rows += [f"{video},5,rope skipping,train\n" for video in IDS[1:5]] + [f"{IDS[5]},0,dog barking,test\n"]
    (tmp_path / "vggsound.csv").write_text("".join(rows))
    (tmp_path / "sparse.csv").write_text("class\tis_sparse\ndog barking\ty\nrope skipping\tn\n")
    videos = tmp_path / "videos"
    place(clip, videos, f"{IDS[0]}_1000_11000.mp4", f"{IDS[0]}_000020.mp4", f"{IDS[5]}_0_10000.mp4")
    place(clip, videos, *(f"{video}_5.mp4" for video in IDS[1:5]))
    options = ["--list", tmp_path / "vggsound.csv", *SMALL]
    done = call(vggsound.app, videos, tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    found = labels(tmp_path / "out")
    assert {split: len(clips) for split, clips in found.items()} in (
        {"train": 5, "valid": 1, "test": 1},
        {"train": 4, "valid": 2, "test": 1},  # both clips of the first video
    )
    assert found["test"] == {f"{IDS[5]}_0_10000": "dog barking"}
    assert not {clip[:11] for clip in found["train"]} & {clip[:11] for clip in found["valid"]}
    # The published split names the clips for validation; the classes can be chosen.
    (tmp_path / "valid.txt").write_text(f"{IDS[0]}_20000_30000\n")
    call(vggsound.app, videos, tmp_path / "some", *options, "--valid", tmp_path / "valid.txt", "--sparse",
         tmp_path / "sparse.csv")  # fmt: skip
    assert labels(tmp_path / "some") == {
        "train": {f"{IDS[0]}_1000_11000": "dog barking"},
        "valid": {f"{IDS[0]}_20000_30000": "dog barking"},
        "test": {f"{IDS[5]}_0_10000": "dog barking"},
    }


def test_lrs3(tmp_path, clip):
    names = [f"pretrain/talk{talk}/0000{clip}" for talk in range(4) for clip in (1, 2)]
    place(clip, tmp_path / "lrs3", *(f"{name}.mp4" for name in [*names, "trainval/other/00001", "test/last/00001"]))
    assert call(lrs3.app, tmp_path / "lrs3", tmp_path / "all", *SMALL).exit_code == 0
    found = labels(tmp_path / "all")
    assert len(found["train"]) + len(found["valid"]) == 9 and set(found["test"]) == {"test/last/00001"}
    talks = [{clip.rpartition("/")[0] for clip in found[split]} for split in ("train", "valid")]
    assert len(talks[1]) == 1 and not talks[0] & talks[1]
    # Lists decide, also if the folder given is pretrain itself.
    (tmp_path / "train.txt").write_text("\n".join(names[:3]))
    (tmp_path / "test.txt").write_text(names[7] + "\npretrain/gone/00009")
    lists = ["--train", tmp_path / "train.txt", "--test", tmp_path / "test.txt"]
    assert call(lrs3.app, tmp_path / "lrs3" / "pretrain", tmp_path / "some", *lists, *SMALL).exit_code == 0
    found = {split: set(clips) for split, clips in labels(tmp_path / "some").items()}
    assert found == {"train": set(names[:3]), "test": {names[7]}}


@pytest.mark.parametrize(
    ("app", "arguments", "message"),
    [
        (audioset.app, [], "No list was given"),
        (vggsound.app, [], "No list was given"),
        (audioset.app, ["--train", "none.csv"], "none.csv cannot be read"),
        (audioset.app, ["--train", "paths.txt"], "names no YouTube video"),
        (vggsound.app, ["--test", "paths.txt"], "names no YouTube video"),
        (vggsound.app, ["--test", "clips.txt", "--sparse", "paths.txt"], "--list vggsound.csv tells"),
        (vggsound.app, ["--test", "clips.txt"], "None of the 1 listed clips, such as AAAAAAAAAAA_0_10000, has a file"),
        (vggsound.app, ["--test", "clips.txt", "--train", "clips.txt"], "in train and in test"),
        (lrs3.app, ["--test", "paths.txt"], "None of the 1 listed clips"),
        (lrs3.app, [], "pretrain holds no videos"),
        (folder.app, ["--format", "zip"], "--format 'zip' is unknown"),
        (folder.app, ["--beam-args", "--x"], "Name it with --runner"),
    ],
)
def test_errors_name_cause_and_fix(tmp_path, monkeypatch, clip, app, arguments, message):
    monkeypatch.chdir(tmp_path)
    place(clip, tmp_path, "videos/any.mp4")
    (tmp_path / "paths.txt").write_text("pretrain/a/00001\n")
    (tmp_path / "clips.txt").write_text("AAAAAAAAAAA_0_10000\n")
    result = call(app, "videos", "out", *arguments)
    assert result.exit_code == 2 and message in result.output
    assert not (tmp_path / "out").exists()


def test_a_segment_is_cut_from_a_whole_video_but_not_twice(tmp_path):
    path = write_clip(tmp_path / "whole.mp4", sec=6.0)
    whole = decode.decode(path, short_side=48)
    options = ClipOptions(short_side=48, min_sec=1.5, max_sec=2.0)
    fields = records.decode_example(make_record(Source("a", path, (2.0, 4.0)), options))
    assert fields["num_frames"] == 50
    frames = decode_frames(fields["video"], 0, 50).astype(float)
    distance = np.abs(frames[::7, None] - whole.frames[None, 25:100]).mean((2, 3, 4))  # the colours come again
    np.testing.assert_array_equal(25 + distance.argmin(1), 50 + np.arange(0, 50, 7))
    there = whole.audio[32000:64000].astype(int)
    assert np.abs(decode_audio(fields["audio"], 0, 32000) - there).max() <= 1
    # As long as its segment: cut before, under the name of the whole.
    first = records.decode_example(make_record(Source("a", path, (60.0, 66.0)), options))
    np.testing.assert_array_equal(decode_audio(first["audio"], 0, 32000), whole.audio[:32000])
    with pytest.raises(Rejected, match="the picture ends before 60"):
        make_record(Source("a", path, (60.0, 62.0)), options)


def test_a_picture_that_mostly_stands_still_is_rejected(tmp_path):
    options = ClipOptions(short_side=48, min_sec=1.5, max_sec=4.0)
    assert make_record(Source("x", write_clip(tmp_path / "half.mp4", sec=4.0, still_share=0.5)), options)
    with pytest.raises(Rejected, match="still picture"):
        make_record(Source("x", write_clip(tmp_path / "most.mp4", sec=4.0, still_share=0.9)), options)


def test_constant_sound_is_silent():
    sine = np.rint(5000 + 40 * np.sin(np.arange(16000) / 5)).astype(np.int16)
    assert is_silent(np.full(16000, -5000, np.int16)) and not is_silent(sine)


def test_a_real_clip_by_the_published_list_finds_its_fixed_offset(tmp_path, shared_media, shared_annotations):
    videos = tmp_path / "videos"
    (videos / "pretrain" / "C8zY0oAdQrs").mkdir(parents=True)
    real = shared_media / "lrs3_25fps_C8zY0oAdQrs_00018.mp4"
    (videos / "pretrain" / "C8zY0oAdQrs" / "00018.mp4").symlink_to(real.resolve())
    lists = ["--test", shared_annotations / "lrs3_test.txt"]
    done = call(lrs3.app, videos, tmp_path / "out", *lists, "--short-side=64", "--workers=1")
    assert done.exit_code == 0 and "5965 listed but not there" in done.output
    shards = records.Shards(tmp_path / "out", "test")
    assert len(shards) == 1
    fields = shards.fields(0, ["clip_id", "num_frames", "num_samples"])
    assert (fields["num_frames"], fields["num_samples"]) == (250, 160_000)
    table = fixed_offsets.read_table(shared_annotations / "fixed_offsets" / "lrs3_test.csv")
    assert table[fields["clip_id"].decode()] == (-0.8, 3.2)
