"""Weights from anywhere to anywhere."""

import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from synchformer_jax import cli
from synchformer_jax.convert import published, torch_file
from synchformer_jax.errors import UserError
from synchformer_jax.models import model_config
from synchformer_jax.train import checkpoint, loop, state
from synchformer_jax.weights import Weights, open_weights, save_weights
from tests.convert.crafted import call, write_archive
from tests.parity import Weights as Published
from tests.train.tiny import tiny

STAGES = ("segment_avclip", "sync", "synchronizability", "motionformer", "ast")


def made(stage, lag_profile=False):
    """Weights of the smallest model, whose heads and stride no file of published names would tell."""
    config, rng = tiny(stage), np.random.default_rng(0)
    config.model.head.lag_profile = lag_profile
    if stage == "synchronizability":
        config.model.segments = 13  # as the model itself has it, whatever the config says
    shapes = state.hollow_model(config).shapes()
    return Weights({name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}, config, "a seed")


def same(found, expected):
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        assert found.arrays[name].dtype == np.float32
        np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)
    assert found.config.stage == expected.config.stage
    assert found.config.model.to_dict() == expected.config.model.to_dict()


@pytest.mark.parametrize("stage", STAGES)
def test_ours_to_any_format_and_back_is_bitwise(stage, tmp_path):
    expected = made(stage)
    for name in ("a.pth", "a.pt", "a.safetensors", "a.npz", "a"):
        save_weights(expected, tmp_path / name)
        found = open_weights(tmp_path / name)
        same(found, expected)
        assert found.fresh == () and found.notes == []
    save_weights(open_weights(tmp_path / "a.pth"), tmp_path / "b.pth")
    save_weights(open_weights(tmp_path / "a"), tmp_path / "c.pth")
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes() == (tmp_path / "c.pth").read_bytes()
    names = ["a", "a.npz", "a.pt", "a.pth", "a.safetensors", "b.pth", "c.pth"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_folder_serves_as_a_run(tmp_path):
    expected = made("sync")
    save_weights(expected, tmp_path / "run")
    model, config = checkpoint.load_model(tmp_path / "run")
    assert config.stage == "sync"
    for name, array in state.take_apart(model)[1].items():
        np.testing.assert_array_equal(array, expected.arrays[name])
    answer = CliRunner().invoke(cli.app, ["info", str(tmp_path / "run")])
    assert answer.exit_code == 0 and "parameters" in answer.output, answer.output
    config = tiny("sync", tmp_path)
    with pytest.raises(UserError, match="holds converted weights"):
        loop.fit(config, tmp_path / "run")


def test_nothing_is_replaced_unasked_or_left_half_done(tmp_path):
    expected = made("sync")
    (tmp_path / "a.pth").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"a\.pth is there already.*--force"):
        save_weights(expected, tmp_path / "a.pth")
    for force in (False, True):
        with pytest.raises(UserError, match="full is there already"):
            save_weights(expected, tmp_path / "full", force=force)
    with pytest.raises(UserError, match=r"\.pyth is not written"):
        save_weights(expected, tmp_path / "a.pyth")
    assert (tmp_path / "a.pth").read_text() == "mine"
    save_weights(expected, tmp_path / "a.pth", force=True)
    save_weights(expected, tmp_path / "empty")
    same(open_weights(tmp_path / "a.pth"), expected)
    own = made("sync", lag_profile=True)
    with pytest.raises(UserError, match=r"lag_profile = False"):
        save_weights(own, tmp_path / "b.pth")
    save_weights(own, tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b", "empty", "full"]


def test_what_cannot_be_opened(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jaxexport").touch()
    for name, step, message in [
        ("folder", None, "holds no checkpoints"),
        ("none.pth", None, "There is no file"),
        ("a.jaxexport", None, "its weights do not come out again"),
        ("none.pth", 3, "is no run's folder"),
    ]:
        with pytest.raises(UserError, match=message):
            open_weights(tmp_path / name, step=step)


def test_convert_tells_what_it_did(tmp_path):
    expected = made("sync")
    save_weights(expected, tmp_path / "a.pth")
    arguments = ["convert", str(tmp_path / "a.pth"), str(tmp_path / "run")]
    answer = CliRunner().invoke(cli.app, arguments)
    assert answer.exit_code == 0, answer.output
    parameters = sum(array.size for array in expected.arrays.values())
    for said in ("stage", "sync", f"{parameters:,}", "21 classes", "written"):
        assert said in answer.output
    same(open_weights(tmp_path / "run"), expected)
    answer = CliRunner().invoke(cli.app, ["info", str(tmp_path / "a.pth")])
    assert answer.exit_code == 0 and f"{parameters:,}" in answer.output


def test_convert_ends_with_a_table_and_status_2(tmp_path, monkeypatch, capsys):
    arrays = published.from_state(made("sync").model())
    del arrays["vproj.bias"]
    np.savez(tmp_path / "a.npz", **arrays)
    monkeypatch.setattr(sys, "argv", ["synchformer", "convert", str(tmp_path / "a.npz"), str(tmp_path / "b.pth")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    assert stop.value.code == 2 and not (tmp_path / "b.pth").exists()
    assert any(line.split()[:2] == ["missing", "vproj.bias"] for line in printed.err.splitlines())


def test_convert_runs_nothing_that_a_file_asks_for(tmp_path, monkeypatch, capsys):
    harm, target = tmp_path / "harm", tmp_path / "b.pth"
    write_archive(tmp_path / "a.pt", call("os", "system", f"touch {harm}"))
    monkeypatch.setattr(sys, "argv", ["synchformer", "convert", str(tmp_path / "a.pt"), str(target)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "asks for os.system" in capsys.readouterr().err
    assert not harm.exists() and not target.exists()


@pytest.mark.slow
def test_the_published_model_at_full_size(tmp_path):
    """By the published keys: 237,460,245 parameters, in and out again, strictly."""
    given = Published("synchformer")
    save_path = tmp_path / "published.npz"
    np.savez(save_path, **given)
    found = open_weights(save_path)
    assert found.config.model.to_dict() == model_config("B").to_dict() and found.notes == []
    save_path.unlink()
    save_weights(found, tmp_path / "ours.pth")
    again = open_weights(tmp_path / "ours.pth")
    same(again, found)
    value, _ = torch_file.read(tmp_path / "ours.pth")
    assert {name: array.shape for name, array in value.items()} == given.shapes
    assert sum(int(np.prod(array.shape)) for array in value.values()) == 237_460_245
    unread = {"vfeat_extractor.patch_embed.proj.weight", "vfeat_extractor.patch_embed.proj.bias"}
    for name in given.shapes.keys() - unread:
        np.testing.assert_array_equal(np.asarray(value[name]), given[name], err_msg=name)
