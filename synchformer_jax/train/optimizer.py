"""Optax optimisers and learning rates by config."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import optax
from jax import Array
from ml_collections import ConfigDict

Schedule = Callable[[int | Array], Array]


def make_schedule(config: ConfigDict) -> Schedule:
    """The learning rate of each step, counted from 0.

    cosine: `(step + 1) / warmup` of the peak, then half a cosine to zero at `train.steps` (published stage 1).
    constant: from 1/100 of the peak, linear over the warm-up, then constant (published stage 2).
    """
    settings = config.optimizer
    peak = settings.learning_rate * (config.data.batch_size / settings.per_clips if settings.per_clips else 1.0)
    warmup, steps = settings.warmup_steps, config.train.steps

    def cosine(step: int | Array) -> Array:
        done = jnp.clip((step - warmup) / (steps - warmup), 0, 1)
        rising = (step + 1) / max(warmup, 1)
        return peak * jnp.where(step < warmup, rising, 0.5 * (1 + jnp.cos(jnp.pi * done)))

    def constant(step: int | Array) -> Array:
        return peak * jnp.clip(0.01 + 0.99 * step / max(warmup, 1), 0.01, 1) if warmup else jnp.asarray(peak)

    return {"cosine": cosine, "constant": constant}[settings.schedule]


def make_optimizer(
    config: ConfigDict, axes: Mapping[str, tuple[str | None, ...] | None]
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimiser over a flat dictionary of parameters.

    Args:
        config: of the run.
        axes: the logical axes of each trainable parameter; weight decay takes only those that have two dimensions
            or more besides `layers` and are no bias, as the published training.

    Returns:
        The optimiser and its learning rates.
    """
    settings = config.optimizer
    schedule = make_schedule(config)

    def decays(name: str) -> bool:
        own = [axis for axis in axes[name] or () if axis != "layers"]
        return len(own) > 1 and name.rsplit(".", 1)[-1] != "bias"

    parts = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    decay = optax.add_decayed_weights(
        settings.weight_decay, mask=lambda params: {name: decays(name) for name in params}
    )
    if settings.name == "sgd":
        parts += [optax.trace(settings.b1)]
    else:
        parts += [optax.scale_by_adam(settings.b1, settings.b2, settings.eps)]
    if settings.weight_decay:
        # Adam's decay is part of the gradient, AdamW's is not.
        parts.insert(len(parts) - (settings.name != "adamw"), decay)
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule)), schedule
