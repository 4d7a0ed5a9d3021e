"""The parts that every model here is built of: projections, norms, attention, stacked blocks, dropout.

Parameters are float32 and carry logical axis names; products run in the compute type; LayerNorm and softmax run in
float32. No module has a training state: a random `key` given to a call turns on dropout, `key=None` turns it off.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

Axes = tuple[str | None, ...]


def parameter(value: jax.Array, axes: Axes) -> nnx.Param:
    """A parameter that knows the logical name of each of its axes."""
    if len(axes) != value.ndim:
        raise ValueError(f"{len(axes)} axis names for a parameter of shape {value.shape}")
    return nnx.Param(value, logical_axes=axes)


def logical_axes(variable: nnx.Variable) -> Axes:
    """The logical axis names of a parameter, one an axis, None where it is never sharded.

    Names: "layers", "embed" (model width), "mlp" (hidden width), "heads", "vocab" (classes).
    """
    return variable.get_metadata("logical_axes", (None,) * jnp.ndim(variable.get_value()))


def value_of(variable: nnx.Variable, dtype: jnp.dtype | None = None) -> Array:
    """A parameter where the model uses it, in `dtype` if one is given.

    A trainer that keeps parts of it on several devices sets the metadata "gather", which brings them together. That is
    done here, after the conversion and inside the loop over layers, so that few bytes travel and few are held.
    """
    value = variable[...] if dtype is None else variable[...].astype(dtype)
    gather = variable.get_metadata("gather", None)
    return value if gather is None else gather(value)


def weight_std(width: int, fan_in: int) -> float:
    """The scale of fresh weights: 0.02 as published at ViT-B and wider, LeCun's below, where 0.02 would leave blocks
    without effect."""
    return 0.02 if width >= 768 else 1 / math.sqrt(fan_in)


class Linear(nnx.Module):
    """A projection of the last `len(inputs)` axes to `outputs`.

    Args:
        inputs, outputs: sizes of the axes taken and given.
        axes: logical names of the kernel's axes, inputs first.
        dtype: compute type.
        std: standard deviation of the fresh kernel; the bias starts at zero.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], axes: Axes, *, dtype, std: float, rngs: nnx.Rngs):
        self.kernel = parameter(std * jax.random.normal(rngs.params(), (*inputs, *outputs)), axes)
        self.bias = parameter(jnp.zeros(tuple(outputs)), axes[len(inputs) :])
        self.contracted, self.dtype = len(inputs), dtype

    def __call__(self, x: Array) -> Array:
        return project(x, *self.weights(), self.contracted)

    def weights(self) -> tuple[Array, Array]:
        """Kernel and bias in the compute type."""
        return value_of(self.kernel, self.dtype), value_of(self.bias, self.dtype)


def project(x: Array, kernel: Array, bias: Array, contracted: int) -> Array:
    """`x` times `kernel` over the last `contracted` axes of `x`, plus `bias`, in the type of the kernel."""
    taken = tuple(range(x.ndim - contracted, x.ndim))
    return jax.lax.dot_general(x.astype(kernel.dtype), kernel, ((taken, tuple(range(contracted))), ((), ()))) + bias


class LayerNorm(nnx.Module):
    """LayerNorm of the last axis, computed in float32, returned in the compute type."""

    def __init__(self, width: int, *, eps: float, dtype):
        self.scale = parameter(jnp.ones(width), ("embed",))
        self.bias = parameter(jnp.zeros(width), ("embed",))
        self.eps, self.dtype = eps, dtype

    def __call__(self, x: Array) -> Array:
        x = x.astype(jnp.float32)
        x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.eps)
        return (x * value_of(self.scale) + value_of(self.bias)).astype(self.dtype)


