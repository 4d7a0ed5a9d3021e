"""The parameters a run starts from: fresh ones, and what earlier runs or published checkpoints give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax import nnx
from ml_collections import ConfigDict

from synchformer_jax.convert import published
from synchformer_jax.data import features
from synchformer_jax.errors import UserError
from synchformer_jax.train import checkpoint
from synchformer_jax.train import state as states
from synchformer_jax.train.state import Arrays, Blueprint


def make_initial(config: ConfigDict) -> tuple[Blueprint, Arrays]:
    """The model of a config before its first step.

    `init.avclip` gives both extractors; `init.sync` gives extractors and head, except where the shapes must differ: the
    classes and, with fewer segments, the positions of a synchronizability head. `init.published` is a file of either
    kind in the published names, and gives what that kind gives.

    Raises:
        UserError: an earlier run or a file is missing or has another model.
    """
    blueprint, arrays = states.take_apart(states.make_model(config))
    init = config.init
    if init.published:
        arrays = _overlay(arrays, *_published(config))
    if init.avclip and not init.random_extractors:
        source, _, step = checkpoint.load_arrays(init.avclip)
        arrays = states.take_over(arrays, source, f"{init.avclip} at step {step}", ("visual", "audio"))
    if init.sync:
        source, _, step = checkpoint.load_arrays(init.sync)
        arrays = _overlay(arrays, source, f"{init.sync} at step {step}")
    return blueprint, arrays


def _overlay(arrays: Arrays, source: Mapping[str, Any], origin: str) -> Arrays:
    """All that both models have, which is the extractors at least; parts that one of them must have alone stay."""
    free = ("head", "logit_scale")
    fits = {name for name in source if name in arrays and source[name].shape == arrays[name].shape}
    chosen = [name for name in arrays if not states.has_prefix(name, free) or name in fits]
    return states.take_over(arrays, source, origin, chosen)


def _published(config: ConfigDict) -> tuple[dict[str, np.ndarray], str]:
    path = Path(config.init.published)
    arrays = read_arrays(path)
    donor = config.copy_and_resolve_references()
    contrastive = any(name.removeprefix("module.").startswith("v_encoder.") for name in arrays)
    donor.stage = "segment_avclip" if contrastive else "sync"
    donor.model.head.lag_profile = False
    if config.stage == "synchronizability" and not contrastive:
        donor.model.segments, donor.model.head.classes = 14, 21
    hollow = nnx.eval_shape(lambda: states.MODELS[donor.stage](donor.model, nnx.Rngs(0)))
    flat = nnx.to_flat_state(published.to_state(hollow, arrays))
    return {states.name_of(place): np.asarray(variable.get_value()) for place, variable in flat}, str(path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint file by name: .npz, .safetensors, or, where PyTorch is installed, what it saved.

    Raises:
        UserError: there is no such file, or it cannot be read here.
    """
    if not path.is_file():
        raise UserError(f"config.init.published: there is no file {path}. Give the path of a published checkpoint.")
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"config.init.published: {path} was saved by PyTorch, which is not installed here. "
            "Install it, or save the file's arrays as .safetensors or .npz where it is."
        ) from error
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"config.init.published: {path} holds more than arrays, which is not read because it could run anything. "
            "Where you trust the file, save its arrays as .safetensors or .npz."
        ) from error
    for name in ("model", "state_dict"):
        values = values.get(name, values)
    return {name: value.float().numpy() for name, value in values.items()}


def check_features(config: ConfigDict, arrays: Arrays) -> None:
    """Checks that cached features come from the visual extractor that this run freezes.

    Raises:
        UserError: they come from another, or the extractor is not frozen.
    """
    folder = config.data.visual_features
    if not folder:
        return
    if "visual" not in config.freeze:
        raise UserError(
            "config.data.visual_features holds the output of a frozen picture extractor, but config.freeze does not "
            "hold 'visual'. Give --config.freeze=\"('visual','audio')\" or leave the features out."
        )
    there = features.Features(folder, "train").header["source"].split(" ")[0]
    here = states.fingerprint(arrays, "visual")
    if there != here:
        raise UserError(
            f"The features in {folder} come from another picture extractor ({there}) than this run has ({here}). "
            "Write them with python -m synchformer_jax.train.cache and the --workdir that config.init.avclip names "
            "(and --random-extractors for a control)."
        )
