"""What a person types and what comes back."""

import io
import json
import re
import subprocess
import sys

import jax
import pytest
from rich.console import Console
from typer.testing import CliRunner

from synchformer_jax import __version__, cli, predictor
from synchformer_jax.train import checkpoint, mesh, state
from tests.eval import flashes


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A tiny sync model as the trainer leaves it, after no step."""
    folder, config = tmp_path_factory.mktemp("runs") / "sync", flashes.config()
    blueprint, arrays = state.take_apart(flashes.tiny_model())
    run = state.prepare(config, mesh.make_mesh(config), blueprint)
    checkpoints = checkpoint.Checkpoints(folder, config)
    checkpoints.save(run, *state.start(run, arrays), {})
    checkpoints.finish()
    checkpoints.close()
    (folder / "config.json").write_text(json.dumps(checkpoint.configs.to_dict(config)))
    line = {"step": 0, "split": "valid", "loss": 3.0, "accuracy": 0.05}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return folder, sum(array.size for array in jax.tree.leaves(arrays))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return flashes.write_video(tmp_path_factory.mktemp("video") / "flash.mp4", seed=11)


def test_predict_prints_json_and_nothing_else(workdir, video):
    arguments = ["predict", str(video), "--checkpoint", str(workdir[0]), "--offset-sec", "0.4", "--json"]
    arguments += ["--precision", "bfloat16", "--audio-shift-samples", "160"]
    answer = CliRunner().invoke(cli.app, arguments)
    assert answer.exit_code == 0, answer.output
    result = json.loads(answer.stdout)
    assert result["audio_shift_sec"] == 0.4 and result["video"] == str(video)
    assert result["audio_shift_samples"] == 160
    assert result["grid"][result["logits"].index(max(result["logits"]))] == result["offset_sec"]


def test_predict_shows_a_chart_and_a_sentence(video, tmp_path, monkeypatch):
    model = predictor.Predictor(flashes.Correlator(), flashes.config())
    monkeypatch.setattr(predictor, "load", lambda path, precision, audio_shift_samples: model)
    arguments = ["predict", str(video), "--checkpoint", str(tmp_path), "--start-sec", "2.2", "--offset-sec", "-1.4"]
    answer = CliRunner().invoke(cli.app, arguments)
    assert answer.exit_code == 0, answer.output
    assert "5 s from 2.20 s" in answer.output and "its audio was made 1.4 s later" in answer.output
    assert re.search(r"The audio is 1\.40 s late \(probability \d+%\)\.", answer.output)
    bars = {line.split(" s ")[0].strip(): line.count("█") for line in answer.output.splitlines() if "█" in line}
    assert max(bars, key=bars.get) == "-1.40"


def test_bars_are_as_long_as_the_probabilities():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(cli.chart([-0.2, 0.0, 0.2, 0.4], [0.5, 0.25, 0.25 - 1e-5, 1e-5], width=8))
    bars = [re.sub(r"[^█▏▎▍▌▋▊▉]", "", line) for line in console.export_text().splitlines()]
    assert bars == ["█" * 8, "█" * 4, "█" * 4, ""]


def test_info_tells_what_a_checkpoint_holds(workdir):
    folder, parameters = workdir
    answer = CliRunner().invoke(cli.app, ["info", str(folder)])
    assert answer.exit_code == 0, answer.output
    assert f"{parameters:,}" in answer.output
    assert re.search(r"stage +sync", answer.output) and "step 0: loss 3, accuracy 0.05" in answer.output


def test_version():
    assert CliRunner().invoke(cli.app, ["version"]).output.strip() == __version__


@pytest.mark.parametrize(
    "arguments",
    [["predict", "gone.mp4", "--checkpoint", "gone"], ["info", "gone"], ["predict", __file__, "--checkpoint", "gone"]],
)
def test_errors_are_one_line_and_status_2(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["synchformer", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    assert stop.value.code == 2 and not printed.out
    assert printed.err.startswith("Error: ") and printed.err.count("\n") == 1 and "gone" in printed.err


def test_the_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "synchformer_jax.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "predict" in done.stdout and "info" in done.stdout
