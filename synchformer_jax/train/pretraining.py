"""Stage 1's loss of a batch, and what momentum encoders remember from step to step (options of the published code).

The memory of a run is a dictionary: `params`, the followers of the trained encoders' parameters under the same names,
and `queue`, for each level the embeddings `[2, Q, D]` (visual, audio) that they gave the last batches. Without momentum
encoders it is empty.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from synchformer_jax.models.avclip import PREFIX, Keys, SegmentAVCLIP, normalise
from synchformer_jax.objectives.contrastive import Level, Teacher, contrastive_losses

Arrays = dict[str, jax.Array]
Levels = dict[str, tuple[jax.Array, jax.Array]]
ENCODERS = ("visual.", "audio.", "global_visual.", "global_audio.")


def first_memory(config: ConfigDict, params: Arrays) -> dict[str, Any]:
    """The memory before the first step: the parameters themselves, and a queue of random directions, as published."""
    options = config.contrastive
    if config.stage != "segment_avclip" or not options.momentum_encoders:
        return {}
    memory = {"params": {name: jnp.copy(value) for name, value in params.items() if name.startswith(ENCODERS)}}
    rows = {"segment": options.queue_clips * config.model.segments}
    if config.model.avclip.global_pool != "none":
        rows["global"] = options.queue_clips
    keys = jax.random.split(jax.random.key(config.seed), len(rows))
    width = config.model.visual.width
    memory["queue"] = {
        level: normalise(jax.random.normal(key, (2, count, width)))
        for (level, count), key in zip(rows.items(), keys, strict=True)
        if count
    }
    return memory


def follow(config: ConfigDict, memory: dict[str, Any], params: Arrays) -> dict[str, Any]:
    """The followers' parameters moved towards the trained ones, as at the beginning of every published step."""
    if not memory:
        return memory
    part = 1 - config.contrastive.momentum
    targets = {name: params[name] for name in memory["params"]}
    return memory | {"params": optax.incremental_update(targets, memory["params"], part)}


def enqueue(memory: dict[str, Any], fresh: Levels, step: jax.Array) -> dict[str, Any]:
    """The queue with its oldest embeddings replaced by the followers' `fresh` ones, `[B, S, D]` by level."""
    queue = {}
    for level, rows in memory.get("queue", {}).items():
        new = jnp.stack(fresh[level]).reshape(2, -1, rows.shape[-1])
        batches = rows.shape[1] // new.shape[1]
        queue[level] = jax.lax.dynamic_update_slice(rows, new, (0, step % batches * new.shape[1], 0))
    return memory | {"queue": queue} if memory else memory


def loss_and_metrics(
    config: ConfigDict,
    mesh: jax.sharding.Mesh | None,
    model: SegmentAVCLIP,
    inputs: tuple[jax.Array, jax.Array],
    keys: Keys,
    follower: SegmentAVCLIP | None = None,
    follower_keys: Keys = (None, None),
    queue: Arrays | None = None,
    step: jax.Array | int = 0,
) -> tuple[jax.Array, tuple[Arrays, Levels]]:
    """The loss of a batch.

    Args:
        config: of the run.
        mesh: of the run.
        model: what learns.
        inputs: frames and log-mel, as the model takes them.
        keys: turn on drop path.
        follower, follower_keys, queue: the same model with the memory's parameters, its keys, and the memory's queue.
        step: finished steps, by which `alpha` grows.

    Returns:
        The loss, and with it metrics and the follower's embeddings by level.
    """
    options = config.contrastive
    levels = model.embed(*inputs, keys)
    fresh = {} if follower is None else jax.lax.stop_gradient(follower.embed(*inputs, follower_keys))
    contrasted = {}
    for level, (visual, audio) in levels.items():
        teacher = None
        if fresh:
            alpha = options.alpha * (jnp.minimum(1.0, step / options.alpha_steps) if options.alpha_steps else 1.0)
            empty = jnp.zeros((2, 0, visual.shape[-1]))
            teacher = Teacher(*fresh[level], (queue or {}).get(level, empty), alpha)
        contrasted[level] = Level(visual, audio, model.temperature(level), model.bias(level), teacher)
    found = contrastive_losses(contrasted, clips=options.group_clips, chunk=options.chunk, mesh=mesh)
    total = sum(options[f"{level}_weight"] * loss for level, loss in found.items())
    metrics = {f"{PREFIX[level]}temperature": of_level.temperature for level, of_level in contrasted.items()}
    if len(found) > 1:
        metrics |= {f"{level}_loss": loss for level, loss in found.items()}
    return total, (metrics, fresh)
