"""The benchmark of the step at a tiny size: the rows that it writes, and what is in them."""

import json

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import train_step
from synchformer_jax.errors import UserError

SMALL = {
    "model.segments": 2,
    "model.visual.image_size": 32,
    "data.size": 32,
    "model.visual.tubelet": 8,
    "model.visual.width": 32,
    "model.visual.depth": 1,
    "model.visual.heads": 2,
    "model.audio.width": 32,
    "model.audio.depth": 1,
    "model.audio.heads": 2,
    "model.head.width": 32,
    "model.head.depth": 1,
    "model.head.heads": 2,
}


@pytest.mark.parametrize("stage", [pytest.param("segment_avclip", marks=pytest.mark.slow), "sync"])
def test_a_tiny_step_is_measured(stage, tmp_path):

    app = typer.Typer()
    app.command()(train_step.main)
    small = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    if stage == "segment_avclip":  # costs most of the compilation
        small += [word for name in ("reverb", "pitch_shift", "low_pass") for word in ("--set", f"augment.{name}=0.0")]
    out = tmp_path / "row.json"
    given = ["--config", f"configs/{stage}.py", "--batch", "4", "--steps", "2", "--out", str(out), *small]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    (row,) = written["rows"]
    assert row["stage"] == stage and written["machine"]["device"] == "cpu" and row["mfu"] is None
    assert row["clips_per_sec"] == pytest.approx(4 / row["seconds"])
    assert 0 < row["loss"] < 10 and row["memory_gib"] > 0
    assert row["top_costs"] and 0 < sum(cost["share"] for cost in row["top_costs"]) <= 1.0001


def test_a_wrong_field_is_named():
    path = train_step.Path("configs/sync.py")
    with pytest.raises(UserError, match="no field model"):
        train_step.load_config(path, ["model.hat=3"])
    assert train_step.load_config(path, ["optimizer.name=sgd", "model.visual.depth=3"]).model.visual.depth == 3


def test_a_combination_that_fails_is_a_row_and_not_the_end(tmp_path, monkeypatch):
    def measure(config, count):
        if config.model.compute.attention == "cudnn":
            raise NotImplementedError("no such kernel here\nand more")  # as JAX does where a device lacks one
        return {"seconds": 0.5, "clips_per_sec": 8.0, "model_tflops_per_sec": 1.0, "mfu": 0.5, "memory_gib": 1.0,
                "top_costs": []}  # fmt: skip

    monkeypatch.setattr(train_step, "measure", measure)
    out = tmp_path / "rows.json"
    train_step.main(batch="4,8", attention="cudnn,einsum", out=out)
    rows = json.loads(out.read_text())["rows"]
    assert [(row["batch"], row.get("error")) for row in rows] == [
        (4, "no such kernel here"), (4, None), (8, "no such kernel here"), (8, None)
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        train_step.main(attention="cudnn", out=out)
