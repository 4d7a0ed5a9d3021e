"""Synchformer in JAX: by how much is the sound of a video off its picture?

import synchformer_jax

model = synchformer_jax.load("runs/quickstart/sync")
print(model.predict("video.mp4").offset_sec)
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Imports what needs JAX only when it is asked for, so that the data preparation starts without it."""
    if name == "load":
        from synchformer_jax.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
