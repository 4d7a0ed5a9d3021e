"""The offset as a choice among classes (paper, section 3.2)."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(logits: Float[Array, "clips classes"], target: Int[Array, " clips"]) -> Float[Array, ""]:
    """The mean cross-entropy in nats, float32.

    Args:
        logits: `[B, C]`, before the softmax.
        target: `[B]`, classes 0 to C - 1.
    """
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target))


def accuracy(
    logits: Float[Array, "clips classes"], target: Int[Array, " clips"], *, within: int = 0
) -> Float[Array, ""]:
    """The share of clips whose most probable class is at most `within` classes from the target."""
    return jnp.mean(jnp.abs(jnp.argmax(logits, axis=-1) - target) <= within, dtype=jnp.float32)
