"""The model configuration that published weights were made with, told from the shapes of their arrays."""

import math
from collections.abc import Mapping

from ml_collections import ConfigDict

from synchformer_jax.models import SIZES, model_config
from synchformer_jax.models.config import audio_grid, visual_tokens

Shapes = Mapping[str, tuple[int, ...]]
PREFIXES = {  # of the visual and the audio extractor in the published names
    "segment_avclip": ("v_encoder.", "a_encoder."),
    "sync": ("vfeat_extractor.", "afeat_extractor."),
    "synchronizability": ("vfeat_extractor.", "afeat_extractor."),
    "motionformer": ("", None),
    "ast": (None, ""),
}
HEAD_WIDTH = 64  # of one attention head, in all sizes of ViT


def infer(stage: str, shapes: Shapes, like: ConfigDict | None = None) -> ConfigDict:
    """The configuration, as far as shapes tell; what they don't tell keeps its default.

    Shapes do not tell the number of heads, the audio patches' stride and the number of mel bins, and where positions
    are longer than needed, the length of a segment.

    Args:
        stage: what the arrays belong to; one of `PREFIXES`.
        shapes: by published name.
        like: gives what shapes don't tell; None takes heads of 64, and the published rest.
    """
    config = model_config("B") if like is None else like.copy_and_resolve_references()
    config.head.lag_profile, config.avclip.loss = False, "info_nce"
    visual, audio = PREFIXES[stage]
    if visual is not None:
        _visual(config.visual, _under(shapes, visual), count_heads=like is None)
    if audio is not None:
        _audio(config.audio, _under(shapes, audio + "ast."), count_heads=like is None)
    if stage == "segment_avclip":
        _levels(config, shapes)
    if stage in ("sync", "synchronizability"):
        _head(config, _under(shapes, "transformer."))
    return config.copy_and_resolve_references()


def is_usual(config: ConfigDict) -> bool:
    """Whether the extractors have a width for which the number of heads is known."""
    return {config.visual.width, config.audio.width} <= {width for width, *_ in SIZES.values()}


def _visual(visual: ConfigDict, shapes: Shapes, *, count_heads: bool) -> None:
    if cube := _dims(shapes, "patch_embed_3d.proj.weight", 5):
        visual.width, visual.tubelet, visual.patch_size = cube[0], cube[2], cube[3]
    _blocks(visual, shapes, "blocks.", "mlp.fc1.weight", count_heads=count_heads)
    places = 0
    if table := _dims(shapes, "pos_embed", 3):
        side = math.isqrt(table[1] - 1)
        visual.image_size, places = max(1, side) * visual.patch_size, side**2
    if joint := _dims(shapes, "st_embed", 3):
        visual.position = "joint"
        visual.frames = max(1, (joint[1] - 1) // max(1, places)) * visual.tubelet
    elif time := _dims(shapes, "temp_embed", 3):
        visual.position = "separate"
        visual.frames = time[1] * visual.tubelet
    if _dims(shapes, "blocks.0.attn.qkv.weight", 2):
        has = [name for name in ("timeattn.qkv", "attn.proj_kv") if f"blocks.0.{name}.weight" in shapes]
        visual.attention = {"timeattn.qkv": "divided", "attn.proj_kv": "trajectory"}[has[0]] if has else "joint"


def _audio(audio: ConfigDict, shapes: Shapes, *, count_heads: bool) -> None:
    if patch := _dims(shapes, "embeddings.patch_embeddings.projection.weight", 4):
        audio.width, audio.patch_size = patch[0], patch[2]
    _blocks(audio, shapes, "encoder.layer.", "intermediate.dense.weight", count_heads=count_heads)
    high = (audio.mel_bins - audio.patch_size) // audio.stride + 1
    table = _dims(shapes, "embeddings.position_embeddings", 3)
    published = 2 + high * ((audio.frames - audio.patch_size) // audio.stride + 1)
    if table and high > 0 and table[1] < published:  # longer ones are trimmed, as published
        long = max(1, (table[1] - 2) // high)
        audio.frames = (long - 1) * audio.stride + audio.patch_size


def _levels(config: ConfigDict, shapes: Shapes) -> None:
    """Whether whole clips are embedded too, and of how many segments."""
    table = _dims(shapes, "v_encoder.global_attn_agg.pos_emb", 3)
    if table and table[1] > 1:
        config.avclip.global_pool, config.segments = "attention", table[1] - 1
    else:
        config.avclip.global_pool = "mean" if "global_logit_scale" in shapes else "none"


def _head(config: ConfigDict, shapes: Shapes) -> None:
    head = config.head
    if token := _dims(shapes, "OFF_tok", 3):
        head.width = token[2]
    _blocks(head, shapes, "blocks.", "mlp.0.weight", count_heads=False)
    for name in ("off_head.bias", "sync_head.bias"):
        if classes := _dims(shapes, name, 1):
            head.classes = classes[0]
    if table := _dims(shapes, "pos_emb_cfg.pos_emb", 3):
        config.segments = max(1, (table[1] - 2) // max(1, visual_tokens(config) + audio_grid(config)[1]))


def _blocks(part: ConfigDict, shapes: Shapes, prefix: str, hidden: str, *, count_heads: bool) -> None:
    """Depth, width of the MLP and, if asked for, number of heads."""
    depth = len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})
    part.depth = depth or part.depth
    up = _dims(shapes, f"{prefix}0.{hidden}", 2)
    if up and int(part.mlp_ratio * up[1]) != up[0]:
        part.mlp_ratio = up[0] // up[1] if up[0] % up[1] == 0 else up[0] / up[1]
    if count_heads:
        part.heads = part.width // HEAD_WIDTH if part.width % HEAD_WIDTH == 0 else 1


def _dims(shapes: Shapes, name: str, count: int) -> tuple[int, ...] | None:
    """The shape of an array, if it is there, has so many axes and is not empty."""
    shape = shapes.get(name, ())
    return shape if len(shape) == count and min(shape) > 0 else None


def _under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
