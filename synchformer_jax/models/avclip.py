"""Stage 1: segment-level contrastive audio-visual pretraining (Synchformer, arXiv 2401.16423, section 3.1)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from synchformer_jax.models.ast import AST
from synchformer_jax.models.layers import parameter
from synchformer_jax.models.motionformer import Motionformer


class SegmentAVCLIP(nnx.Module):
    """Both extractors, each segment's tokens averaged over time and normalised, and a learned temperature.

    Args:
        config: a model configuration (`model_config`).
        rngs: gives the fresh weights.

    Raises:
        UserError: the configuration does not fit together.
    """

    def __init__(self, config: ConfigDict, rngs: nnx.Rngs):
        self.visual = Motionformer(config, rngs)
        self.audio = AST(config, rngs)
        self.logit_scale = parameter(jnp.asarray(config.temperature.init, jnp.float32), ())
        self.limits = (config.temperature.min, config.temperature.max)

    def __call__(
        self,
        frames: Float[Array, "B S T H W 3"],
        log_mel: Float[Array, "B S M Ta"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"]]:
        """Visual and audio embeddings of each segment, float32, of unit length; arguments as in the extractors."""
        keys = (None, None) if key is None else jax.random.split(key)
        return normalise(self.visual(frames, key=keys[0])), normalise(self.audio(log_mel, key=keys[1]))

    def temperature(self) -> Float[Array, ""]:
        """The divisor of similarities, clamped; the gradient passes the clamp, so that it can leave a bound again."""
        raw = self.logit_scale[...]
        return jnp.clip(jax.lax.stop_gradient(raw), *self.limits) + (raw - jax.lax.stop_gradient(raw))


def normalise(tokens: Float[Array, "B S t D"]) -> Float[Array, "B S D"]:
    """The mean over time, in float32, scaled to unit length."""
    mean = tokens.astype(jnp.float32).mean(axis=-2)
    return mean * jax.lax.rsqrt(jnp.maximum(jnp.square(mean).sum(axis=-1, keepdims=True), 1e-24))
