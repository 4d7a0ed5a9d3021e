"""Fills the template."""

import os
from importlib import resources
from pathlib import Path

import jinja2

from synchformer_jax.eval.report import collect
from synchformer_jax.files import atomic_path


def render(context: dict) -> str:
    """The page of what `collect.page` gives, as one self-contained HTML text."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True)
    environment.filters["percent"] = lambda share: "–" if share is None else f"{100 * share:.1f}%"
    template = resources.files("synchformer_jax.eval.report").joinpath("page.html").read_text()
    return environment.from_string(template).render(context)


def write(run: str | os.PathLike, out: str | os.PathLike | None = None) -> Path:
    """Draws the page of a run.

    Args:
        run: folder of the run.
        out: the file to write; `run/report.html` by default.

    Returns:
        The file written.

    Raises:
        UserError: the folder holds nothing to show.
    """
    out = Path(out) if out else Path(run) / "report.html"
    text = render(collect.page(run))
    with atomic_path(out) as temporary:
        temporary.write_text(text)
    return out
