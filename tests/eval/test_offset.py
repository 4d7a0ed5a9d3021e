"""From record shards to accuracies, with a model that is right wherever the data path is."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score
from typer.testing import CliRunner

from synchformer_jax.errors import UserError
from synchformer_jax.eval.offset import evaluate
from synchformer_jax.eval.summary import summarise
from tests.eval import flashes


@pytest.fixture(scope="module")
def result(flash_data):
    return evaluate(flashes.Correlator(), flashes.config(), str(flash_data), by="level")


def test_flashes_and_clicks_are_never_mistaken(result):
    assert result["overall"]["clips"] == 21
    assert [p["predicted"] for p in result["predictions"]] == [p["target"] for p in result["predictions"]]
    assert result["overall"]["accuracy_1"]["value"] == 1.0


def test_every_class_is_asked_for_once(result):
    assert sorted(p["target"] for p in result["predictions"]) == list(range(21))
    np.testing.assert_array_equal(result["confusion"], np.eye(21))


def test_clips_and_levels_are_those_of_the_records(result):
    assert [p["clip"] for p in result["predictions"]] == [f"flash_{i:03d}" for i in range(21)]
    assert [p["level"] for p in result["predictions"]] == ["dense", "sparse", "none"] * 7
    assert {name: group["clips"] for name, group in result["groups"].items()} == {"dense": 7, "none": 7, "sparse": 7}


def test_it_repeats_and_does_not_depend_on_the_batch(result, flash_data):
    config = flashes.config()
    config.data.batch_size = 21
    again = evaluate(flashes.Correlator(), config, str(flash_data), by="level")
    assert [p["target"] for p in again["predictions"]] == [p["target"] for p in result["predictions"]]
    first, second = ([p["logits"] for p in run["predictions"]] for run in (result, again))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)


def test_a_published_table_asks_its_own_questions(flash_data, tmp_path):
    """The model that is right hears the table's offsets, in crops whose flashes fit one offset far best."""
    table = tmp_path / "table.csv"
    table.write_text("path,offset_sec,vstart_sec\nflash_007,-1.4,2.72\nflash_002,0.6,4.04\nflash_011,1.0,2.4\n")
    result = evaluate(flashes.Correlator(), flashes.config(), str(flash_data), fixed_offsets=str(table))
    assert [p["clip"] for p in result["predictions"]] == ["flash_002", "flash_007", "flash_011"]
    assert [p["target"] for p in result["predictions"]] == [13, 3, 15]
    assert [p["predicted"] for p in result["predictions"]] == [13, 3, 15]


def test_an_unknown_field_or_split_is_named(flash_data):
    with pytest.raises(UserError, match="colour"):
        evaluate(flashes.Correlator(), flashes.config(), str(flash_data), by="colour")
    with pytest.raises(UserError, match="valid"):
        evaluate(flashes.Correlator(), flashes.config(), str(flash_data), split="valid")


def test_summary_is_plain_json_and_agrees_with_scikit_learn():
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=(60, 21)).astype(np.float32), np.arange(60) % 21
    groups = ["a", "b"] * 30
    summary = json.loads(json.dumps(summarise(logits, targets, [str(i) for i in range(60)], groups, "level")))
    predicted = logits.argmax(-1)
    for name, mine in (("a", slice(0, None, 2)), ("b", slice(1, None, 2))):
        value = summary["groups"][name]["accuracy_1"]
        assert value["value"] == pytest.approx(accuracy_score(targets[mine], predicted[mine]))
        assert value["low"] < value["value"] + 1e-12 < value["high"]
    near = np.abs(predicted - targets) <= 1
    assert summary["overall"]["accuracy_1_tol1"]["value"] == pytest.approx(near.mean())
    expected = -np.mean(
        [row[t] - np.log(np.exp(row).sum()) for row, t in zip(logits.astype(float), targets, strict=True)]
    )
    assert summary["overall"]["loss"] == pytest.approx(expected)
    assert np.sum([summary["groups"][name]["confusion"] for name in "ab"], axis=0).tolist() == summary["confusion"]


def test_command_line(flash_data, tmp_path, monkeypatch):
    import typer

    from synchformer_jax.eval.__main__ import main
    from synchformer_jax.train import checkpoint

    monkeypatch.setattr(checkpoint, "load_model", lambda workdir: (flashes.Correlator(), flashes.config()))
    app = typer.Typer()
    app.command()(main)
    out = tmp_path / "deep" / "eval.json"
    arguments = ["--workdir", str(tmp_path), "--data", str(flash_data), "--by", "level", "--out", str(out)]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    assert "100.0%" in answer.output and "sparse" in answer.output
    assert json.loads(out.read_text())["overall"]["accuracy_1"]["value"] == 1.0
    answer = CliRunner().invoke(app, [*arguments[:3], str(tmp_path / "nowhere")])
    assert answer.exit_code == 2 and answer.stderr.startswith("Error:") and "nowhere" in answer.stderr
