"""The page: all sections from a whole run, fewer from a partial one, and numbers that are those of the files."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from synchformer_jax.errors import UserError
from synchformer_jax.eval import run as runs
from synchformer_jax.eval.report import collect, figures, render, similarities, write
from tests.eval import flashes, made_up_run

SECTIONS = [
    "Learning",
    "Where it errs",
    "What stage 1 learned",
    "One held-out clip",
    "All numbers",
    "How it was trained",
]


class Page(HTMLParser):
    """Titles, addresses and whether every tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.titles, self.sources = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br", "i/"):
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "poster")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    video = flashes.write_video(folder.parent / "held_out.mp4", seed=3)
    made_up_run.write_run(folder, video)
    return folder


@pytest.fixture(scope="module")
def text(run):
    return write(run).read_text()


def test_all_sections_are_there_and_self_contained(text):
    page = Page(text)
    assert not page.open
    assert page.titles == SECTIONS
    assert len(page.sources) == 8 and all(source.startswith("data:") for source in page.sources)
    assert "http" not in re.sub(r"data:[^\"]*", "", text)


def test_figures_are_whole_svg_files(text):
    for encoded in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text):
        svg = base64.b64decode(encoded).decode()
        assert svg.rstrip().endswith("</svg>") and "nan" not in svg


def test_numbers_are_those_of_the_evaluation(run, text):
    result = json.loads((run / "eval.json").read_text())
    for name in ("dense", "sparse", "none"):
        value = result["groups"][name]["accuracy_1_tol1"]
        assert f">{100 * value['value']:.0f}<small>%" in text
        assert f"{100 * value['low']:.1f}% – {100 * value['high']:.1f}%" in text
    assert text.index("Dense") < text.index("Sparse") < text.index("None")
    assert "it stays at chance" in text and "14.3%" in text


def test_a_leak_is_called_a_leak():
    result = made_up_run.evaluation(0, {"dense": 0.9, "none": 0.8})
    assert "look for a leak" in collect.lead(result)


def test_the_clip_is_shown_as_the_model_got_it(text, tmp_path):
    from synchformer_jax.media.decode import decode

    movie = tmp_path / "crop.mp4"
    movie.write_bytes(base64.b64decode(re.search(r"data:video/mp4;base64,([^\"]+)", text)[1]))
    clip = decode(movie)
    frames, audio = flashes.draw(3)
    assert len(clip.frames) == 125
    np.testing.assert_array_equal(clip.frames.mean(axis=(1, 2, 3)) > 120, frames[60:185].mean(axis=(1, 2, 3)) > 120)
    first = round(2.8 * 16_000)  # the crop starts at 2.4 s and the sound is 0.4 s early
    true = audio[first : first + 80_000].astype(float)
    assert np.corrcoef(true[:79_000], clip.audio[:79_000])[0, 1] > 0.8
    assert "The audio is 0.40 s early." in text and "made 0.40 s early" in text


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("control", []),
        ("prediction.json", ["One held-out clip"]),
        ("stage1", ["What stage 1 learned"]),
        ("stage1/similarities.npz", ["What stage 1 learned"]),
        ("eval.json", ["Where it errs", "All numbers"]),
        ("sync/metrics.jsonl", []),
    ],
)
def test_missing_parts_are_left_out(run, tmp_path, missing, gone):
    part = tmp_path / "run"
    shutil.copytree(run, part)
    shutil.rmtree(part / missing) if (part / missing).is_dir() else (part / missing).unlink()
    text = write(part).read_text()
    assert Page(text).titles == [title for title in SECTIONS if title not in gone]
    assert ("random extractors" in text) == (missing not in ("control", "eval.json"))


def test_clips_without_levels_get_three_kinds_of_accuracy(tmp_path):
    (tmp_path / "eval.json").write_text(json.dumps(made_up_run.evaluation(0, {"all": 0.8})))
    text = write(tmp_path, tmp_path / "page.html").read_text()
    assert Page(text).titles == ["Where it errs", "All numbers"]
    assert [title in text for title in ("Within one class", "Exact class", "Among the best five")] == [True] * 3


def test_an_empty_folder_and_a_broken_file_are_named(tmp_path):
    with pytest.raises(UserError, match=r"neither eval\.json nor stage1"):
        write(tmp_path)
    (tmp_path / "eval.json").write_text("{")
    with pytest.raises(UserError, match=r"eval\.json is no JSON"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["eval.json"]


def test_names_of_clips_cannot_inject_markup():
    assert "<script>" not in render({"name": "<script>", "lead": "<script>"})


def test_metrics_of_a_resumed_run_count_once(tmp_path):
    lines = [{"step": 10, "split": "train", "loss": 3.0}, {"step": 20, "split": "train", "loss": 2.0},
             {"step": 20, "split": "valid", "loss": 2.5}, {"step": 20, "split": "train", "loss": 1.0}]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 30, "spl')
    read = runs.read_metrics(tmp_path)
    assert runs.series(read, "train", "loss") == ([10, 20], [3.0, 1.0])
    assert runs.series(read, "valid", "loss") == ([20], [2.5])


def test_smoothing_is_a_running_mean():
    values = np.random.default_rng(0).normal(size=30)
    expected = [values[max(0, i - 3) : i + 4].mean() for i in range(30)]
    np.testing.assert_allclose(figures.smooth(values, 3), expected)


def test_stage_1_is_loaded_once(flash_data, tmp_path, monkeypatch):
    """Similarities of a made-up stage 1 that embeds a segment by its brightness and loudness over time."""
    import jax.numpy as jnp
    import typer

    from synchformer_jax.eval.report.__main__ import main
    from synchformer_jax.train import checkpoint

    class Embedder(flashes.Correlator):
        def embed(self, frames, log_mel):
            parts = (
                frames.mean(axis=(3, 4, 5)),
                log_mel[..., :64].max(axis=2).reshape(*log_mel.shape[:2], 16, 4).max(-1),
            )
            parts = (part - part.mean(axis=-1, keepdims=True) for part in parts)
            return {"segment": tuple(x / (1e-3 + jnp.linalg.norm(x, axis=-1, keepdims=True)) for x in parts)}

    config = flashes.config()
    config.stage = "segment_avclip"
    loads = []
    monkeypatch.setattr(checkpoint, "load_model", lambda path: loads.append(path) or (Embedder(), config))
    made_up_run.write_stage(tmp_path / "stage1", "segment_avclip")
    (tmp_path / "stage1" / "checkpoints").mkdir()
    app = typer.Typer()
    app.command()(main)
    for _ in range(2):
        answer = CliRunner().invoke(app, ["--run", str(tmp_path), "--data", str(flash_data)])
        assert answer.exit_code == 0, answer.output
    assert loads == [tmp_path / "stage1"]
    kept = similarities.read(tmp_path / "stage1")
    assert kept["level"].tolist() == ["dense", "dense", "sparse", "sparse"]
    assert kept["clip"].tolist() == ["flash_000", "flash_003", "flash_001", "flash_004"]
    for matrix in kept["similarity"]:
        assert matrix.shape == (14, 14)
        assert np.diag(matrix).mean() > matrix[~np.eye(14, dtype=bool)].mean() + 0.35
    assert kept["precision"].min() > 0.9
    assert "What stage 1 learned" in (tmp_path / "report.html").read_text()
