"""Weights in one file, under the published names: reading any of them as ours, and writing them.

Read are the published sync and synchronizability checkpoints and bare `state_dict`s of them, segment AVCLIP
checkpoints, Motionformer's (arXiv 2106.05392) and AST's from Hugging Face, as PyTorch, safetensors and NumPy files.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from ml_collections import ConfigDict

from synchformer_jax.convert import published, sizes, torch_file, torch_writer
from synchformer_jax.convert.pickled import Inert, NumpyArray
from synchformer_jax.errors import UserError
from synchformer_jax.models import MODELS, model_config

CONFIG = "synchformer_jax"  # under which our own files carry their configuration
CONTAINERS = ("model", "state_dict", "model_state")  # where checkpoints have their weights
HUGGING_FACE = "audio_spectrogram_transformer."
TRANSFORMERS_5 = {  # parts of the names that its models have in memory, and those of the files on the hub
    "ast.layers.": "ast.encoder.layer.",
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}
LEFT_OUT = {  # parts of published models that ours do not have, or make anew: classifiers, momentum encoders, queues
    "motionformer": ("head.", "head0.", "head1.", "pre_logits."),
    "ast": ("classifier.",),
    "segment_avclip": (
        *("v_encoder_m.", "a_encoder_m.", "segment_v_queue", "segment_a_queue", "segment_queue_ptr"),
        *("global_v_queue", "global_a_queue", "global_queue_ptr"),
    ),
}
ADDED = {"motionformer": "spatial_attn_agg.", "ast": "freq_attn_agg."}  # parts that Synchformer adds
EXPANSION, SPARE = 4, 2**26  # by how much arrays may exceed their file, as they may share values; bytes
Arrays = Mapping[str, Any]  # what np.asarray takes, with shape and dtype


@dataclasses.dataclass(frozen=True)
class Read:
    """What a file holds, as ours."""

    stage: str  # one of MODELS
    model: ConfigDict  # the model's configuration
    arrays: dict[str, np.ndarray]  # float32, by our dotted names
    fresh: tuple[str, ...]  # names of those that the file does not have
    notes: list[str]  # what a person should know of it


def read(path: Path, like: ConfigDict | None = None) -> Read:
    """The weights of a file.

    Args:
        path: .pt, .pth, .pyth, .bin, .ckpt and other files of PyTorch's; .safetensors; .npz.
        like: a model configuration, for what neither the file nor the shapes of its arrays tell.

    Raises:
        UserError: there is no such file, it is damaged or of another kind, or asks for more than data; or keys are
            missing, unexpected or misshapen.
    """
    arrays, text = _open(path)
    arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    stage, arrays, notes = _recognise(path, arrays)
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    config = sizes.infer(stage, shapes, _own_config(path, text) if text else like)
    if not text and like is None and not sizes.is_usual(config):
        notes.append("The file does not tell the number of attention heads; heads of width 64 are taken.")
    try:
        model = nnx.eval_shape(lambda: MODELS[stage](config, nnx.Rngs(0)))
        arrays, added = _with_added(stage, model, arrays)
        state = published.to_state(model, arrays, warn=notes.append)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    flat = {".".join(map(str, place)): variable.get_value() for place, variable in nnx.to_flat_state(state)}
    fresh = tuple(name for name in flat if added and name.split(".")[0] == "pool")
    if fresh:
        notes.append(f"The file has no {added}*, which Synchformer adds; it starts from fresh values.")
    return Read(stage, config, flat, fresh, notes)


def _open(path: Path) -> tuple[dict[str, Any], str]:
    """Arrays by name, and our configuration as JSON if the file is of ours."""
    if not path.is_file():
        raise UserError(f"There is no file {path}. Give the path of a checkpoint.")
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs") or start.lstrip()[:1] == b"<":
        raise UserError(f"{path} is not a checkpoint but a text that stands for one. Download the file itself.")
    if path.suffix == ".safetensors":
        with torch_file.errors_named(path), safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.offset_keys()}, metadata.get(CONFIG, "")
    if path.suffix == ".npz":
        with torch_file.errors_named(path), np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
            return arrays, str(arrays.pop(CONFIG, ""))
    value, text = torch_file.read(path)
    return _weights_in(path, value), text


def _weights_in(path: Path, value: Any) -> dict[str, Any]:
    """The arrays by name that a PyTorch file was saved for."""
    if isinstance(value, dict):
        value = next((value[name] for name in CONTAINERS if isinstance(value.get(name), dict)), value)
    if not isinstance(value, dict) or not value:
        kind = value.kind if isinstance(value, Inert) else f"a {type(value).__name__}"
        raise UserError(f"{path} holds {kind} where weights by name were expected. Save the model's state_dict.")
    found = {}
    for name, array in value.items():
        array = array.values if isinstance(array, NumpyArray) else array
        if not isinstance(name, str) or not isinstance(array, (torch_file.Tensor, np.ndarray)):
            kind = array.kind if isinstance(array, Inert) else type(array).__name__
            raise UserError(f"{path} holds a {kind} under {str(name)[:80]!r}, among its weights. Save arrays only.")
        found[name] = array
    total = sum(int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize for array in found.values())
    if total > EXPANSION * path.stat().st_size + SPARE:
        raise UserError(f"{path} would unpack to {total / 1e9:,.0f} GB, far more than its size. Get it again.")
    return found


def _recognise(path: Path, arrays: Arrays) -> tuple[str, dict[str, Any], list[str]]:
    """The stage that the names belong to, the arrays under the names of that stage's model, and notes."""
    tops = {name.split(".")[0] for name in arrays}
    if "transformer" in tops or {"vfeat_extractor", "afeat_extractor"} <= tops:
        stage, kept = "synchronizability" if "transformer.sync_head.weight" in arrays else "sync", dict(arrays)
    elif {"v_encoder", "a_encoder"} <= tops:
        stage, kept = "segment_avclip", dict(arrays)
        if "segment_logit_scale" in kept and "global_logit_scale" not in kept:  # with momentum, but one level
            kept["logit_scale"] = kept.pop("segment_logit_scale")
    else:
        stage, kept = _extractor(path, arrays)
    notes: list[str] = []
    left_out = {name for name in kept if name.startswith(LEFT_OUT.get(stage, "\0"))}
    if left_out:
        more = f" and {len(left_out) - 4} more" if len(left_out) > 4 else ""
        notes.append(f"Left out, as no part of the model: {', '.join(sorted(left_out)[:4])}{more}.")
        kept = {name: array for name, array in kept.items() if name not in left_out}
    wrong = [name for name, array in kept.items() if not jnp.issubdtype(array.dtype, jnp.floating)]
    if wrong:
        kind = kept[wrong[0]].dtype
        raise UserError(f"{path}: {wrong[0]} holds {kind} numbers. Give weights in a floating-point type.")
    others = sorted({str(array.dtype) for array in kept.values()} - {"float32"})
    if others:
        notes.append(f"Read as float32 from {', '.join(others)}.")
    return stage, kept, notes


