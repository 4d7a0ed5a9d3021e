"""One step of each stage, from a batch of whole clips to new parameters; and the same without learning.

The step is one compiled program: cutting, colour, log-mel, model, loss, gradients and update. The state is donated.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from synchformer_jax.models.avclip import PREFIX
from synchformer_jax.models.flops import flops
from synchformer_jax.objectives import offset
from synchformer_jax.train import mesh as meshes
from synchformer_jax.train import pretraining
from synchformer_jax.train import state as states
from synchformer_jax.train.inputs import audio_input, visual_input
from synchformer_jax.train.state import Arrays, Run, TrainState

Batch = dict[str, jax.Array]
# What goes to the device; the rest of a batch stays on the host.
FIELDS = ("frames", "zoom", "visual", "audio", "target")


def device_fields(batch: dict[str, Any]) -> dict[str, Any]:
    """The part of a batch that the step takes."""
    return {name: batch[name] for name in FIELDS if name in batch}


def trained_key(part: str, trained: tuple[str, ...], key: jax.Array | None) -> jax.Array | None:
    """The key of a part of the model, or None where the part is frozen: it runs without dropout."""
    return key if any(states.has_prefix(name, (part,)) for name in trained) else None


def embed(config: ConfigDict, model: Any, batch: Batch, mesh: Mesh | None = None) -> pretraining.Levels:
    """Stage 1: unit embeddings `[B, S, D]` of both streams by level."""
    return model.embed(visual_input(config, batch, None), audio_input(config, batch["audio"], None, mesh))


def classify(
    config: ConfigDict,
    model: Any,
    batch: Batch,
    key: jax.Array | None,
    trained: tuple[str, ...],
    mesh: Mesh | None = None,
) -> jax.Array:
    """Later stages: logits `[B, C]`. Frozen extractors run without dropout; cached features replace the picture."""
    keys = (None,) * 5 if key is None else jax.random.split(key, 5)
    if "visual" in batch:
        visual = batch["visual"].astype(jnp.dtype(config.model.compute.dtype))
    else:
        frames = visual_input(config, batch, keys[0])
        visual = model.visual(frames, key=trained_key("visual", trained, keys[2]))
    mel = audio_input(config, batch["audio"], keys[1], mesh)
    audio = model.audio(mel, key=trained_key("audio", trained, keys[3]))
    return model.head(visual, audio, key=keys[4])


def loss_and_metrics(
    run: Run,
    params: Arrays,
    frozen: Arrays,
    batch: Batch,
    key: jax.Array | None,
    memory: dict[str, Any] | None = None,
    step: jax.Array | int = 0,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], pretraining.Levels]]:
    """The loss of a batch; with it what else is worth a curve, and embeddings for the memory."""
    config, model = run.config, run.build({**frozen, **params})
    if config.stage == "segment_avclip":
        return _contrast(run, model, {**frozen, **params}, batch, key, memory, step)
    logits = classify(config, model, batch, key, run.trained, run.mesh)
    target = batch["target"]
    return offset.cross_entropy(logits, target), ({"accuracy": offset.accuracy(logits, target)}, {})


def _contrast(run, model, arrays: Arrays, batch: Batch, key, memory, step):
    keys = (None,) * 3 if key is None else jax.random.split(key, 3)
    sound = audio_input(run.config, batch["audio"], keys[1], run.mesh)
    inputs = visual_input(run.config, batch, keys[0]), sound

    def dropping(some_key: jax.Array | None) -> pretraining.Keys:
        both = (None, None) if some_key is None else jax.random.split(some_key)
        return tuple(trained_key(part, run.trained, k) for part, k in zip(("visual", "audio"), both, strict=True))

    follower = {}
    if memory:
        follower = {
            "follower": run.build({**arrays, **memory["params"]}),
            "follower_keys": dropping(None if key is None else jax.random.fold_in(keys[2], 1)),
            "queue": memory["queue"],
        }
    return pretraining.loss_and_metrics(run.config, run.mesh, model, inputs, dropping(keys[2]), step=step, **follower)


def flops_per_clip(config: ConfigDict, trained: tuple[str, ...]) -> float:
    """Floating point operations of one training step for one clip, as `models.flops` counts them.

    The backward pass counts twice the forward; a frozen extractor has none, a cached one costs nothing. Momentum
    encoders add a forward pass.
    """
    cost = flops(config.model)
    followed = config.stage == "segment_avclip" and config.contrastive.momentum_encoders

    def times(part: str) -> int:
        return followed + (3 if any(states.has_prefix(name, (part,)) for name in trained) else 1)

    picture = 0 if config.data.visual_features else times("visual") * cost["visual_segment"]
    head = 0 if config.stage == "segment_avclip" else times("head") * cost["head"]
    return config.model.segments * (picture + times("audio") * cost["audio_segment"]) + head


def make_train_step(run: Run) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled step: `(state, frozen, batch[, limit]) -> (state, metrics)`. The state that goes in is used up.

    Its randomness depends on nothing but the seed and the step's number, so that a resumed run draws the same. With
    `train.on_bad_step` "skip", a loss or a gradient that is no number, or a gradient norm above `limit`, leaves
    parameters and optimiser as they were; the metric `skipped` is then 1.
    """
    config, mesh = run.config, run.mesh
    parts, shards = config.train.accumulate, meshes.batch_shards(mesh)
    limits = config.model.temperature

    def micro_batches(batch: Batch) -> Batch:
        """Every device's share cut in `parts`: `[parts, B / parts, ...]`."""

        def cut(values: jax.Array) -> jax.Array:
            cut_shape = (shards, parts, values.shape[0] // (shards * parts), *values.shape[1:])
            values = values.reshape(cut_shape).swapaxes(0, 1)
            return values.reshape(parts, -1, *values.shape[3:])

        return jax.tree.map(cut, batch)

    def step(
        state: TrainState, frozen: Arrays, batch: Batch, limit: jax.Array | float = jnp.inf
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        gradient = jax.value_and_grad(lambda *args: loss_and_metrics(run, *args), has_aux=True)
        memory = pretraining.follow(config, state.memory, state.params)

        def part(batch: Batch, key: jax.Array) -> tuple[Any, pretraining.Levels]:
            (loss, (metrics, fresh)), grads = gradient(state.params, frozen, batch, key, memory, state.step)
            return (loss, metrics, grads), fresh

        if parts == 1:
            (loss, metrics, grads), fresh = part(batch, key)
        else:

            def add(total: Any, piece: tuple[Batch, jax.Array]) -> tuple[Any, pretraining.Levels]:
                values, fresh = part(*piece)
                return jax.tree.map(jnp.add, total, values), fresh

            pieces = (micro_batches(batch), jax.random.split(key, parts))
            shapes, _ = jax.eval_shape(part, *jax.tree.map(lambda piece: piece[0], pieces))
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            total, fresh = jax.lax.scan(add, zeros, pieces)
            loss, metrics, grads = jax.tree.map(lambda leaf: leaf / parts, total)
        # Steps that are skipped do not move the optimiser's schedule, which is the last of its parts.
        rate = run.schedule(state.opt_state[-1].count)
        metrics |= {"loss": loss, "grad_norm": optax.global_norm(grads), "learning_rate": rate}
        with jax.named_scope("optimizer"):
            updates, opt_state = run.optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        for name in ("logit_scale", "global_logit_scale"):
            if name in params:
                params[name] = jnp.clip(params[name], limits.min, limits.max)
        memory = pretraining.enqueue(memory, fresh, state.step)
        if config.train.on_bad_step == "skip":
            good = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"]) & (metrics["grad_norm"] <= limit)
            after, before = (params, opt_state, memory), (state.params, state.opt_state, state.memory)
            params, opt_state, memory = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
            metrics["skipped"] = 1.0 - good
        return TrainState(state.step + 1, params, opt_state, memory), metrics

    whole = meshes.replicated(mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(run.state_shardings(), whole))


def make_eval_step(run: Run) -> Callable[[Arrays, Batch], dict[str, jax.Array]]:
    """The compiled forward pass `(params, batch)`. It gives, in float32, `logits`; or in stage 1 `visual`, `audio` and
    `temperature` of the segments, `logit_bias` with the sigmoid loss, and the same of whole clips as `global_visual`
    and so on."""

    def step(params: Arrays, batch: Batch) -> dict[str, jax.Array]:
        model = run.build(params)
        if run.config.stage == "segment_avclip":
            result = {}
            for level, (visual, audio) in embed(run.config, model, batch, run.mesh).items():
                scale = {"temperature": model.temperature(level), "logit_bias": model.bias(level)}
                values = {"visual": visual, "audio": audio} | {k: v for k, v in scale.items() if v is not None}
                result |= {f"{PREFIX[level]}{name}": value for name, value in values.items()}
        else:
            result = {"logits": classify(run.config, model, batch, None, (), run.mesh)}
        return jax.tree.map(lambda values: values.astype(jnp.float32), result)

    return jax.jit(step, out_shardings=meshes.replicated(run.mesh))
