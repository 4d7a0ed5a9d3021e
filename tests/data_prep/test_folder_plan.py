"""Which video goes where depends on names alone."""

import pytest

from data_prep import folder, plan
from data_prep.clips import ClipOptions
from data_prep.sources import SPLITS, Source
from synchformer_jax.errors import UserError

OPTIONS = ClipOptions()


@pytest.fixture(autouse=True)
def _no_media(monkeypatch):
    """The files of these tests are empty; those named bad are taken for unusable."""
    monkeypatch.setattr(folder, "flaw", lambda source, options: "bad" if "bad" in source.path.name else "")


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def ids(sources):
    return {source.clip_id for source in sources}


def test_splits_by_hash_are_disjoint_whole_and_stable(tmp_path):
    names = [f"v{i:03d}.mp4" for i in range(100)]
    splits = folder.find_splits(OPTIONS, fill(tmp_path, names))
    assert {split: len(sources) for split, sources in splits.items()} == {"train": 90, "valid": 5, "test": 5}
    assert set.union(*map(ids, splits.values())) == {name[:-4] for name in names}
    again = folder.find_splits(OPTIONS, tmp_path)
    assert again == splits
    # More videos do not move the held-out ones into training order by name: the order looks random.
    order = [source.clip_id for source in splits["train"]]
    assert order != sorted(order)


def test_small_folders_hold_out_one_usable_video_each(tmp_path):
    fill(tmp_path, ["a.mp4", "b.webm", "c.MKV", "bad1.avi", "bad2.ts"])
    splits = folder.find_splits(OPTIONS, tmp_path)
    assert {split: len(sources) for split, sources in splits.items()} == {"train": 3, "valid": 1, "test": 1}
    assert ids(splits["train"]) > {"bad1", "bad2"}


def test_too_few_videos_serve_in_every_split(tmp_path):
    fill(tmp_path, ["a.mp4", "b.mp4", "bad.mp4"])
    with pytest.warns(UserWarning, match="2 usable videos .* too few"):
        splits = folder.find_splits(OPTIONS, tmp_path)
    assert all(ids(splits[split]) == {"a", "b", "bad"} for split in SPLITS)


def test_sub_folders_are_splits(tmp_path):
    fill(tmp_path, ["train/a.mp4", "train/deep/b.mp4", "valid/c.mp4", "test/d.mp4", "elsewhere/e.mp4", "test/x.txt"])
    splits = folder.find_splits(OPTIONS, tmp_path)
    assert {s: ids(v) for s, v in splits.items()} == {"train": {"a", "deep/b"}, "valid": {"c"}, "test": {"d"}}


def test_a_missing_split_comes_out_of_training(tmp_path):
    fill(tmp_path, [*(f"train/{i}.mp4" for i in range(10)), "test/d.mp4"])
    splits = folder.find_splits(OPTIONS, tmp_path)
    assert {split: len(sources) for split, sources in splits.items()} == {"train": 9, "valid": 1, "test": 1}
    assert ids(splits["test"]) == {"d"}


def test_names_stay_unique(tmp_path):
    fill(tmp_path, ["a.mp4", "a.mov", "sub/a.mp4", "b.mp4"])
    splits = folder.find_splits(OPTIONS, tmp_path)
    assert set.union(*map(ids, splits.values())) == {"a.mp4", "a.mov", "sub/a", "b"}


@pytest.mark.parametrize(
    ("count", "wanted", "shards"), [(10, None, 1), (100, None, 4), (1000, None, 32), (7, 3, 3), (2, 5, 2)]
)
def test_shards_are_even_and_hold_everything_once(tmp_path, count, wanted, shards):
    sources = [Source(f"{i}", tmp_path / f"{i}.mp4") for i in range(count)]
    plans = plan.plan_shards(tmp_path / "n" / "1.0.0", {"train": sources, "test": sources[:1]}, OPTIONS, wanted)
    train = [p for p in plans if p.split == "train"]
    assert len(train) == shards and len(plans) == shards + 1
    assert [source for p in train for source in p.sources] == sources
    sizes = {len(p.sources) for p in train}
    assert max(sizes) - min(sizes) <= 1
    assert train[-1].path.name == f"n-train.tfrecord-{shards - 1:05d}-of-{shards:05d}"


def test_fingerprints_follow_files_and_options(tmp_path):
    fill(tmp_path, ["a.mp4"])
    sources = (Source("a", tmp_path / "a.mp4"),)
    make = lambda **options: plan.ShardPlan(tmp_path / "s", "train", sources, ClipOptions(**options)).fingerprint()  # noqa: E731
    first = make()
    assert make() == first
    assert make(short_side=64) != first and make(max_sec=9.5) != first
    (tmp_path / "a.json").write_text('{"level": "dense"}')
    assert make() != first
    (tmp_path / "a.json").unlink()
    assert make() == first
    (tmp_path / "a.mp4").write_bytes(b"more")
    assert make() != first


def test_folders_without_videos_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*none"):
        folder.find_splits(OPTIONS, tmp_path / "none")
    fill(tmp_path, ["a.txt", ".hidden/b.mp4"])
    with pytest.raises(UserError, match="holds no videos"):
        folder.find_splits(OPTIONS, tmp_path)
