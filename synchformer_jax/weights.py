"""Weights wherever they are: files of any kind that `convert` knows, and the work folders of runs.

    weights = open_weights("synchformer.pt")
    save_weights(weights, "runs/published")

The same through `synchformer convert SRC DST`.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from synchformer_jax.convert import export, files
from synchformer_jax.errors import UserError
from synchformer_jax.files import atomic_path
from synchformer_jax.train import checkpoint
from synchformer_jax.train.config import base_config
from synchformer_jax.train.state import hollow_model, take_over

READ_ONLY = (".pyth", ".bin", ".ckpt", ".pkl", ".h5", ".onnx")  # not taken for the name of a folder


@dataclasses.dataclass(frozen=True)
class Weights:
    """The parameters of a model and what model they are of."""

    arrays: dict[str, np.ndarray]  # float32, by dotted name, such as "visual.blocks.mlp.up.kernel"
    config: ConfigDict  # a whole run's; `stage` and `model` are told by the source, the rest may be defaults
    origin: str  # where they are from, in words
    notes: list[str] = dataclasses.field(default_factory=list)  # what a person should know of them
    fresh: tuple[str, ...] = ()  # names of arrays that the source does not have, so that they are not trained

    def model(self) -> nnx.Module:
        """The model with these weights: of the class that `models.MODELS` has for `config.stage`.

        Raises:
            UserError: the arrays are not those of the model that the configuration describes.
        """
        blueprint = hollow_model(self.config)
        empty = {name: np.empty(shape, np.float32) for name, shape in blueprint.shapes().items()}
        return blueprint.build(take_over(empty, self.arrays, self.origin, tuple(empty)))


def open_weights(path: str | os.PathLike, *, step: int | None = None, like: ConfigDict | None = None) -> Weights:
    """The weights of a run or of a file.

    Args:
        path: the work folder of a run, or a file: published checkpoints and bare `state_dict`s of sync,
            synchronizability and segment AVCLIP models, Motionformer's, AST's from Hugging Face (.pt, .pth, .pyth,
            .bin, .safetensors, .npz).
        step: of a run; None takes the best, or the last where none was evaluated.
        like: a model configuration (`config.model`) for what a file does not tell, such as the number of heads.

    Raises:
        UserError: there is nothing, or nothing that can be read; or keys are missing, unexpected or misshapen.
    """
    path = Path(path)
    if path.is_dir():
        arrays, config, step = checkpoint.load_arrays(path, step)
        return Weights(arrays, config, f"{path} at step {step}")
    if step is not None:
        raise UserError(f"A step was asked for, but {path} is no run's folder. Leave the step out.")
    if path.suffix == export.SUFFIX:
        raise UserError(f"{path} is a compiled model; its weights do not come out again. Give what it was made from.")
    read = files.read(path, like)
    config = base_config(read.stage)
    config.model = read.model
    config.data.size = read.model.visual.image_size
    return Weights(read.arrays, config, str(path), read.notes, read.fresh)


def save_weights(weights: Weights, path: str | os.PathLike, *, force: bool = False) -> None:
    """Writes weights whole or not at all, in the format that the name tells.

    Args:
        weights: any.
        path: NAME.safetensors, .npz, .pth (a bare `state_dict`) or .pt (a checkpoint) under the published names;
            NAME.jaxexport, a compiled model for inference; any other name, a folder in the layout of a run's, which
            `config.init.*`, `synchformer predict` and `synchformer info` take.
        force: replaces a file that is there. A folder must be new or empty in any case.

    Raises:
        UserError: it is there already, cannot be written, or the published format has no place for the model.
    """
    path = Path(path)
    require_free(path, force=force)
    if path.suffix == export.SUFFIX:
        export.export_model(weights.model(), weights.config, path)
        return
    with atomic_path(path) as temporary:
        if path.suffix in files.WRITERS:
            files.write(temporary, weights.config.stage, weights.model(), weights.config.model)
        else:
            checkpoint.save_arrays(temporary, weights.arrays, weights.config)


def require_free(path: Path, *, force: bool = False) -> None:
    """Checks that weights may be written under a name, before anything is read.

    Raises:
        UserError: something is there that `force` does not replace, or the name's ending is of a format that is read
            only.
    """
    there = any(path.iterdir()) if path.is_dir() else path.exists()
    if there and (path.is_dir() or not force):
        fix = "Give a new one." if path.is_dir() else "Give another name, or --force to replace it."
        raise UserError(f"{path} is there already. {fix}")
    if path.suffix in READ_ONLY:
        known = ", ".join((*files.WRITERS, export.SUFFIX))
        raise UserError(f"{path}: {path.suffix} is not written. End the name in {known}, or in none for a folder.")
