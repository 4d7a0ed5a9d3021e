"""Ten kinds of damage and more: a named error or a counted skip; no crash, no hang, and nothing else is lost."""

import io
import json
from pathlib import Path

import av
import pytest

from synchformer_jax.data import records
from synchformer_jax.errors import UserError
from tests.data import make_records as make
from tests.data.make_records import same

CLIPS = 8  # in two shards of four


def shards_of(folder: str) -> list[Path]:
    return records.split_shards(Path(folder))["train"]


def index_of(shard: Path) -> Path:
    return shard.with_name(shard.name + ".index")


def change(shard: Path, at: int, bits: int = 4) -> None:
    data = bytearray(shard.read_bytes())
    data[at] ^= bits
    shard.write_bytes(data)


def end_of(shard: Path, record: int) -> int:
    entry = records.read_index(shard)[record]
    return int(entry["offset"] + entry["length"])


def half_rate() -> bytes:
    """A film at 12.5 frames a second whose record promises 25."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = make.HEIGHT, make.WIDTH, "yuv420p"
        for number in range(125):
            frame = av.VideoFrame.from_ndarray(make.picture(number), format="rgb24")
            frame.pts = 2 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


# To the files of a data set: what is done, and which records it costs. Shard 1 holds records 4 to 7.
FILES = {
    "truncated shard": (lambda shard: shard.write_bytes(shard.read_bytes()[:-100]), [7]),
    "shard cut in the middle": (lambda shard: shard.write_bytes(shard.read_bytes()[: end_of(shard, 1) + 5]), [6, 7]),
    "flipped bytes": (lambda shard: change(shard, end_of(shard, 1) - 3000), [5]),
    "wrong checksum": (lambda shard: change(shard, end_of(shard, 2) - 1), [6]),
    "missing index": (lambda shard: index_of(shard).unlink(), []),
    "damaged index": (lambda shard: change(index_of(shard), 30), []),
    "empty file": (lambda shard: shard.write_bytes(b""), [4, 5, 6, 7]),
}

# To the fields of record 5.
FIELDS = {
    "wrong schema": lambda media: {"num_frames": "many", "video": [1, 2]},
    "a missing field": lambda media: {"audio": []},
    "zero-length audio": lambda media: {"audio": make.audio(0)},
    "no audio": lambda media: {"audio": b""},
    "cut audio": lambda media: {"audio": media[1][:900]},
    "a video of one frame": lambda media: {"video": make.video(1)},
    "no video": lambda media: {"video": b""},
    "cut video": lambda media: {"video": media[0][:3000]},
    "a lying frame rate": lambda media: {"video": half_rate()},
    "lying counts": lambda media: {"num_frames": 4000, "num_samples": 4000 * 640},
    "a smaller picture than it says": lambda media: {"height": 320, "width": 440},
}
ODD_NAME = "../ü b\n\t\x00%s{0}\U0001f3ac'\"" + "x" * 300


@pytest.fixture(scope="module")
def sound_batch(media, tmp_path_factory):
    """What evaluation reads where nothing is damaged, a record a row."""
    folder = make.write(tmp_path_factory.mktemp("sound"), [make.fields(index, media) for index in range(CLIPS)])
    return folder, settings(folder)


def settings(folder: str):
    return make.config(
        folder,
        stage="segment_avclip",
        **{"data.batch_size": CLIPS, "data.max_corrupt_share": 0.5, "data.pixels": "rgb"},
    )


def check(run, folder: str, sound: dict, lost: list[int], caplog, workers: int = 0) -> None:
    """Evaluation marks and counts the lost records and gives all others as they were; training replaces them."""
    config = settings(folder)
    config.data.workers = workers
    batches = run(config, train=False)
    batch = next(batches)
    assert batch["record"].tolist() == list(range(CLIPS))
    assert batch["valid"].tolist() == [index not in lost for index in range(CLIPS)]
    assert sorted(batches.corrupt) == lost
    for index in lost:
        where = f"0000{index // 4}-of-00002, record {index % 4}"
        assert where in batches.corrupt[index] and where in caplog.text
    kept = batch["valid"]
    assert same(*({name: values[kept] for name, values in one.items()} for one in (batch, sound)))
    batches = run(config)
    first = next(batches)
    assert set(first["record"]) == set(range(CLIPS)) - set(lost)
    resumed = run(config)
    resumed.set_state(json.loads(json.dumps(batches.get_state())))
    assert sorted(resumed.corrupt) == lost and same(next(resumed), next(batches))


@pytest.mark.parametrize("damage", FILES)
def test_damaged_files(sound_batch, media, tmp_path, run, caplog, damage):
    _, config = sound_batch
    sound = next(run(config, train=False))
    folder = make.write(tmp_path, [make.fields(index, media) for index in range(CLIPS)])
    act, lost = FILES[damage]
    act(shards_of(folder)[1])
    check(run, folder, sound, lost, caplog)


@pytest.mark.parametrize("damage", FIELDS)
def test_damaged_records(sound_batch, media, tmp_path, run, caplog, damage):
    _, config = sound_batch
    sound = next(run(config, train=False))
    clips = [make.fields(index, media) for index in range(CLIPS)]
    clips[5] |= FIELDS[damage](media)
    check(run, make.write(tmp_path, clips), sound, [5], caplog)


@pytest.mark.slow
def test_damage_met_by_worker_processes(sound_batch, media, tmp_path, run, caplog):
    _, config = sound_batch
    sound = next(run(config, train=False))
    clips = [make.fields(index, media, **({"video": b""} if index == 1 else {})) for index in range(CLIPS)]
    folder = make.write(tmp_path, clips)
    change(shards_of(folder)[1], end_of(shards_of(folder)[1], 1) - 3000)
    check(run, folder, sound, [1, 5], caplog, workers=2)


def test_names_with_odd_characters(sound_batch, media, tmp_path, run, caplog):
    """Names of clips, data sets and folders are only ever names; so too in the message about a short clip."""
    _, config = sound_batch
    sound = next(run(config, train=False))
    clips = [make.fields(index, media, clip_id=ODD_NAME if index == 5 else f"{index}") for index in range(CLIPS)]
    folder = make.write(tmp_path / "a folder: {two} %d é [x]*?", clips, name="ö ü")
    check(run, folder, sound, [], caplog)
    clips[5]["num_frames"] = 3
    folder = make.write(tmp_path / "short", clips)
    with pytest.raises(UserError) as raised:
        next(run(settings(folder), train=False))
    assert f"record 1 ({ODD_NAME}) lasts 0.12 s" in str(raised.value)


def test_empty_shard_without_index_is_an_error(media, tmp_path, run):
    """Then nobody can say what it held."""
    folder = make.write(tmp_path, [make.fields(index, media) for index in range(CLIPS)])
    shard = shards_of(folder)[1]
    shard.write_bytes(b"")
    index_of(shard).unlink()
    with pytest.raises(UserError, match="00001-of-00002 holds no record"):
        run(settings(folder))


@pytest.mark.parametrize("broken, share, fine", [(1, 0.01, True), (2, 0.01, False), (2, 0.25, True), (1, 0.0, False)])
def test_too_much_damage_stops(media, tmp_path, run, broken, share, fine):
    clips = [make.fields(index, media, **({"audio": b""} if index < broken else {})) for index in range(8)]
    folder = make.write(tmp_path, clips)
    batches = run(make.config(folder, **{"data.max_corrupt_share": share, "data.batch_size": 8}), train=False)
    if fine:
        assert next(batches)["valid"].sum() == 8 - broken
        return
    with pytest.raises(UserError, match=rf"{broken} of 8 records are damaged(.|\n)*shard|00000-of-00002, record 0"):
        next(batches)


def test_nothing_but_damage(media, tmp_path, run):
    folder = make.write(tmp_path, [make.fields(0, media, video=b"")], shards=1)
    with pytest.raises(UserError, match="No record can be read"):
        next(run(make.config(folder)))
