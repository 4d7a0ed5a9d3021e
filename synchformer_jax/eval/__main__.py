"""python -m synchformer_jax.eval --workdir SYNCDIR --data DIR [--split test] [--by level] [--out FILE.json]"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from synchformer_jax.errors import UserError, exit_on_user_error
from synchformer_jax.files import write_json


def table(result: dict) -> Table:
    """The accuracies of an evaluation, a row a group."""
    grid = Table(title=f"{result['overall']['clips']} clips of {result['split']}", title_justify="left")
    for name, justify in (("", "left"), ("clips", "right"), ("exact", "right"), ("within one class", "right")):
        grid.add_column(name, justify=justify)
    for name, values in [*result["groups"].items(), ("all", result["overall"])]:
        cells = [
            f"{value['value']:.1%}  [dim]{value['low']:.0%}–{value['high']:.0%}[/]"
            for value in (values["accuracy_1"], values["accuracy_1_tol1"])
        ]
        grid.add_row(name, str(values["clips"]), *cells)
    chances = (f"{result['overall'][name]['chance']:.1%}" for name in ("accuracy_1", "accuracy_1_tol1"))
    grid.add_row("[dim]chance[/]", "", *(f"[dim]{text}[/]" for text in chances))
    return grid


@exit_on_user_error()
def main(
    workdir: Annotated[Path, typer.Option(help="Folder of a trained sync head.")],
    data: Annotated[Path, typer.Option(help="Folder of a prepared data set.")],
    split: Annotated[str, typer.Option(help="The split to evaluate on.")] = "test",
    by: Annotated[str, typer.Option(help="A field of the records to give the metrics by, such as level.")] = "",
    out: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
    batch_size: Annotated[int, typer.Option(help="Clips at a time; 0 takes the training's.")] = 0,
    workers: Annotated[int, typer.Option(help="Decoding processes; -1 takes the training's.")] = -1,
    fixed_offsets: Annotated[str, typer.Option(help="A published table of offsets (CSV) to evaluate by.")] = "",
) -> None:
    """Predicts the offset of every clip of a split and says how often it is right."""
    from synchformer_jax.data.records import Shards
    from synchformer_jax.eval.offset import evaluate  # imports JAX, which --help can do without
    from synchformer_jax.train.checkpoint import load_model
    from synchformer_jax.train.metrics_writer import Watcher

    console = Console()
    model, config = load_model(workdir)
    if config.stage != "sync":
        raise UserError(f"{workdir} holds a model of stage {config.stage}. Give the folder of a run of stage sync.")
    with config.unlocked():
        config.data.batch_size = batch_size or min(config.data.batch_size, 32)
        config.data.workers = config.data.workers if workers < 0 else workers
    watcher = Watcher("evaluate", len(Shards(data, split)))
    try:
        result = evaluate(
            model, config, str(data), split, by or None, lambda done, _: watcher.update(done), fixed_offsets
        )
    finally:
        watcher.close()
    result["workdir"] = str(workdir)
    console.print(table(result))
    if out:
        write_json(out, result, indent=1)
        console.print(f"Written: {out}")


if __name__ == "__main__":
    typer.run(main)