class Mlp(nnx.Module):
    """Two projections with an exact GELU between them."""

    def __init__(self, width: int, hidden: int, *, dtype, rngs: nnx.Rngs):
        std = weight_std(width, width), weight_std(width, hidden)
        self.up = Linear((width,), (hidden,), ("embed", "mlp"), dtype=dtype, std=std[0], rngs=rngs)
        self.down = Linear((hidden,), (width,), ("mlp", "embed"), dtype=dtype, std=std[1], rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class Attention(nnx.Module):
    """Multi-head self-attention; `implementation` as in `attend`."""

    def __init__(self, width: int, heads: int, *, dtype, implementation: str, rngs: nnx.Rngs):
        std, each = weight_std(width, width), width // heads
        self.qkv = Linear((width,), (3, heads, each), ("embed", None, "heads", None), dtype=dtype, std=std, rngs=rngs)
        self.out = Linear((heads, each), (width,), ("heads", None, "embed"), dtype=dtype, std=std, rngs=rngs)
        self.implementation = implementation

    def split(self, x: Float[Array, "B N D"], parts: Sequence[int] = (0, 1, 2)) -> list[Float[Array, "B N H K"]]:
        """Queries (0), keys (1) and values (2) of tokens.

        Each is a product of its own: what one product gave for all three would have to be cut apart again.
        """
        kernel, bias = self.qkv.weights()
        return [project(x, kernel[:, part], bias[part], 1) for part in parts]

    def __call__(
        self,
        x: Float[Array, "B N D"],
        mask: Bool[Array, "B N"] | None = None,
        *,
        queries: int | None = None,
        drop: Callable[[Array], Array] | None = None,
    ) -> Float[Array, "B Q D"]:
        """Tokens attend to all tokens.

        Args:
            mask: True where a token may be attended to.
            queries: only so many first tokens ask; the others just answer.
            drop: applied to the attention weights.
        """
        (query,) = self.split(x[:, :queries], (0,))
        key, value = self.split(x, (1, 2))
        mask = None if mask is None else mask[:, None, None, :]
        return self.out(attend(query, key, value, mask, implementation=self.implementation, drop=drop))


def attend(
    query: Float[Array, "B Q H K"],
    key: Float[Array, "B N H K"],
    value: Float[Array, "B N H K"],
    mask: Bool[Array, "#B #H #Q N"] | None = None,
    *,
    implementation: str = "auto",
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "B Q H K"]:
    """Scaled dot-product attention with a float32 softmax.

    Args:
        mask: True where the query may look.
        implementation: "cudnn" or "xla" as in `jax.nn.dot_product_attention`, "einsum" for plain products, "auto" for
            cuDNN on a GPU in half precision, else plain products.
        drop: applied to the attention weights; forces plain products.
    """
    if implementation == "auto":
        half = query.dtype in (jnp.bfloat16, jnp.float16)
        implementation = "cudnn" if half and jax.default_backend() == "gpu" and query.shape[-1] % 8 == 0 else "einsum"
    if drop is None and implementation in ("cudnn", "xla"):
        if mask is not None:
            mask = jnp.broadcast_to(mask, (query.shape[0], 1, query.shape[1], key.shape[1]))
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)
    scores = jnp.einsum("bqhk,bnhk->bhqn", query * query.shape[-1] ** -0.5, key)
    weights = softmax(scores, mask)
    weights = weights if drop is None else drop(weights)
    return jnp.einsum("bhqn,bnhk->bqhk", weights, value)


def softmax(scores: Array, mask: Array | None = None) -> Array:
    """Softmax of the last axis in float32, back in the type of `scores`; nothing where `mask` is False."""
    x = scores.astype(jnp.float32)
    if mask is not None:
        x = jnp.where(mask, x, -jnp.inf)
    return jax.nn.softmax(x, axis=-1).astype(scores.dtype)


class Block(nnx.Module):
    """A pre-norm transformer block: attention, then MLP, each added to its input (as in ViT and AST)."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, *, eps: float, dtype, implementation: str, rngs: nnx.Rngs
    ):
        self.norm_attention = LayerNorm(width, eps=eps, dtype=dtype)
        self.attention = Attention(width, heads, dtype=dtype, implementation=implementation, rngs=rngs)
        self.norm_mlp = LayerNorm(width, eps=eps, dtype=dtype)
        self.mlp = Mlp(width, int(mlp_ratio * width), dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        mask: Bool[Array, "B N"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
        dropout_rate: float = 0.0,
        queries: int | None = None,
    ) -> Float[Array, "B Q D"]:
        """Arguments as in `Attention`; `dropout_rate` acts on attention weights and on both branches."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        drop = None if key is None or dropout_rate == 0 else lambda w: dropout(w, dropout_rate, keys[0])
        y = self.attention(self.norm_attention(x), mask, queries=queries, drop=drop)
        x = x[..., :queries, :] + dropout(y, dropout_rate, keys[1])
        return x + dropout(self.mlp(self.norm_mlp(x)), dropout_rate, keys[2])


