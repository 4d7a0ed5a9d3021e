"""Stage 1: contrastive audio-visual pretraining of segments, and if wanted of whole clips (Synchformer, arXiv
2401.16423, section 3.1)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from synchformer_jax.errors import UserError
from synchformer_jax.models.ast import AST
from synchformer_jax.models.layers import Pool, parameter, value_of
from synchformer_jax.models.motionformer import EPS, Motionformer

Keys = tuple[Key[Array, ""] | None, Key[Array, ""] | None]
PREFIX = {"segment": "", "global": "global_"}  # of a level's parameters


class SegmentAVCLIP(nnx.Module):
    """Both extractors, each segment's tokens averaged over time and normalised, and a learned temperature.

    With `avclip.global_pool` there is a second level, "global", with a temperature of its own: the segments of a clip
    summed up in one embedding, by their mean or by an attention layer that knows their order.

    Args:
        config: a model configuration (`model_config`); `avclip` and `temperature` are read besides the extractors'.
        rngs: gives the fresh weights.

    Raises:
        UserError: the configuration does not fit together.
    """

    def __init__(self, config: ConfigDict, rngs: nnx.Rngs):
        self.visual = Motionformer(config, rngs)
        self.audio = AST(config, rngs)
        options = config.avclip
        if config.visual.width != config.audio.width:
            raise UserError(
                f"model.visual.width is {config.visual.width} and model.audio.width {config.audio.width}. Contrastive "
                "pretraining compares the two; give them the same width."
            )
        self.levels = ("segment",) if options.global_pool == "none" else ("segment", "global")
        if options.global_pool == "attention":
            self.global_visual, self.global_audio = (ClipPool(config, part, rngs) for part in ("visual", "audio"))
        self.sigmoid = options.loss == "sigmoid"
        for prefix in (PREFIX[level] for level in self.levels):
            if self.sigmoid:
                setattr(self, f"{prefix}log_scale", _scalar(-math.log(options.sigmoid_temperature)))
                setattr(self, f"{prefix}logit_bias", _scalar(options.sigmoid_bias))
            else:
                setattr(self, f"{prefix}logit_scale", _scalar(config.temperature.init))
        self.limits = (config.temperature.min, config.temperature.max)

    def __call__(
        self,
        frames: Float[Array, "B S T H W 3"],
        log_mel: Float[Array, "B S M Ta"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"]]:
        """Visual and audio embeddings of each segment, float32, of unit length; arguments as in the extractors."""
        return self.embed(frames, log_mel, (None, None) if key is None else tuple(jax.random.split(key)))["segment"]

    def embed(
        self, frames: Float[Array, "B S T H W 3"], log_mel: Float[Array, "B S M Ta"], keys: Keys = (None, None)
    ) -> dict[str, tuple[Float[Array, "B S D"], Float[Array, "B S D"]]]:
        """Visual and audio embeddings by level, float32, of unit length.

        Args:
            frames, log_mel: as in the extractors.
            keys: turn on the visual and the audio extractor's drop path.

        Returns:
            "segment": `[B, S, D]` each; and "global", where there is one: `[B, 1, D]` each.
        """
        visual = self.visual(frames, key=keys[0]).astype(jnp.float32).mean(axis=-2)
        audio = self.audio(log_mel, key=keys[1]).astype(jnp.float32).mean(axis=-2)
        levels = {"segment": (visual, audio)}
        if hasattr(self, "global_visual"):
            levels["global"] = (self.global_visual(visual), self.global_audio(audio))
        elif "global" in self.levels:
            levels["global"] = (visual.mean(axis=1, keepdims=True), audio.mean(axis=1, keepdims=True))
        return {level: (normalise(v), normalise(a)) for level, (v, a) in levels.items()}

    def temperature(self, level: str = "segment") -> Float[Array, ""]:
        """The divisor of a level's similarities.

        For InfoNCE it is the parameter itself, clamped; the gradient passes the clamp, so that it can leave a bound
        again. For the sigmoid loss the parameter is the logarithm of its inverse, as in SigLIP.
        """
        if self.sigmoid:
            return jnp.exp(-getattr(self, f"{PREFIX[level]}log_scale")[...])
        raw = getattr(self, f"{PREFIX[level]}logit_scale")[...]
        return jnp.clip(jax.lax.stop_gradient(raw), *self.limits) + (raw - jax.lax.stop_gradient(raw))

    def bias(self, level: str = "segment") -> Float[Array, ""] | None:
        """What the sigmoid loss adds to a level's divided similarities; None for InfoNCE."""
        return getattr(self, f"{PREFIX[level]}logit_bias")[...] if self.sigmoid else None


class ClipPool(nnx.Module):
    """The segments of a clip summed up in one embedding: positions, then a `Pool`.

    Args:
        config: a model configuration.
        part: "visual" or "audio".
        rngs: gives the fresh weights.
    """

    def __init__(self, config: ConfigDict, part: str, rngs: nnx.Rngs):
        shape, compute = config[part], config.compute
        self.pool = Pool(
            shape.width,
            shape.heads,
            shape.mlp_ratio,
            eps=EPS,
            dtype=jnp.dtype(compute.dtype),
            implementation=compute.attention,
            rngs=rngs,
        )
        # The first is added to the pool's own token, as published.
        position = 0.02 * jax.random.normal(rngs.params(), (1 + config.segments, shape.width))
        self.position = parameter(position, (None, "embed"))

    def __call__(self, segments: Float[Array, "B S D"]) -> Float[Array, "B 1 D"]:
        """One embedding of at most the configured number of segments; the first positions serve a shorter row.

        Raises:
            ValueError: there are more segments than positions.
        """
        places = value_of(self.position)
        if segments.shape[1] >= len(places):
            raise ValueError(f"{segments.shape[1]} segments, but positions for {len(places) - 1} (model.segments)")
        dtype = self.pool.block.mlp.up.dtype
        x = segments.astype(dtype) + places[1 : 1 + segments.shape[1]].astype(dtype)
        return self.pool(x, position=places[0])[:, None]


def _scalar(value: float) -> nnx.Param:
    return parameter(jnp.asarray(value, jnp.float32), ())


def normalise(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Scaled to unit length, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))
