"""The parameters a run starts from: fresh ones, and what earlier runs or published checkpoints give."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from synchformer_jax.convert import files
from synchformer_jax.convert.files import Read
from synchformer_jax.data import features
from synchformer_jax.errors import UserError
from synchformer_jax.train import checkpoint
from synchformer_jax.train import state as states
from synchformer_jax.train.state import Arrays, Blueprint

EXTRACTORS = {"motionformer": "visual", "ast": "audio"}  # fields of config.init, and the part that they give


def make_initial(config: ConfigDict) -> tuple[Blueprint, Arrays]:
    """The model of a config before its first step.

    `init.motionformer` and `init.ast` are files that give one extractor each, without the part that sums its tokens up.
    `init.avclip` gives both extractors; `init.sync` gives extractors and head, except where the shapes must differ: the
    classes and, with fewer segments, the positions of a synchronizability head. `init.published` is a file of either
    kind in the published names, and gives what that kind gives. Later ones of this list win.

    Raises:
        UserError: an earlier run or a file is missing or has another model.
    """
    blueprint, arrays = states.take_apart(states.make_model(config))
    init = config.init
    for stage, part in EXTRACTORS.items():
        if init[stage]:
            arrays = _extractor(config, arrays, stage, part)
    if init.published:
        weights = _read(config, "published", ("segment_avclip", "sync", "synchronizability"))
        arrays = _overlay(arrays, weights.arrays, init.published)
    if init.avclip and not init.random_extractors:
        source, _, step = checkpoint.load_arrays(init.avclip)
        arrays = states.take_over(arrays, source, f"{init.avclip} at step {step}", ("visual", "audio"))
    if init.sync:
        source, _, step = checkpoint.load_arrays(init.sync)
        arrays = _overlay(arrays, source, f"{init.sync} at step {step}")
    return blueprint, arrays


def _overlay(arrays: Arrays, source: Mapping[str, Any], origin: str) -> Arrays:
    """All that both models have, which is the extractors at least; parts that one of them must have alone stay."""
    fits = {name for name in source if name in arrays and source[name].shape == arrays[name].shape}
    chosen = [name for name in arrays if states.has_prefix(name, tuple(EXTRACTORS.values())) or name in fits]
    return states.take_over(arrays, source, origin, chosen)


def _extractor(config: ConfigDict, arrays: Arrays, stage: str, part: str) -> Arrays:
    """One extractor from its own file; what the file does not have stays as the seed made it."""
    weights = _read(config, stage, (stage,))
    given = {f"{part}.{name}": array for name, array in weights.arrays.items() if name not in weights.fresh}
    fresh = {f"{part}.{name}" for name in weights.fresh}
    chosen = [name for name in arrays if states.has_prefix(name, (part,)) and name not in fresh]
    return states.take_over(arrays, given, str(config.init[stage]), chosen)


def _read(config: ConfigDict, field: str, stages: Sequence[str]) -> Read:
    """The file that a field of `config.init` names, which must hold weights of one of these stages."""
    path = Path(config.init[field])
    try:
        weights = files.read(path, config.model)
    except UserError as error:
        raise UserError(f"config.init.{field}: {error}") from error
    for note in weights.notes:
        logging.warning("%s: %s", path, note)
    if weights.stage not in stages:
        raise UserError(
            f"config.init.{field}: {path} holds weights of {weights.stage}. Give one of {', '.join(stages)}, or name "
            f"this one in --config.init.{weights.stage if weights.stage in EXTRACTORS else 'published'}."
        )
    return weights


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
    there = features.Features(folder, "train").header.source.split(" ")[0]
    here = states.fingerprint(arrays, "visual")
    if there != here:
        raise UserError(
            f"The features in {folder} come from another picture extractor ({there}) than this run has ({here}). "
            "Write them with python -m synchformer_jax.train.cache and the --workdir that config.init.avclip names "
            "(and --random-extractors for a control)."
        )
