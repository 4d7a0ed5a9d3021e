"""What a person types: `synchformer predict`, `convert`, `info`, `version`."""

import contextlib
import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from synchformer_jax import __version__
from synchformer_jax.clock import FRAME_RATE
from synchformer_jax.errors import UserError
from synchformer_jax.files import write_json

app = typer.Typer(
    help="Synchformer: by how much is the sound of a video off its picture?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Checkpoint = Annotated[
    Path, typer.Argument(help="Folder of a run (its --workdir), or a file of weights.", show_default=False)
]


@app.command()
def predict(
    video: Annotated[Path, typer.Argument(help="A video of any codec, with sound, of 5 s or more.")],
    checkpoint: Annotated[Path, typer.Option(help="A run's --workdir, a published checkpoint, or what convert wrote.")],
    offset_sec: Annotated[
        float, typer.Option(help="Shift the audio first; above 0 makes it early by so many seconds.")
    ] = 0.0,
    start_sec: Annotated[
        float | None, typer.Option(help="Where the 5 s crop starts in the file; the middle if left out.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32 or bfloat16, to compute in.", show_default="float32")
    ] = None,
    audio_shift_samples: Annotated[
        int, typer.Option(help="For checkpoints trained on misplaced sound: makes it late by so many 1/16,000 s.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.", show_default=False)] = None,
) -> None:
    """Predict the offset between sound and picture of a video, or whether it can have one."""
    if not video.is_file():
        raise UserError(f"There is no file {video}. Give the path of a video.")
    from synchformer_jax.predictor import load

    console = Console()
    quiet = as_json or not console.is_terminal
    with contextlib.nullcontext() if quiet else console.status("Loading the model"):
        model = load(checkpoint, precision, audio_shift_samples=audio_shift_samples)
        prediction = model.predict(video, offset_sec, start_sec)
    if out:
        write_json(out, prediction.to_json())
    if as_json:
        typer.echo(json.dumps(prediction.to_json()))
        return
    lasts = f"{model.clip_frames / FRAME_RATE:g} s from {prediction.start_sec:.2f} s"
    console.print(f"\n[bold]{escape(video.name)}[/], {lasts}", highlight=False)
    if offset_sec:
        console.print(f"Before that, its audio was made {_shift(offset_sec)}.", highlight=False)
    if model.grid is not None:
        if abs(offset_sec) > model.grid.max() + 1e-6:
            console.print(f"[yellow]The model knows offsets up to {model.grid.max():.1f} s.[/]", highlight=False)
        console.print()
        console.print(chart(prediction.grid, prediction.probabilities))
    sentence = prediction.sentence
    console.print(f"\n[bold]{sentence[0].upper()}{sentence[1:]}.[/]", highlight=False)


def _shift(offset_sec: float) -> str:
    return f"{abs(offset_sec):g} s {'earlier' if offset_sec > 0 else 'later'}"


