"""The page that shows a run: `write(run)` or `python -m synchformer_jax.eval.report --run RUN`."""

from synchformer_jax.eval.report.render import render, write

__all__ = ["render", "write"]
