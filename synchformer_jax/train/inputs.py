"""From a batch of whole clips to what the model takes, on the device: RGB, zoom, flip, colour, effects, segments, mel.

Stage 1 changes each segment on its own, the later stages each clip as a whole, as published.
"""

import functools
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from synchformer_jax.ops import augment, augment_sound
from synchformer_jax.ops.colour import planes_to_rgb
from synchformer_jax.ops.log_mel import log_mel, segment_log_mel
from synchformer_jax.ops.segments import segment_audio, segment_frames
from synchformer_jax.train import mesh as meshes


def segment_step(config: ConfigDict) -> int:
    """Frames from one segment's start to the next: whole segments in stage 1, half ones afterwards."""
    length = config.model.visual.frames
    return length if config.stage == "segment_avclip" else length // 2


@jax.named_scope("picture")
def visual_input(config: ConfigDict, batch: dict[str, Array], key: Array | None) -> Array:
    """The picture as segments `[B, S, T, H, W, 3]` in [-1, 1], augmented where there is a key.

    Args:
        config: of the run.
        batch: "frames" uint8, RGB `[B, T, H, W, 3]` or planes `[B, T, 1.5 H W]`; "zoom" int32 `[B, 3]` if clips are to
            be scaled up (`ops.augment.scale_up`).
        key: a JAX key, or None to leave flip, colour and grey as they are.
    """
    frames, size = batch["frames"], config.data.size
    if frames.ndim == 3:
        frames = planes_to_rgb(frames, size, size)
    if "zoom" in batch:
        frames = augment.scale_up(frames, batch["zoom"])
    place = None, config.model.segments, segment_step(config), config.model.visual.frames
    dtype = jnp.dtype(config.model.compute.dtype)
    if config.stage == "segment_avclip":
        return coloured(config.augment, segment_frames(frames, *place), key).astype(dtype)
    return segment_frames(coloured(config.augment, frames, key).astype(dtype), *place)


class Shares(Protocol):
    """How many of all pictures are mirrored, change their colours, lose them; from 0 to 1."""

    flip: float
    colour_jitter: float
    greyscale: float


def coloured(shares: Shares, frames: Array, key: Array | None) -> Array:
    """Frames uint8 `[..., T, H, W, 3]` in float32 [-1, 1]; `key` decides what changes, None changes nothing."""
    if key is None:
        return frames.astype(jnp.float32) / 127.5 - 1
    keys = jax.random.split(key, 3)
    if shares.flip:
        frames = augment.flip(frames, keys[0], shares.flip)
    if not (shares.colour_jitter or shares.greyscale):
        return frames.astype(jnp.float32) / 127.5 - 1
    values = frames.astype(jnp.float32) / 255
    if shares.colour_jitter:
        values = augment.colour_jitter(values, keys[1], shares.colour_jitter)
    if shares.greyscale:
        values = augment.greyscale(values, keys[2], shares.greyscale)
    return values * 2 - 1


@jax.named_scope("sound")
def audio_input(config: ConfigDict, audio: Array, key: Array | None, mesh: Mesh | None = None) -> Array:
    """Clips `[B, N]` int16 as normalised log-mel segments `[B, S, 128, Ta]`, augmented where there is a key.

    With a mesh, every device works on its own clips; XLA would send all sound everywhere for its Fourier transforms.
    Each clip draws by a key of its own, so that it is changed the same wherever it lies.
    """
    place = None, config.model.segments, segment_step(config), config.model.visual.frames
    frames, first = config.model.audio.frames, config.stage == "segment_avclip"

    def of_clips(audio: Array, keys: Array | None) -> Array:
        audio = audio.astype(jnp.float32) / 32768
        audio = segment_audio(audio, *place) if first else audio
        if keys is not None:
            audio = jax.vmap(functools.partial(_effects, config))(audio, keys)
        return log_mel(audio, frames) if first else segment_log_mel(audio, *place, frames)

    keys = None if key is None else jax.random.split(key, len(audio))
    if mesh is None:
        return of_clips(audio, keys)
    cut = meshes.batch_sharding(mesh).spec
    # The check of what differs between devices wants that said of every constant; nothing is summed here.
    return jax.shard_map(of_clips, mesh=mesh, in_specs=(cut, cut), out_specs=cut, check_vma=False)(audio, keys)


def _effects(config: ConfigDict, audio: Array, key: Array) -> Array:
    for name, some_key in zip(augment_sound.EFFECTS, jax.random.split(key, len(augment_sound.EFFECTS)), strict=True):
        if config.augment[name]:
            audio = getattr(augment_sound, name)(audio, some_key, config.augment[name])
    return audio
