"""python -m synchformer_jax.eval.report --run RUN"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from synchformer_jax.errors import exit_on_user_error
from synchformer_jax.eval.report import similarities, write
from synchformer_jax.eval.run import read_json


@exit_on_user_error()
def main(
    run: Annotated[Path, typer.Option(help="Folder with stage1/, sync/, eval.json, and optionally control/.")],
    out: Annotated[Path | None, typer.Option(help="The page; RUN/report.html if left out.")] = None,
    data: Annotated[
        str, typer.Option(help="Data set to take held-out clips from; that of eval.json if left out.")
    ] = "",
    split: Annotated[str, typer.Option(help="Its split.")] = "",
) -> None:
    """Draws the page of a run. Loads stage 1 once, to see what it finds alike; the result is kept beside it."""
    console = Console()
    stage1, evaluation = run / "stage1", read_json(run / "eval.json") or {}
    data, split = data or evaluation.get("data", ""), split or evaluation.get("split", "test")
    if (stage1 / "checkpoints").is_dir() and similarities.read(stage1) is None:
        if not Path(data or "-").is_dir():
            console.print(f"No data set at {data or 'eval.json'}: the page goes without the matrices of stage 1.")
        else:
            with console.status("Comparing picture and sound with stage 1"):
                similarities.compute(stage1, data, split)
    console.print(f"Written: {write(run, out)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    typer.run(main)
