"""Attention over space and time: divided in two (TimeSformer, arXiv 2102.05095) and along trajectories (Motionformer,
arXiv 2106.05392, section 3.2)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from synchformer_jax.models.layers import Attention, Linear, attend, softmax, weight_std


def divided_attention(
    query: Float[Array, "B N H K"],
    key: Float[Array, "B N H K"],
    value: Float[Array, "B N H K"],
    time: int,
    axis: str,
    mask: Bool[Array, "B N"] | None = None,
    *,
    implementation: str = "auto",
) -> Float[Array, "B N H K"]:
    """Attention of each tubelet to those of its place ("time") or of its time ("space") and to the CLS token.

    Args:
        query, key, value: N = 1 + time * places; the CLS token comes first and asks all tokens.
        axis: "time" or "space".
        mask: True where a token may be attended to.
        implementation: as in `attend`.
    """
    answers = None if mask is None else mask[:, None, None, :]
    of_cls = attend(query[:, :1], key, value, answers, implementation=implementation)
    batch, tokens, heads, each = query.shape
    places = (tokens - 1) // time

    def groups(x):  # [B * groups, members, H, K]
        x = x[:, 1:].reshape(batch, time, places, *x.shape[2:])
        x = x.swapaxes(1, 2) if axis == "time" else x
        return x.reshape(-1, *x.shape[2:])

    def with_cls(x):  # every group gets the CLS token in front
        rest = groups(x)
        cls = jnp.repeat(x[:, :1], rest.shape[0] // batch, axis=0)
        return jnp.concatenate([cls, rest], axis=1)

    answers = None if mask is None else with_cls(mask)[:, None, None, :]
    y = attend(groups(query), with_cls(key), with_cls(value), answers, implementation=implementation)
    if axis == "time":
        y = y.reshape(batch, places, time, heads, each).swapaxes(1, 2)
    return jnp.concatenate([of_cls, y.reshape(batch, -1, heads, each)], axis=1)


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
