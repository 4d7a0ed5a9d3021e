"""What a forward pass costs, from the shapes alone."""

from ml_collections import ConfigDict

from synchformer_jax.models.config import audio_grid, validate, visual_tokens


def flops(config: ConfigDict) -> dict[str, float]:
    """Floating point operations (two a multiply-add) of one forward pass; a training step costs about three times.

    A block over n tokens of width d whose queries see s tokens each costs 2 n d^2 (4 + 2 r) for projections and an MLP
    of ratio r, and 4 n s d for attention. Divided blocks have a second attention. Norms, biases, softmax and
    activations, which are a few operations a value, are not counted, nor is the log-mel spectrogram.

    Returns:
        "visual_segment" and "audio_segment" (one segment each), "head" (one clip), and "clip" (all segments and the
        head).

    Raises:
        UserError: the configuration does not fit together.
    """
    validate(config)
    visual, audio, head = config.visual, config.audio, config.head
    time, places = visual_tokens(config), (visual.image_size // visual.patch_size) ** 2
    high, long = audio_grid(config)

    patch = 2 * time * places * visual.width * 3 * visual.tubelet * visual.patch_size**2
    tokens, width = 1 + time * places, visual.width
    seen = time * places * (1 + time) + tokens, time * places * (1 + places) + tokens  # pairs, with those of the CLS
    if visual.attention == "divided":
        block = 2 * tokens * width**2 * (8 + 2 * visual.mlp_ratio) + 4 * sum(seen) * width
    elif visual.attention == "joint":
        block = _block(tokens, tokens, width, visual.mlp_ratio)
    else:
        along = 2 * time * places * width**2 * (1 + 2 * time) + 4 * time * places * time * width
        block = _block(tokens, tokens, width, visual.mlp_ratio) + along
    of_visual = patch + visual.depth * block + time * _pool(places, width, visual.mlp_ratio)

    patch = 2 * high * long * audio.width * audio.patch_size**2
    block = _block(2 + high * long, 2 + high * long, audio.width, audio.mlp_ratio)
    of_audio = patch + audio.depth * block + long * _pool(high, audio.width, audio.mlp_ratio)

    counts = config.segments * time, config.segments * long
    projections = 2 * head.width * (counts[0] * visual.width + counts[1] * audio.width + head.classes)
    tokens = 2 + sum(counts)
    of_head = projections + head.depth * _block(tokens, tokens, head.width, head.mlp_ratio)
    return {
        "visual_segment": float(of_visual),
        "audio_segment": float(of_audio),
        "head": float(of_head),
        "clip": float(config.segments * (of_visual + of_audio) + of_head),
    }


def _block(tokens: int, seen: int, width: int, ratio: float) -> float:
    return 2 * tokens * width**2 * (4 + 2 * ratio) + 4 * tokens * seen * width


def _pool(tokens: int, width: int, ratio: float) -> float:
    """Keys and values of all tokens and the CLS token; one query, one MLP."""
    return 2 * width**2 * (2 * (tokens + 1) + 2 + 2 * ratio) + 4 * (tokens + 1) * width