class Pool(nnx.Module):
    """Sums a set of tokens up in one: a `Block` over an own CLS token and the set, of which the CLS token is kept."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, *, eps: float, dtype, implementation: str, rngs: nnx.Rngs
    ):
        self.cls = parameter(0.02 * jax.random.normal(rngs.params(), (width,)), ("embed",))
        self.block = Block(width, heads, mlp_ratio, eps=eps, dtype=dtype, implementation=implementation, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        mask: Bool[Array, "B N"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
        position: Float[Array, " D"] | None = None,
    ) -> Float[Array, "B D"]:
        """Only the CLS token asks, so that the others cost no query and no MLP.

        Args:
            position: added to the CLS token.
        """
        cls = value_of(self.cls) if position is None else value_of(self.cls) + position
        x = prepend(cls[None], x)
        mask = None if mask is None else keep_first(mask, 1)
        return self.block(x, mask, key=key, queries=1)[:, 0]


def prepend(tokens: Float[Array, "K D"], x: Float[Array, "B N D"]) -> Float[Array, "B K+N D"]:
    """The same learned tokens before every sequence."""
    return jnp.concatenate([jnp.broadcast_to(tokens.astype(x.dtype), (x.shape[0], *tokens.shape)), x], axis=1)


def keep_first(mask: Bool[Array, "B N"], count: int) -> Bool[Array, "B count+N"]:
    """The mask of a sequence that got `count` tokens in front, which are always kept."""
    return jnp.pad(mask, ((0, 0), (count, 0)), constant_values=True)


def dropout(x: Array, rate: float | Array, key: Array | None, shape: tuple[int, ...] | None = None) -> Array:
    """Zeroes entries with probability `rate` and scales the others up; nothing without a key.

    Args:
        shape: broadcast shape of the choice, for dropping whole rows.
    """
    if key is None or (isinstance(rate, (int, float)) and rate == 0):
        return x
    keep = 1 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(key, keep, x.shape if shape is None else shape)
    return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros((), x.dtype))


def drop_path(x: Float[Array, "B ..."], rate: float | Array, key: Array | None) -> Float[Array, "B ..."]:
    """Stochastic depth (arXiv 1603.09382): drops the whole branch of a sample."""
    return dropout(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` modules of one kind as one module whose parameters have a leading axis "layers"."""
    keys = jax.random.split(rngs.params(), depth)
    state = jax.vmap(lambda key: nnx.state(make(nnx.Rngs(key))))(keys)
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    stacked = nnx.merge(graph, state)
    for _, variable in nnx.to_flat_state(nnx.state(stacked)):
        variable.set_metadata(logical_axes=("layers", *variable.get_metadata("logical_axes")))
    return stacked


def scan(
    stacked: nnx.Module,
    x: Array,
    call: Callable[..., Array],
    *per_layer: Array,
    key: Array | None = None,
    remat: str = "none",
    unroll: int | bool = 1,
) -> Array:
    """Sends `x` through the layers of `stack`, one compiled body for all.

    Args:
        call: `call(layer, x, key, *values)` gives the next `x`; `values` are the layer's share of `per_layer`.
        key: split over the layers; None stays None.
        remat: "none" keeps all activations for the backward pass, "full" recomputes all, "dots" keeps the results of
            products with weights (`jax.checkpoint_policies`).
        unroll: as in `jax.lax.scan`; True writes all layers out.
    """
    graph, state = nnx.split(stacked)
    depth = jax.tree.leaves(state)[0].shape[0]
    keys = None if key is None else jax.random.split(key, depth)

    def body(x, layer):
        state, key, values = layer
        return call(nnx.merge(graph, state), x, key, *values), None

    if remat != "none":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(body, x, (state, keys, per_layer), unroll=depth if unroll is True else unroll)[0]


def resize_grid(grid: Float[Array, "H W D"], height: int, width: int) -> Float[Array, "height width D"]:
    """Position embeddings of a grid for a grid of another size (bicubic); the same array where the size is the same."""
    if grid.shape[:2] == (height, width):
        return grid
    return jax.image.resize(grid, (height, width, grid.shape[-1]), "bicubic", antialias=False)