def _extractor(path: Path, arrays: Arrays) -> tuple[str, dict[str, Any]]:
    """The stage of one extractor's arrays, and they under the names that the extractor itself has."""
    for prefix in ("vfeat_extractor.", "afeat_extractor.", "v_encoder.", "a_encoder."):
        if all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    if any(name.startswith(HUGGING_FACE) for name in arrays):
        arrays = {
            f"ast.{name.removeprefix(HUGGING_FACE)}" if name.startswith(HUGGING_FACE) else name: array
            for name, array in arrays.items()
        }
    elif "embeddings.patch_embeddings.projection.weight" in arrays:  # the same without its classifier
        arrays = {f"ast.{name}": array for name, array in arrays.items()}
    if any(name.startswith("ast.embeddings.") for name in arrays):
        return "ast", {_name_on_the_hub(name): array for name, array in arrays.items()}
    if "patch_embed_3d.proj.weight" in arrays:
        return "motionformer", dict(arrays)
    raise UserError(
        f"{path} holds no weights of Synchformer, segment AVCLIP, Motionformer or AST. Its keys begin with "
        f"{', '.join(sorted(arrays)[:5])}. Give one of these."
    )


def _name_on_the_hub(name: str) -> str:
    for part, published_part in TRANSFORMERS_5.items():
        name = name.replace(part, published_part)
    return name


def _own_config(path: Path, text: str) -> ConfigDict:
    """The configuration that a file of ours carries; a field that this version does not have is passed over."""
    config = model_config("B")
    with torch_file.errors_named(path):
        for part, given in json.loads(text)["model"].items():
            if isinstance(given, dict):
                config[part].update({name: value for name, value in given.items() if name in config[part]})
            else:
                config[part] = given
    return config


def _with_added(stage: str, model: nnx.Module, arrays: Arrays) -> tuple[Arrays, str]:
    """The arrays with fresh ones for the part that Synchformer adds to an extractor, if they have none of it."""
    prefix = ADDED.get(stage, "")
    if not prefix or any(name.startswith(prefix) for name in arrays):
        return arrays, ""
    rng = np.random.default_rng(0)
    fresh = {}
    for name, shape in published.shapes(model).items():
        if name.startswith(prefix):
            drawn = (0.02 * rng.standard_normal(shape)).astype(np.float32)
            is_norm = ".norm" in name
            fresh[name] = np.full(shape, is_norm and name.endswith("weight"), np.float32) if len(shape) == 1 else drawn
    return {**arrays, **fresh}, prefix


def write(path: Path, stage: str, model: nnx.Module, config: ConfigDict) -> None:
    """Writes a model under the published names.

    The format follows from the name: .safetensors; .npz; .pth, a bare `state_dict`; .pt, a checkpoint that has it where
    the published one of its stage has it. All carry the configuration where published code passes over it.

    Args:
        path: of the file; the caller sees to it that it appears whole.
        stage: what the model is, one of `MODELS`.
        model: of that stage.
        config: the model's configuration.

    Raises:
        UserError: the name has another ending, or the model has parts that the published one has not.
    """
    if path.suffix not in WRITERS:
        raise UserError(f"{path}: what format is {path.suffix or 'that'}? End the name in {', '.join(WRITERS)}.")
    text = json.dumps({"stage": stage, "model": config.to_dict()})
    WRITERS[path.suffix](path, published.from_state(model), text, stage)


def _write_safetensors(path: Path, arrays: dict[str, np.ndarray], text: str, _: str) -> None:
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt", CONFIG: text})


def _write_npz(path: Path, arrays: dict[str, np.ndarray], text: str, _: str) -> None:
    np.savez(path, **arrays, **{CONFIG: np.asarray(text)})


def _write_pth(path: Path, arrays: dict[str, np.ndarray], text: str, _: str) -> None:
    torch_writer.write(path, arrays, text)


def _write_pt(path: Path, arrays: dict[str, np.ndarray], text: str, stage: str) -> None:
    containers = {"segment_avclip": "state_dict", "motionformer": "model_state"}
    torch_writer.write(path, arrays, text, containers.get(stage, "model"))


WRITERS: dict[str, Callable[..., None]] = {
    ".safetensors": _write_safetensors,
    ".pth": _write_pth,
    ".pt": _write_pt,
    ".npz": _write_npz,
}
