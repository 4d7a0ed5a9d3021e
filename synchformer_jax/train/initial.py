"""The parameters a run starts from: fresh ones, and what earlier runs or published checkpoints give."""

from ml_collections import ConfigDict

from synchformer_jax.data import features
from synchformer_jax.errors import UserError
from synchformer_jax.train import checkpoint
from synchformer_jax.train import state as states
from synchformer_jax.train.state import Arrays, Blueprint


def make_initial(config: ConfigDict) -> tuple[Blueprint, Arrays]:
    """The model of a config before its first step.

    `init.avclip` gives both extractors; `init.sync` gives extractors and head, except where the shapes must differ: the
    classes and, with fewer segments, the positions of a synchronizability head.

    Raises:
        UserError: an earlier run is missing or has another model.
    """
    blueprint, arrays = states.take_apart(states.make_model(config))
    init = config.init
    if init.avclip and not init.random_extractors:
        source, _, step = checkpoint.load_arrays(init.avclip)
        arrays = states.take_over(arrays, source, f"{init.avclip} at step {step}", ("visual", "audio"))
    if init.sync:
        source, _, step = checkpoint.load_arrays(init.sync)
        fresh = {"head.position", "head.classify.kernel", "head.classify.bias"}
        same = tuple(name for name in arrays if name not in fresh or source[name].shape == arrays[name].shape)
        arrays = states.take_over(arrays, source, f"{init.sync} at step {step}", same)
    return blueprint, arrays


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
