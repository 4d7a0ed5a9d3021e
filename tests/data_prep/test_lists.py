"""Published lists are read in all their formats, and their clips find their files."""

import re

import pytest

from data_prep import lists
from data_prep.lists import Listed
from data_prep.sources import FileIndex, Source, exclude, hold_out
from synchformer_jax.data import fixed_offsets
from synchformer_jax.errors import UserError

AUDIOSET = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=20371, num_segs=20371, num_unique_labels=527, num_positive_labels=51804
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_,/m/0bt9lr,/m/0jbk"
--BfvyPmVMo, 20.000, 30.000, "/m/03l9g"
-0SdAVK79lg, 30.500, 40.500, "/m/0155w,/m/01lyv"
"""


def read(tmp_path, content: str) -> list[Listed]:
    (tmp_path / "list").write_text(content)
    return lists.read_list(tmp_path / "list")


def test_audiosets_segments(tmp_path):
    clips = read(tmp_path, AUDIOSET)
    assert clips[0] == Listed("--4gqARaEJE_0_10000", "--4gqARaEJE", 0, 10, "/m/068hy,/m/07q6cd_,/m/0bt9lr,/m/0jbk")
    assert [clip.name for clip in clips[1:]] == ["--BfvyPmVMo_20000_30000", "-0SdAVK79lg_30500_40500"]


@pytest.mark.parametrize("header", ["", "id,start,label,split\n"])
def test_vggsounds_list(tmp_path, header):
    clips = read(tmp_path, header + '---g-f_I2yQ,1,"people marching",test\n--0PQM4-hqg,30,waterfall burbling,train\n')
    assert clips == [
        Listed("---g-f_I2yQ_1000_11000", "---g-f_I2yQ", 1, 11, "people marching", "test"),
        Listed("--0PQM4-hqg_30000_40000", "--0PQM4-hqg", 30, 40, "waterfall burbling", "train"),
    ]


def test_names_one_a_line(tmp_path):
    clips = read(tmp_path, "---g-f_I2yQ_1000_11000\n---g-f_I2yQ_1000_11000.mp4\npretrain/-MTRxRO5SRA/00002\n\n")
    assert clips == [Listed("---g-f_I2yQ_1000_11000", "---g-f_I2yQ", 1, 11), Listed("pretrain/-MTRxRO5SRA/00002")]


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("vggsound_test.txt", 14511, "---g-f_I2yQ_1000_11000"),
        ("lrs3_test.txt", 5966, "pretrain/-MTRxRO5SRA/00002"),
        ("filtered_audio_has_0_std.txt", 1010, "-11sNcJejws_3000_13000"),
        ("filtered_80_video_has_still_frames.txt", 70, "-2HXm-Rj3lg_283000_293000"),
        ("less_than_9s_frames_segments.txt", 701, "6ZrhRQItpiI_28000_38000"),
        ("fixed_offsets/audioset_test.csv", 15734, "--4gqARaEJE_0_10000"),
        ("fixed_offsets/lrs3_test.csv", 5966, "pretrain/-MTRxRO5SRA/00002"),
    ],
)
def test_published_lists(shared_annotations, name, count, first):
    clips = lists.read_list(shared_annotations / name)
    lines = (shared_annotations / name).read_text().split()
    assert len(clips) == count <= len(lines) and clips[0].name == first
    assert all(clip.video or clip.name.startswith("pretrain/") for clip in clips)


@pytest.mark.parametrize(("name", "excluding"), [("vggsound", "filtered_audio_has_0_std.txt"), ("lrs3", None)])
def test_records_are_called_as_tables_of_fixed_offsets_call_them(shared_annotations, name, excluding):
    table = fixed_offsets.read_table(shared_annotations / "fixed_offsets" / f"{name}_test.csv")
    listed = {clip.name for clip in lists.read_list(shared_annotations / f"{name}_test.txt")}
    assert set(table) <= listed
    if excluding:  # the published tables left these out before
        assert not set(table) & {clip.name for clip in lists.read_list(shared_annotations / excluding)}


def test_the_sparse_test_set_keeps_what_is_there_and_in_sync(shared_annotations):
    clips = lists.read_list(shared_annotations / "vggsound_sparse_clean.csv")
    text = (shared_annotations / "vggsound_sparse_clean.csv").read_text()
    assert len(clips) == len(re.findall(r"^vggsound_sparse,[^,]+,\d+,0,1,", text, re.MULTILINE))
    assert clips[0] == Listed("-7tYmeOmsRg_58000_68000", "-7tYmeOmsRg", 58, 68)


def test_published_classes(shared_annotations):
    names = lists.read_classes(shared_annotations / "audioset_labels.csv")
    assert len(names) == 527 and names["/m/05zppz"] == "Male speech, man speaking"
    sparse = lists.read_sparse(shared_annotations / "picked_sparse_classes.csv")
    assert "air horn" not in sparse and 0 < len(sparse) < 309


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists no clip"),
        ("# only a comment\n", "lists no clip"),
        ("a,b\n", r"line 1: 'a,b' is in none of the known formats"),
        ("---g-f_I2yQ,soon,label,test\n", "line 1"),
        ("video_id,start_sec\n---g-f_I2yQ\n", "line 2"),
    ],
)
def test_what_is_no_list_is_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)
    with pytest.raises(UserError, match="cannot be read"):
        lists.read_list(tmp_path / "none.csv")
    for reader in (lists.read_classes, lists.read_sparse):
        (tmp_path / "odd").write_text("a,b\nc\n")
        with pytest.raises(UserError, match="odd cannot be read"):
            reader(tmp_path / "odd")


def index(folder, *names) -> FileIndex:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return FileIndex(folder)


CLIP = Listed("AAAAAAAAAA__30000_40000", "AAAAAAAAAA_", 30, 40)


@pytest.mark.parametrize(
    ("file", "whole"),
    [
        ("AAAAAAAAAA__30000_40000.mp4", False),
        ("deep/down/AAAAAAAAAA__30_40.mkv", False),
        ("AAAAAAAAAA__000030.mp4", False),
        ("AAAAAAAAAA__30.webm", False),
        ("AAAAAAAAAA__30000.mp4", False),
        ("AAAAAAAAAA_.mp4", True),
        ("YAAAAAAAAAA_.mp4", True),
        ("AAAAAAAAAA__31000_41000.mp4", None),
        ("BBBBBBBBBB_.mp4", None),
    ],
)
def test_files_are_found_by_the_names_of_the_field(tmp_path, file, whole):
    found = lists.find_clip(CLIP, index(tmp_path, file), label="x")
    if whole is None:
        assert found == Source(CLIP.name, None, label="x")
    else:
        assert found == Source(CLIP.name, tmp_path / file, (30, 40) if whole else None, "x")


def test_a_cut_file_and_the_right_folder_come_first(tmp_path):
    files = index(tmp_path, "a/AAAAAAAAAA_.mp4", "b/AAAAAAAAAA__30.mp4", "eval/AAAAAAAAAA__30.mp4")
    assert lists.find_clip(CLIP, files).path == tmp_path / "b/AAAAAAAAAA__30.mp4"
    found = lists.find_clip(CLIP, files, prefix="eval", folders=["eval"])
    assert (found.clip_id, found.path) == (f"eval/{CLIP.name}", tmp_path / "eval/AAAAAAAAAA__30.mp4")


def test_exclusion_lists_match_clips_in_any_folder_and_other_names_whole(tmp_path):
    names = ["eval/AAAAAAAAAAA_0_10000", "eval/BBBBBBBBBBB_0_10000", "pretrain/v/00001", "test/v/00001", "a b.c"]
    (tmp_path / "bad.txt").write_text(
        "eval_segments/AAAAAAAAAAA_0_10000\npretrain/v/00001.mp4\n00001\n a b.c \nBBBBBBBBBBB_1000_11000"
    )
    splits = exclude({"train": [Source(name, tmp_path) for name in names]}, [tmp_path / "bad.txt"])
    assert [source.clip_id for source in splits["train"] if source.wanted] == [names[1], names[3]]
    assert splits["train"][0].excluded == "excluded: in bad.txt"
    with pytest.raises(UserError, match=r"none\.txt cannot be read"):
        exclude({}, [tmp_path / "none.txt"])


def test_holding_out_keeps_groups_whole(tmp_path):
    sources = [Source(f"{video:03d}/{clip}", tmp_path) for video in range(100) for clip in range(3)]
    held, rest = hold_out(sources, lambda source: source.clip_id[:3])
    assert len(held) == 15 and len(rest) == 285
    assert not {s.clip_id[:3] for s in held} & {s.clip_id[:3] for s in rest}
    assert hold_out(sources[::-1], lambda source: source.clip_id[:3])[0] == held[::-1]


def test_one_clip_in_two_splits_is_refused(tmp_path):
    same = Source("a", tmp_path)
    assert lists.without_overlap({"test": [same, same]}) == {"test": [same]}
    with pytest.raises(UserError, match="have a in train and in test"):
        lists.without_overlap({"train": [same], "test": [same]})
