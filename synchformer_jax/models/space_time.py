"""Attention over space and time: divided in two (TimeSformer, arXiv 2102.05095) and along trajectories (Motionformer,
arXiv 2106.05392, section 3.2)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from synchformer_jax.models.layers import Attention, Linear, attend, keep_first, softmax, weight_std


def divided_attention(
    attention: Attention,
    cls: Float[Array, "B 1 D"],
    x: Float[Array, "B T P D"],
    axis: str,
    mask: Bool[Array, "B T P"] | None = None,
) -> tuple[Float[Array, "B 1 D"], Float[Array, "B T P D"]]:
    """Attention of each tubelet to those of its place ("time") or of its time ("space") and to the CLS token.

    The CLS token asks all tokens. Tokens are brought into their groups before they are projected, where they are one
    array, not three.

    Args:
        axis: "time" or "space".
        mask: True where a tubelet may be attended to; the CLS token always may.
    """
    x, kept = (part if part is None or axis == "space" else part.swapaxes(1, 2) for part in (x, mask))
    batch, groups, members, width = x.shape
    q, k, v = attention.split(x.reshape(-1, members, width))
    own = attention.split(cls)
    of_cls = attend_apart(*own, *(part.reshape(batch, groups, *part.shape[1:]) for part in (k, v)), kept)

    def with_cls(first, rest):  # every group gets the CLS token in front
        return jnp.concatenate([jnp.repeat(first, groups, axis=0), rest], axis=1)

    kept = None if kept is None else keep_first(kept.reshape(-1, members), 1)
    allowed = None if kept is None else kept[:, None, None, :]
    y = attend(q, with_cls(own[1], k), with_cls(own[2], v), allowed, implementation=attention.implementation)
    y = attention.out(y).reshape(x.shape)
    return attention.out(of_cls), y if axis == "space" else y.swapaxes(1, 2)


def attend_apart(
    query: Float[Array, "B 1 H K"],
    own_key: Float[Array, "B 1 H K"],
    own_value: Float[Array, "B 1 H K"],
    key: Float[Array, "B G M H K"],
    value: Float[Array, "B G M H K"],
    mask: Bool[Array, "B G M"] | None = None,
) -> Float[Array, "B 1 H K"]:
    """What one token finds in itself and in all groups: only scores are put together, keys and values stay apart."""
    query = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("bqhk,bgmhk->bhgm", query, key)
    own = jnp.einsum("bqhk,bqhk->bhq", query, own_key)
    allowed = None if mask is None else keep_first(mask.reshape(mask.shape[0], -1), 1)[:, None]
    weights = softmax(jnp.concatenate([own, scores.reshape(*own.shape[:2], -1)], axis=-1), allowed)
    found = jnp.einsum("bhgm,bgmhk->bhk", weights[..., 1:].reshape(scores.shape), value)[:, None]
    return found + weights[:, None, :, :1] * own_value


class TrajectoryAttention(nnx.Module):
    """Each tubelet looks into every time for what it is there, then over time along this trajectory (eq. 5 to 8).

    Args:
        project_values: the paper's second step projects its values; the published weights were trained without.
    """

    def __init__(self, width: int, heads: int, *, dtype, project_values: bool, rngs: nnx.Rngs):
        each, std = width // heads, weight_std(width, width)
        base = Attention(width, heads, dtype=dtype, implementation="einsum", rngs=rngs)
        self.qkv, self.out = base.qkv, base.out
        self.along_q = Linear((width,), (heads, each), ("embed", "heads", None), dtype=dtype, std=std, rngs=rngs)
        axes = ("embed", None, "heads", None)
        self.along_kv = Linear((width,), (2, heads, each), axes, dtype=dtype, std=std, rngs=rngs)
        self.project_values = project_values

    def __call__(
        self, x: Float[Array, "B N D"], time: int, mask: Bool[Array, "B N"] | None = None
    ) -> Float[Array, "B N D"]:
        """`x` holds the CLS token, then `time` times of equally many places; `mask` is True for tokens to look at.

        A time in which all tubelets are masked is left out of the second step; a token that has no time left keeps
        the plain mean of its values.
        """
        qkv = self.qkv(x)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        of_cls = attend(q[:, :1], k, v, None if mask is None else mask[:, None, None, :], implementation="einsum")
        batch, tokens, heads, each = q.shape
        places = (tokens - 1) // time
        scale = each**-0.5
        k, v = (part[:, 1:].reshape(batch, time, places, heads, each) for part in (k, v))
        scores = jnp.einsum("bqhk,bfnhk->bhqfn", q[:, 1:] * scale, k)
        allowed = None
        if mask is not None:
            allowed = mask[:, 1:].reshape(batch, time, places)
            allowed = allowed | ~allowed.any(axis=-1, keepdims=True)  # a softmax over nothing would be NaN
            allowed = allowed[:, None, None]
        there = jnp.einsum("bhqfn,bfnhk->bqfhk", softmax(scores, allowed), v)
        flat = there.reshape(batch, time * places, time, heads * each)
        own = jnp.repeat(jnp.arange(time), places)  # the time of each tubelet itself
        q2 = self.along_q(flat[:, jnp.arange(time * places), own])
        kv2 = self.along_kv(flat)
        scores = jnp.einsum("bqhk,bqfhk->bhqf", q2 * scale, kv2[..., 0, :, :])
        allowed = None
        if mask is not None:
            allowed = mask[:, 1:].reshape(batch, time, places).any(axis=-1)
            allowed = (allowed | ~allowed.any(axis=-1, keepdims=True))[:, None, None]
        values = kv2[..., 1, :, :] if self.project_values else there
        y = jnp.einsum("bhqf,bqfhk->bqhk", softmax(scores, allowed), values)
        return self.out(jnp.concatenate([of_cls, y], axis=1))
