"""Motionformer (arXiv 2106.05392) as Synchformer uses it: frames of a segment in, one token a tubelet of time out."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key
from ml_collections import ConfigDict

from synchformer_jax.models.config import validate
from synchformer_jax.models.layers import (
    Attention,
    LayerNorm,
    Linear,
    Mlp,
    Pool,
    drop_path,
    keep_first,
    parameter,
    resize_grid,
    scan,
    stack,
    value_of,
    weight_std,
)
from synchformer_jax.models.patch_init import dct_kernel, sinusoid
from synchformer_jax.models.space_time import TrajectoryAttention, divided_attention

EPS = 1e-6


class Motionformer(nnx.Module):
    """The visual extractor: tubelets, space-time blocks, and a spatial sum of each frame pair.

    Args:
        config: a whole model configuration (`model_config`); `visual` and `compute` are read.
        rngs: gives the fresh weights.

    Raises:
        UserError: the configuration does not fit together.
    """

    def __init__(self, config: ConfigDict, rngs: nnx.Rngs):
        validate(config)
        visual, compute = config.visual, config.compute
        width, side, time = visual.width, visual.image_size // visual.patch_size, visual.frames // visual.tubelet
        dtype = jnp.dtype(compute.dtype)
        shape = (visual.tubelet, visual.patch_size, visual.patch_size, 3)
        std = weight_std(width, visual.tubelet * visual.patch_size**2 * 3)
        self.patch = Linear(shape, (width,), (None,) * 4 + ("embed",), dtype=dtype, std=std, rngs=rngs)
        if visual.patch_init == "dct":
            self.patch.kernel[...] = jnp.asarray(dct_kernel(shape, width))
        self.cls = parameter(0.02 * jax.random.normal(rngs.params(), (width,)), ("embed",))
        places = side**2 * (time if visual.position == "joint" else 1)
        position = 0.02 * jax.random.normal(rngs.params(), (1 + places, width))
        self.position = parameter(position, (None, "embed"))
        if visual.position == "separate":
            start = sinusoid(time, width) if visual.position_init == "sinusoidal" else jnp.zeros((time, width))
            self.position_time = parameter(start, (None, "embed"))
        kind = DividedBlock if visual.attention == "divided" else JointBlock
        self.blocks = stack(lambda rngs: kind(config, rngs), visual.depth, rngs)
        self.norm = LayerNorm(width, eps=EPS, dtype=dtype)
        self.pool = Pool(
            width, visual.heads, visual.mlp_ratio, eps=EPS, dtype=dtype, implementation=compute.attention, rngs=rngs
        )
        self.drop_path, self.remat, self.unroll = visual.drop_path, compute.remat, compute.unroll
        self.depth, self.grid, self.tubelet, self.patch_size = visual.depth, (time, side, side), *shape[:2]
        self.frames = visual.frames

    @jax.named_scope("visual")
    def __call__(
        self,
        frames: Float[Array, "B S T H W 3"],
        mask: Bool[Array, "B S T H W"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B S t D"]:
        """Features of each segment.

        Args:
            frames: RGB in [-1, 1]; T a multiple of the tubelet, H and W of the patch. Position embeddings are
                interpolated where the size is not the configured one.
            mask: True where the picture is given. A token whose tubelet holds any masked value is attended to by no
                other.
            key: turns on drop path.

        Raises:
            ValueError: the frames do not divide into tubelets.
        """
        batch, segments = frames.shape[:2]
        x = self.tubelets(frames.reshape(-1, *frames.shape[2:]))
        grid = x.shape[1:4]
        x = x.reshape(x.shape[0], grid[0], -1, x.shape[-1])
        positions = self.positions(grid).astype(x.dtype)
        cls = jnp.broadcast_to(value_of(self.cls, x.dtype) + positions[0], (x.shape[0], 1, x.shape[-1]))
        x = x + positions[1:].reshape(x.shape[1:])
        keep = None if mask is None else self.kept(mask.reshape(-1, *mask.shape[2:])).reshape(x.shape[:-1])
        rates = jnp.linspace(0, self.drop_path, self.depth)

        def call(block, tokens, key, rate):
            return block(*tokens, keep, key=key, rate=rate)

        _, x = scan(self.blocks, (cls, x), call, rates, key=key, remat=self.remat, unroll=self.unroll)
        x = self.norm(x).reshape(-1, *x.shape[2:])
        keep = None if keep is None else keep.reshape(x.shape[:-1])
        return self.pool(x, keep).reshape(batch, segments, grid[0], -1)

    def tubelets(self, frames: Float[Array, "N T H W 3"]) -> Float[Array, "N t h w D"]:
        """Embeds blocks of tubelet x patch x patch pixels.

        Raises:
            ValueError: the frames do not divide into blocks.
        """
        count, time, height, width, colours = frames.shape
        a, p = self.tubelet, self.patch_size
        if time % a or height % p or width % p:
            raise ValueError(f"{time} frames of {height} x {width} do not divide into blocks of {a} x {p} x {p}")
        x = frames.astype(self.patch.dtype).reshape(count, time // a, a, height // p, p, width // p, p, colours)
        return self.patch(x.transpose(0, 1, 3, 5, 2, 4, 6, 7))

    def kept(self, mask: Bool[Array, "N T H W"]) -> Bool[Array, "N t h w"]:
        """True for tubelets of which nothing is masked."""
        count, time, height, width = mask.shape
        a, p = self.tubelet, self.patch_size
        return mask.reshape(count, time // a, a, height // p, p, width // p, p).all(axis=(2, 4, 6))

    def positions(self, grid: tuple[int, int, int]) -> Float[Array, "1+t*h*w D"]:
        """The position embeddings of the CLS token and of a grid (time, height, width)."""
        time, height, width = self.grid
        table = value_of(self.position)
        depth = table.shape[-1]
        if hasattr(self, "position_time"):
            space = resize_grid(table[1:].reshape(height, width, depth), *grid[1:]).reshape(1, -1, depth)
            when = resize_grid(value_of(self.position_time)[:, None], grid[0], 1)
            places = space + when
        else:
            places = resize_grid(table[1:].reshape(time, height * width, depth), grid[0], height * width)
            if grid[1:] != (height, width):
                places = places.reshape(grid[0], height, width, depth)
                places = jax.vmap(lambda one: resize_grid(one, *grid[1:]))(places)
        return jnp.concatenate([table[:1], places.reshape(-1, depth)])


class DividedBlock(nnx.Module):
    """Attention over time at each place, then over the places of each time, then an MLP (TimeSformer's order).

    The CLS token asks all tokens and answers in every group. Only the last two branches are dropped by drop path, as
    published.
    """

    def __init__(self, config: ConfigDict, rngs: nnx.Rngs):
        visual, dtype = config.visual, jnp.dtype(config.compute.dtype)
        width = visual.width
        options = {"dtype": dtype, "implementation": config.compute.attention, "rngs": rngs}
        self.norm_time = LayerNorm(width, eps=EPS, dtype=dtype)
        self.time = Attention(width, visual.heads, **options)
        self.norm_space = LayerNorm(width, eps=EPS, dtype=dtype)
        self.space = Attention(width, visual.heads, **options)
        self.norm_mlp = LayerNorm(width, eps=EPS, dtype=dtype)
        self.mlp = Mlp(width, int(visual.mlp_ratio * width), dtype=dtype, rngs=rngs)

    def __call__(self, cls, x, mask=None, *, key=None, rate=0.0):
        """The CLS token `[N, 1, D]` and the tubelets `[N, t, P, D]`, which no copy has to cut apart; both again.

        Args:
            mask: `[N, t, P]`, True for tubelets to attend to.
            rate: of drop path.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        for axis, norm, module in (("time", self.norm_time, self.time), ("space", self.norm_space, self.space)):
            with jax.named_scope(axis):
                branches = divided_attention(module, norm(cls), norm(x), axis, mask)
                if axis == "space":
                    branches = [drop_path(branch, rate, keys[0]) for branch in branches]
                cls, x = cls + branches[0], x + branches[1]
        with jax.named_scope("mlp"):
            return tuple(y + drop_path(self.mlp(self.norm_mlp(y)), rate, keys[1]) for y in (cls, x))


class JointBlock(nnx.Module):
    """Attention over all tubelets at once, or along trajectories, then an MLP."""

    def __init__(self, config: ConfigDict, rngs: nnx.Rngs):
        visual, dtype = config.visual, jnp.dtype(config.compute.dtype)
        width = visual.width
        self.norm_attention = LayerNorm(width, eps=EPS, dtype=dtype)
        if visual.attention == "joint":
            implementation = config.compute.attention
            self.attention = Attention(width, visual.heads, dtype=dtype, implementation=implementation, rngs=rngs)
        else:
            self.attention = TrajectoryAttention(
                width, visual.heads, dtype=dtype, project_values=visual.trajectory_values == "projected", rngs=rngs
            )
        self.norm_mlp = LayerNorm(width, eps=EPS, dtype=dtype)
        self.mlp = Mlp(width, int(visual.mlp_ratio * width), dtype=dtype, rngs=rngs)

    def __call__(self, cls, x, mask=None, *, key=None, rate=0.0):
        """As in `DividedBlock`."""
        keys = (None, None) if key is None else jax.random.split(key)
        shape = x.shape
        x = jnp.concatenate([cls, x.reshape(shape[0], -1, shape[-1])], axis=1)
        mask = None if mask is None else keep_first(mask.reshape(shape[0], -1), 1)
        y = self.norm_attention(x)
        if isinstance(self.attention, TrajectoryAttention):
            y = self.attention(y, shape[1], mask)
        else:
            y = self.attention(y, mask)
        x = x + drop_path(y, rate, keys[0])
        x = x + drop_path(self.mlp(self.norm_mlp(x)), rate, keys[1])
        return x[:, :1], x[:, 1:].reshape(shape)
