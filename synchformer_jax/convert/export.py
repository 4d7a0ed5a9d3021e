"""A model as one compiled program with its weights inside, which runs with JAX alone.

    import jax, numpy as np
    from jax import export
    with open("model.jaxexport", "rb") as file:
        program = jax.jit(export.deserialize(bytearray(file.read())).call)
    logits = program(frames, audio)["logits"]

Reading it takes the packages jax and flatbuffers. `frames` is uint8 `[B, 125, 224, 224, 3]`, RGB at 25 fps, and `audio`
int16 `[B, 80000]` at 16 kHz, of any number of clips B; of a synchronizability model 112 frames and 71,680 samples, of
segment AVCLIP 224 and 143,360. Out come float32 "logits" `[B, classes]` (not of segment AVCLIP) and the features that
they rest on: "visual" `[B, S, 8, D]` and "audio" `[B, S, 6, D]`.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from ml_collections import ConfigDict

from synchformer_jax import clock
from synchformer_jax.errors import UserError
from synchformer_jax.files import atomic_path
from synchformer_jax.models import MODELS, inference

SUFFIX = ".jaxexport"
PLATFORMS = ("cpu", "cuda", "tpu")
STAGES = ("sync", "synchronizability", "segment_avclip")
LARGEST = 2**31 - 2**24  # bytes of weights; FlatBuffers end at 2 GiB
_NAME = "synchformer_"  # the program is called by its stage


def export_model(model: nnx.Module, config: ConfigDict, path: str | os.PathLike) -> None:
    """Writes a model's inference as a serialized `jax.export` program for CPU, CUDA and TPU.

    It computes in `config.model.compute.dtype` and has a free batch dimension. Attention is plain products, as kernels
    of one platform do not run on another.

    Args:
        model: of the config's stage.
        config: `stage` and `model` are read.
        path: the file.

    Raises:
        UserError: the model has no whole program or is too large, or the file cannot be written.
    """
    if config.stage not in STAGES:
        raise UserError(f"A {config.stage} model is a part only. Give one of {', '.join(STAGES)} to compile.")
    config = config.copy_and_resolve_references()
    config.model.compute.attention = "einsum"
    graph, _ = nnx.split(nnx.eval_shape(lambda: MODELS[config.stage](config.model, nnx.Rngs(0))))
    state = jax.tree.map(np.asarray, nnx.state(model))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    if size > LARGEST:
        raise UserError(f"{path}: weights of {size / 1e9:.1f} GB do not fit one program. Convert to .safetensors.")

    def program(frames: jax.Array, audio: jax.Array) -> dict[str, jax.Array]:
        return inference.infer(config, nnx.merge(graph, state), frames, audio)

    program.__name__ = _NAME + config.stage
    (batch,) = export.symbolic_shape("batch")
    count, side = inference.clip_frames(config), config.model.visual.image_size
    frames = jax.ShapeDtypeStruct((batch, count, side, side, 3), jnp.uint8)
    audio = jax.ShapeDtypeStruct((batch, count * clock.SAMPLES_PER_FRAME), jnp.int16)
    with inference.exact_products(config):
        exported = export.export(jax.jit(program), platforms=PLATFORMS)(frames, audio)
    with atomic_path(path) as temporary:
        temporary.write_bytes(exported.serialize())


class Exported:
    """A program that `export_model` wrote.

    Attributes:
        stage: of the model.
        clip_frames: frames of the clips that it takes.
        image_size: their height and width.
        classes: of the logits; 0 if there are none.

    Raises:
        UserError: the file holds no such program, or none for this platform.
    """

    def __init__(self, path: str | os.PathLike):
        try:
            exported = export.deserialize(bytearray(Path(path).read_bytes()))
            self.stage = exported.fun_name.removeprefix(_NAME)
            (_, self.clip_frames, self.image_size, _, _), _ = (aval.shape for aval in exported.in_avals)
            outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
            self.classes = outputs["logits"].shape[-1] if "logits" in outputs else 0
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}. Check the path.") from error
        except Exception as error:  # whatever reading bytes that mean something else comes to
            raise UserError(
                f"{path} is no program that this version of JAX reads ({error}). Write it again: synchformer convert."
            ) from error
        if jax.default_backend() not in [{"cuda": "gpu"}.get(name, name) for name in exported.platforms]:
            raise UserError(f"{path} is for {', '.join(exported.platforms)}. Set JAX_PLATFORMS to one of them.")
        self._call = jax.jit(exported.call)

    def __call__(self, frames: np.ndarray, audio: np.ndarray) -> dict[str, np.ndarray]:
        """Features and logits of clips; shapes as at the top of this module."""
        return {name: np.asarray(array) for name, array in self._call(frames, audio).items()}