def chart(grid, probabilities, width: int = 40) -> Table:
    """A horizontal bar for each offset, the longest `width` characters long, in eighths of a character."""
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right")
    longest, best = max(probabilities), max(range(len(probabilities)), key=lambda i: probabilities[i])
    for i, (offset, probability) in enumerate(zip(grid, probabilities, strict=True)):
        eighths = math.ceil(8 * width * probability / longest - 1e-9) if probability >= 5e-4 else 0
        bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        style = "bold cyan" if i == best else "cyan"
        label = f"{offset:+.2f} s" if abs(offset) > 1e-6 else "0.00 s"
        table.add_row(
            Text(label, "bold" if i == best else "dim"),
            Text(bar, style),
            Text(f"{probability:.1%}" if probability >= 5e-4 else "", "bold" if i == best else "dim"),
        )
    return table


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of a run, or a file: a published checkpoint of sync, synchronizability, segment AVCLIP, "
            "Motionformer or AST (.pt, .pth, .pyth, .bin, .safetensors, .npz).",
            show_default=False,
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            help="NAME.safetensors, .npz, .pth (a state_dict), .pt (a checkpoint) under the published names; "
            "NAME.jaxexport, a compiled model for inference; any other NAME, a folder like a run's.",
            show_default=False,
        ),
    ],
    step: Annotated[int | None, typer.Option(help="Step of a run; the best if left out.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Read weights of any kind and write them as another. Nothing that a file has pickled is ever run."""
    from synchformer_jax.weights import open_weights, require_free, save_weights

    console = Console()
    require_free(target, force=force)
    with console.status(f"Reading {source}") if console.is_terminal else contextlib.nullcontext():
        weights = open_weights(source, step=step)
    with console.status(f"Writing {target}") if console.is_terminal else contextlib.nullcontext():
        save_weights(weights, target, force=force)
    table = _table([("read", weights.origin), *_model_rows(weights.config.to_dict()), ("written", _size(target))])
    console.print(table, highlight=False)
    for note in weights.notes:
        console.print(Text(note, "yellow"), highlight=False)


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{path}, {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"


@app.command()
def info(checkpoint: Checkpoint) -> None:
    """Tell what a checkpoint or a file of weights holds: stage, model, training."""
    from synchformer_jax.eval.run import read_config, read_metrics

    if checkpoint.is_file():
        from synchformer_jax.weights import open_weights

        weights = open_weights(checkpoint)
        notes = [("", note) for note in weights.notes]
        Console().print(_table([*_model_rows(weights.config.to_dict()), *notes]), highlight=False)
        return
    config = read_config(checkpoint)
    steps = sorted(int(path.name) for path in (checkpoint / "checkpoints").glob("*") if path.name.isdigit())
    if not steps:
        raise UserError(f"{checkpoint} holds no checkpoint yet. Train first, or give another folder.")
    rows = _model_rows(config)
    rows.insert(1, ("checkpoints", ", ".join(map(str, steps))))
    if config["data"]["train"]:  # trained here, not converted
        rows[1] = ("checkpoints", f"{rows[1][1]} of {config['train']['steps']} steps")
        rows += [("trained on", config["data"]["train"]), ("clips a step", str(config["data"]["batch_size"]))]
        rows += [("seed", str(config["seed"]))]
    last = next((line for line in reversed(read_metrics(checkpoint)) if line.get("split") == "valid"), None)
    if last:
        numbers = ", ".join(f"{k} {v:.4g}" for k, v in last.items() if isinstance(v, float) and math.isfinite(v))
        rows.append(("validation", f"step {last['step']}: {numbers}"))
    Console().print(_table(rows), highlight=False)


def _table(rows: list[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _model_rows(config: dict) -> list[tuple[str, str]]:
    """What a person wants to know of a model, from the configuration of its run."""
    from synchformer_jax.eval.run import parameter_count

    stage, model = config["stage"], config["model"]
    visual, audio, head = model["visual"], model["audio"], model["head"]
    rows = [("stage", stage), ("parameters", f"{parameter_count(config):,}{_by_published_keys(config)}")]
    if stage != "ast":
        picture = f"{visual['frames']} frames of {visual['image_size']} px a segment, {_size_of(visual)}"
        rows.append(("picture", f"{picture}, {visual['attention']} attention"))
    if stage != "motionformer":
        rows.append(("sound", f"{audio['mel_bins']} mel bins x {audio['frames']} a segment, {_size_of(audio)}"))
    if stage in ("sync", "synchronizability"):
        rows.append(("head", f"{head['classes']} classes, {_size_of(head)}"))
    if stage not in ("ast", "motionformer"):
        rows.append(("segments", str(model["segments"])))
    return rows


def _by_published_keys(config: dict) -> str:
    """How many the published model has, if it is another number: it holds an embedding that is never read."""
    from flax import nnx

    from synchformer_jax.convert import published
    from synchformer_jax.models import MODELS
    from synchformer_jax.train.config import from_dict

    try:
        model = nnx.eval_shape(lambda: MODELS[config["stage"]](from_dict(config).model, nnx.Rngs(0)))
        return f" ({published.count(model):,} by the published keys)"
    except UserError:  # the model has parts of our own
        return ""


def _size_of(part: dict) -> str:
    return f"width {part['width']}, depth {part['depth']}, {part['heads']} heads"


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """The console script. A `UserError` is one red line and exit status 2."""
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(Text(f"Error: {error}", "red"), soft_wrap=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
