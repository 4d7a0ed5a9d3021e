"""InfoNCE between the two streams of a segment, within groups of clips (paper, section 3.1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def group_clips(features: Float[Array, "clips segments d"], clips: int) -> Float[Array, "groups members d"]:
    """Puts every `clips` neighbouring clips of a batch into one group, whose other segments are the negatives.

    Args:
        features: `[B, S, D]`.
        clips: clips in a group, a divisor of B; 0 takes the whole batch.

    Returns:
        `[B / clips, clips * S, D]`.

    Raises:
        ValueError: `clips` does not divide B.
    """
    batch, segments, width = features.shape
    clips = clips or batch
    if batch % clips:
        raise ValueError(f"{batch} clips do not divide into groups of {clips}")
    return features.reshape(batch // clips, clips * segments, width)


def info_nce(
    visual: Float[Array, "groups members d"],
    audio: Float[Array, "groups members d"],
    temperature: Float[Array, ""] | float,
    *,
    chunk: int = 0,
) -> Float[Array, ""]:
    """The mean cross-entropy of finding each segment's counterpart in the other stream of its group, both ways.

    Args:
        visual, audio: `[G, N, D]` embeddings of unit length; member n of both is the same segment.
        temperature: what the similarities are divided by.
        chunk: rows of the `[N, N]` similarities held at once; 0 holds all. Rows are computed again in the backward
            pass, so memory grows with N instead of N squared.

    Returns:
        The loss in nats, float32; ln N where the embeddings tell nothing.

    Raises:
        ValueError: `chunk` does not divide N.
    """
    visual, audio = visual.astype(jnp.float32), audio.astype(jnp.float32)
    return (_find(visual, audio, temperature, chunk) + _find(audio, visual, temperature, chunk)) / 2


def _find(queries: Array, keys: Array, temperature: Array | float, chunk: int) -> Array:
    groups, members, width = queries.shape

    def rows(some: Array) -> Array:
        similarities = jnp.einsum("gqd,gkd->gqk", some, keys, precision="highest") / temperature
        return jax.nn.logsumexp(similarities, axis=-1)

    if chunk and chunk < members:
        if members % chunk:
            raise ValueError(f"{members} segments do not divide into chunks of {chunk}")
        pieces = queries.reshape(groups, members // chunk, chunk, width).swapaxes(0, 1)
        normaliser = jax.lax.map(jax.checkpoint(rows), pieces).swapaxes(0, 1).reshape(groups, members)
    else:
        normaliser = rows(queries)
    return jnp.mean(normaliser - jnp.sum(queries * keys, axis=-1) / temperature)
