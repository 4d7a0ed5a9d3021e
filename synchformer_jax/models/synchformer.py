"""Stage 2: the transformer that reads both streams of features and classifies their offset (arXiv 2401.16423, 3.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from synchformer_jax.errors import UserError
from synchformer_jax.models.ast import AST
from synchformer_jax.models.config import audio_grid, validate, visual_tokens
from synchformer_jax.models.lag_profile import LagProfile
from synchformer_jax.models.layers import (
    Block,
    LayerNorm,
    Linear,
    dropout,
    parameter,
    prepend,
    scan,
    stack,
    value_of,
    weight_std,
)
from synchformer_jax.models.motionformer import Motionformer

EPS = 1e-5


class SyncHead(nnx.Module):
    """Reads `[OFF] visual tokens [MOD] audio tokens` and gives the logits of the classes at `[OFF]`.

    Args:
        config: a whole model configuration (`model_config`).
        rngs: gives the fresh weights.

    Raises:
        UserError: the configuration does not fit together.
    """

    def __init__(self, config: ConfigDict, rngs: nnx.Rngs):
        validate(config)
        head, compute = config.head, config.compute
        width, dtype = head.width, jnp.dtype(compute.dtype)
        for name, given in (("visual", config.visual.width), ("audio", config.audio.width)):
            std = weight_std(width, given)
            setattr(self, name, Linear((given,), (width,), (None, "embed"), dtype=dtype, std=std, rngs=rngs))
        self.norm_visual = LayerNorm(width, eps=EPS, dtype=dtype)
        self.norm_audio = LayerNorm(width, eps=EPS, dtype=dtype)
        self.tokens = (config.segments, visual_tokens(config), audio_grid(config)[1])
        places = 2 + self.tokens[0] * (self.tokens[1] + self.tokens[2])
        self.off = parameter(jax.random.normal(rngs.params(), (width,)), ("embed",))
        self.mod = parameter(jax.random.normal(rngs.params(), (width,)), ("embed",))
        self.position = parameter(jax.random.normal(rngs.params(), (places, width)), (None, "embed"))
        shape, options = (width, head.heads, head.mlp_ratio), {"dtype": dtype, "implementation": compute.attention}
        self.blocks = stack(lambda rngs: Block(*shape, eps=EPS, rngs=rngs, **options), head.depth, rngs)
        self.norm = LayerNorm(width, eps=EPS, dtype=dtype)
        std = weight_std(width, width)
        self.classify = Linear((width,), (head.classes,), ("embed", "vocab"), dtype=jnp.float32, std=std, rngs=rngs)
        if head.lag_profile:
            self.lag = LagProfile(config, rngs)
        self.dropout, self.token_dropout, self.depth = head.dropout, head.token_dropout, head.depth
        self.remat, self.unroll = compute.remat, compute.unroll

    @jax.named_scope("head")
    def __call__(
        self,
        visual: Float[Array, "B S tv Dv"],
        audio: Float[Array, "B S ta Da"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B classes"]:
        """Logits, float32.

        Args:
            visual, audio: features of the extractors, of the configured number of segments and tokens.
            key: turns on dropout.

        Raises:
            UserError: another number of segments or tokens than configured.
        """
        given = (visual.shape[1], visual.shape[2], audio.shape[2])
        if given != self.tokens or audio.shape[1] != given[0]:
            raise UserError(
                f"The sync head got {given[0]} visual and {audio.shape[1]} audio segments of {given[1]} and {given[2]} "
                f"tokens; it has positions for {self.tokens[0]} of {self.tokens[1]} and {self.tokens[2]}. Set "
                "model.segments, model.visual and model.audio to what the features were made with."
            )
        keys = (None,) * 5 if key is None else jax.random.split(key, 5)
        v = self.norm_visual(self.visual(visual)).reshape(visual.shape[0], given[0] * given[1], -1)
        a = self.norm_audio(self.audio(audio)).reshape(audio.shape[0], given[0] * given[2], -1)
        v, a = (dropout(x, self.token_dropout, k, (*x.shape[:2], 1)) for x, k in ((v, keys[0]), (a, keys[1])))
        x = jnp.concatenate([prepend(value_of(self.off)[None], v), prepend(value_of(self.mod)[None], a)], axis=1)
        x = dropout(x + value_of(self.position, x.dtype), self.dropout, keys[2])

        def call(block, x, key):
            return block(x, key=key, dropout_rate=self.dropout)

        x = scan(self.blocks, x, call, key=keys[3], remat=self.remat, unroll=self.unroll)
        logits = self.classify(self.norm(x[:, 0])).astype(jnp.float32)
        return logits + self.lag(visual, audio) if hasattr(self, "lag") else logits


class Synchformer(nnx.Module):
    """Both extractors and the sync head.

    Args:
        config: a model configuration (`model_config`).
        rngs: gives the fresh weights.

    Raises:
        UserError: the configuration does not fit together.
    """

    def __init__(self, config: ConfigDict, rngs: nnx.Rngs):
        self.visual = Motionformer(config, rngs)
        self.audio = AST(config, rngs)
        self.head = SyncHead(config, rngs)

    def __call__(
        self,
        frames: Float[Array, "B S T H W 3"],
        log_mel: Float[Array, "B S M Ta"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B classes"]:
        """Logits of the classes, float32; arguments as in the extractors."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        visual, audio = self.visual(frames, key=keys[0]), self.audio(log_mel, key=keys[1])
        return self.head(visual, audio, key=keys[2])


class Synchronizability(Synchformer):
    """Stage 3: could these two streams be synchronized at all (section 3.3)? Two classes: no, yes.

    The published model reads 13 segments; `config.segments` and `config.head.classes` are set to 13 and 2 here.
    """

    def __init__(self, config: ConfigDict, rngs: nnx.Rngs):
        config = config.copy_and_resolve_references()
        config.segments, config.head.classes, config.head.lag_profile = 13, 2, False
        super().__init__(config, rngs)
