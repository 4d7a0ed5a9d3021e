"""The finished files: sync after decoding, determinism, resuming, errors of the command."""

import json
import shutil

import av
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from data_prep.procedural import render
from data_prep.procedural.__main__ import main
from data_prep.procedural.render import Clip, plan, render_all, render_clip
from data_prep.procedural.sound import render_sound
from data_prep.procedural.world import make_world
from synchformer_jax.errors import UserError

COUNTS = {"train": 3, "valid": 1, "test": 3}
LEVELS = ("dense", "sparse", "none")


@pytest.fixture(scope="module")
def run_cli():
    app = typer.Typer()
    app.command()(main)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run_cli):
    out = tmp_path_factory.mktemp("clips") / "set"
    result = run_cli(out, "--train", 3, "--valid", 1, "--test", 3, "--size", 32, "--workers", 1)
    assert result.exit_code == 0, result.output
    return out


def _decode(path):
    with av.open(str(path)) as container:
        frames = {float(f.pts * f.time_base): f.to_ndarray(format="gray") for f in container.decode(video=0)}
    with av.open(str(path)) as container:
        sound = list(container.decode(audio=0))
        start = float(sound[0].pts * sound[0].time_base)
        rate = container.streams.audio[0].rate
    return frames, start, rate, np.concatenate([f.to_ndarray()[0] for f in sound]).astype(float)


def test_the_decoded_file_keeps_sound_and_picture_within_half_a_frame(tmp_path):
    """Both are measured in the file, by time stamps: first bright frame near the contact, first loud millisecond."""
    checked = 0
    for level, index in (("sparse", 0), ("sparse", 4), ("dense", 1)):
        clip = Clip(tmp_path, 2, "train", level, index, 64)
        render_clip(clip)
        world = make_world(2, "train", level, index)
        frames, start, rate, sound = _decode(clip.path)
        assert (rate, start) == (16_000, 0.0)
        stamps = np.array(list(frames))
        np.testing.assert_allclose(stamps, np.arange(250) / 25, atol=1e-4)
        pictures = np.stack(list(frames.values())).astype(float)
        envelope = np.abs(sound[: len(sound) // 16 * 16]).reshape(-1, 16).max(1)  # by the millisecond
        events = json.loads(clip.path.with_suffix(".json").read_text())["events"]
        for event in events:
            others = [e["time_sec"] for e in events if e is not event] + [-9.0]
            time = event["time_sec"]
            if not (event["visible"] and 0.4 < time < 9.6 and event["speed"] > 0.5):
                continue
            if np.abs(np.array(others) - time).min() < 0.45:
                continue
            x, y = round(event["x"] * 64), round(event["y"] * 64)
            patch = pictures[:, max(y - 9, 0) : y + 9, max(x - 9, 0) : x + 9]
            rise = np.maximum(np.diff(patch, axis=0), 0).mean((1, 2))
            near = np.flatnonzero(np.abs(stamps[1:] - time) < 0.2)
            frame = near[np.argmax(rise[near])]
            seen = (stamps[frame] + stamps[frame + 1]) / 2  # it happened between these two
            window = np.arange(int(time * 1000) - 60, int(time * 1000) + 60)
            heard = window[np.argmax(envelope[window] > 0.35 * envelope[window].max())] / 1000
            assert abs(seen - time) <= 0.0201
            assert abs(heard - time) <= 0.006
            assert abs(seen - heard) <= 0.0201 + 0.006
            checked += 1
        clean = render_sound(world).astype(float)
        spectrum = np.fft.rfft(sound[: len(clean)], 2 * len(clean)) * np.conj(np.fft.rfft(clean, 2 * len(clean)))
        assert int(np.argmax(np.fft.irfft(spectrum))) == 0  # the sound as a whole has not moved by one sample
    assert checked >= 6


def test_the_folder_is_laid_out_as_told(folder):
    names = {split: sorted(p.name for p in (folder / split).glob("*.mp4")) for split in COUNTS}
    assert names["train"] == ["dense_00000.mp4", "dense_00001.mp4", "sparse_00000.mp4"]
    assert names["valid"] == ["dense_00000.mp4"]
    assert names["test"] == ["dense_00000.mp4", "none_00000.mp4", "sparse_00000.mp4"]
    sidecar = json.loads((folder / "test" / "none_00000.json").read_text())
    assert (sidecar["level"], sidecar["seed"], sidecar["split"]) == ("none", 0, "test")
    for event in sidecar["events"]:
        assert set(event) >= {"time_sec", "x", "y", "object", "kind", "audible", "visible"}
        assert 0 <= event["time_sec"] < 10
        assert event["object"] < len(sidecar["objects"])
    assert sidecar["objects"][0]["material"] in ("metal", "wood", "glass", "rubber")
    summary = json.loads((folder / "dataset.json").read_text())
    assert summary["counts"] == COUNTS
    assert summary["levels"] == list(LEVELS)
    assert not [p for p in folder.rglob("*") if p.name.startswith(".")]


def test_any_number_of_workers_gives_the_same_bytes(folder, tmp_path):
    told = []
    clips = plan(tmp_path / "set", 0, COUNTS, LEVELS, 32)
    assert render_all(clips, 2, told.append) == 7
    assert sum(told) == 7
    for path in sorted((tmp_path / "set").rglob("*.*")):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path / "set")).read_bytes(), path.name


def test_a_run_goes_on_where_it_was(folder, tmp_path):
    out = tmp_path / "set"
    shutil.copytree(folder, out)
    (out / "train" / "sparse_00000.json").unlink()  # stopped before the sidecar
    (out / "valid" / "dense_00000.json").write_text('{"seed":')  # a torn sidecar
    (out / "test" / "none_00000.mp4").unlink()
    untouched = {p: p.stat().st_mtime_ns for p in (out / "train").glob("dense*")}
    told = []
    assert render_all(plan(out, 0, COUNTS, LEVELS, 32), 1, told.append) == 3
    assert sum(told) == 7
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (out / path.relative_to(folder)).read_bytes()


def test_clips_of_another_seed_or_size_are_not_taken_for_ours(folder):
    assert all(clip.is_done() for clip in plan(folder, 0, COUNTS, LEVELS, 32))
    assert not any(clip.is_done() for clip in plan(folder, 1, COUNTS, LEVELS, 32))
    assert not any(clip.is_done() for clip in plan(folder, 0, COUNTS, LEVELS, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--train", 0), "--train 0"),
        (("--test", -3), "--test -3"),
        (("--levels", "dense,loud"), "loud"),
        (("--levels", ""), "(empty)"),
        (("--levels", "none"), "Add dense or sparse"),
        (("--size", 31), "--size 31"),
        (("--size", 512), "--size 512"),
        (("--workers", -1), "--workers -1"),
        (("--seed", -1), "--seed -1"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(run_cli, tmp_path, arguments, message):
    result = run_cli(tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(run_cli, tmp_path):
    (tmp_path / "file").write_text("")
    result = run_cli(tmp_path / "file" / "out", "--train", 1, "--valid", 1, "--test", 3)
    assert result.exit_code == 2
    assert "cannot be made" in result.output


def test_a_full_disk_is_told_of_before_rendering(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("synchformer_jax.files.shutil.disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(render, "render_clip", lambda clip: pytest.fail("rendered"))
    with pytest.raises(UserError, match="free"):
        render_all(plan(tmp_path, 0, COUNTS, LEVELS, 32), 1, lambda _: None)
