"""The Audio Spectrogram Transformer (arXiv 2104.01778) as Synchformer uses it: log-mel in, one token a time step."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key
from ml_collections import ConfigDict

from synchformer_jax.models.config import audio_grid, validate
from synchformer_jax.models.layers import (
    Block,
    LayerNorm,
    Linear,
    Pool,
    drop_path,
    keep_first,
    parameter,
    prepend,
    resize_grid,
    scan,
    stack,
    value_of,
    weight_std,
)

EPS = 1e-12
POOL_EPS = 1e-6


class AST(nnx.Module):
    """The audio extractor: overlapping patches, ViT blocks, and a sum over frequency at each time step.

    Args:
        config: a whole model configuration (`model_config`); `audio` and `compute` are read.
        rngs: gives the fresh weights.

    Raises:
        UserError: the configuration does not fit together.
    """

    def __init__(self, config: ConfigDict, rngs: nnx.Rngs):
        validate(config)
        audio, compute = config.audio, config.compute
        width, size, dtype = audio.width, audio.patch_size, jnp.dtype(compute.dtype)
        options = {"dtype": dtype, "implementation": compute.attention}
        axes = (None, None, "embed")
        self.patch = Linear((size, size), (width,), axes, dtype=dtype, std=weight_std(width, size**2), rngs=rngs)
        self.cls = parameter(0.02 * jax.random.normal(rngs.params(), (width,)), ("embed",))
        self.distillation = parameter(0.02 * jax.random.normal(rngs.params(), (width,)), ("embed",))
        self.grid = audio_grid(config)
        places = 2 + self.grid[0] * self.grid[1]
        self.position = parameter(0.02 * jax.random.normal(rngs.params(), (places, width)), (None, "embed"))
        shape = (width, audio.heads, audio.mlp_ratio)
        self.blocks = stack(lambda rngs: Block(*shape, eps=EPS, rngs=rngs, **options), audio.depth, rngs)
        self.norm = LayerNorm(width, eps=EPS, dtype=dtype)
        self.pool = Pool(*shape, eps=POOL_EPS, rngs=rngs, **options)
        self.patch_size, self.stride, self.depth = size, audio.stride, audio.depth
        self.drop_path, self.remat, self.unroll = audio.drop_path, compute.remat, compute.unroll

    @jax.named_scope("audio")
    def __call__(
        self,
        log_mel: Float[Array, "B S M Ta"],
        mask: Bool[Array, "B S M Ta"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B S t D"]:
        """Features of each segment.

        Args:
            log_mel: normalised log-mel, M mel bins by Ta frames. Position embeddings are interpolated where the
                size is not the configured one.
            mask: True where the sound is given. A token whose patch holds any masked value is attended to by no other.
            key: turns on drop path.
        """
        batch, segments = log_mel.shape[:2]
        x = self.patches(log_mel.reshape(-1, *log_mel.shape[2:]))
        count, high, long, width = x.shape
        x = prepend(jnp.stack([value_of(self.cls), value_of(self.distillation)]), x.reshape(count, -1, width))
        table = value_of(self.position)
        places = resize_grid(table[2:].reshape(*self.grid, width), high, long).reshape(-1, width)
        x = x + jnp.concatenate([table[:2], places]).astype(x.dtype)
        keep = None if mask is None else self.kept(mask.reshape(-1, *mask.shape[2:]))
        keep_all = None if keep is None else keep_first(keep.reshape(count, -1), 2)
        rates = jnp.linspace(0, self.drop_path, self.depth)
        drop = key is not None and self.drop_path > 0

        def call(block, x, key, rate):
            return _drop_block(block, x, keep_all, key, rate) if drop else block(x, keep_all)

        x = scan(self.blocks, x, call, rates, key=key if drop else None, remat=self.remat, unroll=self.unroll)
        x = self.norm(x[:, 2:]).reshape(count, high, long, width).swapaxes(1, 2).reshape(-1, high, width)
        keep = None if keep is None else keep.swapaxes(1, 2).reshape(-1, high)
        return self.pool(x, keep).reshape(batch, segments, long, -1)

    def patches(self, log_mel: Float[Array, "N M Ta"]) -> Float[Array, "N f t D"]:
        """Embeds overlapping patches of mel bins by frames."""
        kernel, bias = self.patch.weights()
        x = jax.lax.conv_general_dilated(
            log_mel.astype(kernel.dtype)[..., None],
            kernel[:, :, None],
            (self.stride, self.stride),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias

    def kept(self, mask: Bool[Array, "N M Ta"]) -> Bool[Array, "N f t"]:
        """True for patches of which nothing is masked."""
        window, stride = (1, self.patch_size, self.patch_size), (1, self.stride, self.stride)
        return jax.lax.reduce_window(mask, True, jax.lax.bitwise_and, window, stride, "VALID")


def _drop_block(block: Block, x: Array, mask: Array | None, key: Array, rate: Array) -> Array:
    """A block whose branches are dropped by sample."""
    keys = jax.random.split(key)
    x = x + drop_path(block.attention(block.norm_attention(x), mask), rate, keys[0])
    return x + drop_path(block.mlp(block.norm_mlp(x)), rate, keys[1])
