"""Contrastive losses between the two streams, within groups of clips (paper, section 3.1).

A segment of one stream looks for its counterpart in the other stream of its group, both ways. With `s` the similarities
of one segment to all it may be confused with, and `t` that to its counterpart, a segment's loss is

- InfoNCE (arXiv 1807.03748): `logsumexp(s) - t`, a cross-entropy;
- sigmoid (SigLIP, arXiv 2303.15343): `sum(softplus(s + bias)) - (t + bias)`, one yes or no for every pair.

So neither needs to know where among the others the counterpart stands, and rows of similarities can be computed in
chunks, on any device that has the features.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float


class Teacher(NamedTuple):
    """What momentum encoders say of a batch (MoCo, arXiv 1911.05722; ALBEF, arXiv 2107.07651). It gets no gradient."""

    visual: Float[Array, "B S D"]  # their embeddings of the batch, among which counterparts are looked for
    audio: Float[Array, "B S D"]
    queue: Float[Array, "2 Q D"]  # and those of batches before, visual and audio: more to be confused with
    alpha: Float[Array, ""] | float = 0.0  # the weight of their own answer in the target; 0 leaves only what is true


class Level(NamedTuple):
    """What is contrasted: segments, or whole clips (S = 1)."""

    visual: Float[Array, "B S D"]  # embeddings of unit length
    audio: Float[Array, "B S D"]
    temperature: Float[Array, ""] | float  # what the similarities are divided by
    bias: Float[Array, ""] | float | None = None  # of the sigmoid loss; None takes InfoNCE
    teacher: Teacher | None = None  # who is looked for in place of `visual` and `audio`; `alpha` is for InfoNCE


def contrastive_losses(
    levels: dict[str, Level], *, clips: int = 0, chunk: int = 0, mesh: Mesh | None = None
) -> dict[str, Float[Array, ""]]:
    """The mean loss of all segments, both ways, of each level.

    Args:
        levels: of the same B clips.
        clips: neighbouring clips that make up a group, a divisor of B; 0 takes the whole batch.
        chunk: rows of each group's similarities held at once; 0 holds all. They are computed again in the backward
            pass, so that memory grows with the number of segments instead of its square.
        mesh: of the trainer (its axes data and fsdp cut the clips), where the features lie on several devices. Each
            device compares its own clips; features travel in one gather, and their gradients back in one
            reduce-scatter, between the devices that share a group. A group inside one device needs neither.

    Returns:
        The losses in nats, float32. InfoNCE is ln N where N embeddings tell nothing.

    Raises:
        ValueError: the clips do not divide into groups, or over the devices.
    """
    batch = next(iter(levels.values())).visual.shape[0]
    shards = mesh.shape["data"] * mesh.shape["fsdp"] if mesh is not None else 1
    clips = clips or batch
    if batch % clips or batch % shards:
        raise ValueError(f"{batch} clips do not divide into groups of {clips} on {shards} devices")
    span = math.lcm(batch // shards, clips) * shards // batch  # devices that hold whole groups
    features, scalars, queues = {}, {}, {}
    for name, level in levels.items():
        teacher = jax.lax.stop_gradient(level.teacher)
        features[name] = jnp.stack([level.visual, level.audio, *(teacher or ())[:2]])
        scalars[name] = level.temperature, level.bias
        queues[name] = None if teacher is None else teacher[2:]
    features, scalars, queues = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (features, scalars, queues))
    if shards == 1:
        return _on_device(features, scalars, queues, clips=clips, chunk=chunk, span=1)
    # The same devices in the same order, named by whether they share a group.
    devices = mesh.devices.reshape(shards // span, span, -1)
    of_device = PartitionSpec(("group", "member"))
    of_clips, whole = PartitionSpec(None, *of_device), PartitionSpec()

    def on_device(features, scalars, queues):
        scalars = jax.tree.map(lambda x: x[0], scalars)
        losses = _on_device(features, scalars, queues, clips=clips, chunk=chunk, span=span)
        return jax.tree.map(lambda loss: loss[None], losses)

    # Every device gets its own copy of the scalars and gives its own loss: sums, in the gradient too, are taken
    # outside, where XLA knows one mesh only.
    losses = jax.shard_map(
        on_device,
        mesh=Mesh(devices, ("group", "member", "tensor")),
        in_specs=(of_clips, of_device, whole),
        out_specs=of_device,
    )(features, jax.tree.map(lambda x: jnp.broadcast_to(x, shards), scalars), queues)
    return jax.tree.map(jnp.mean, losses)


def _on_device(features, scalars, queues, *, clips: int, chunk: int, span: int) -> dict[str, Array]:
    """The mean losses of the clips of one of `span` devices that share whole groups.

    By level, `features` are `[2, b, S, D]`, visual and audio, or `[4, b, S, D]` with the teacher's two behind them;
    `scalars` the temperature and the bias; `queues` the teacher's queue and alpha.
    """
    uneven = span > 1 and clips != span * next(iter(features.values())).shape[1]
    if uneven:
        # Groups begin or end inside a device: each of the devices computes all groups that they share.
        features = _gathered(features)
    right = _sought(features)
    answers = _gathered(right) if span > 1 and not uneven else right
    losses = {}
    for name, both in features.items():
        (_, _, segments, width), (temperature, bias) = both.shape, scalars[name]
        others = answers[name].reshape(2, -1, clips * segments, width)
        asked, keys = (x.reshape(2, others.shape[1], -1, width) for x in (both[:2] / temperature, right[name]))
        teachers, queue, alpha = None, (None, None), 0.0  # XLA of JAX 0.11 crashes on products with nothing
        if queues[name] is not None:
            queue, alpha = queues[name]
            teachers = keys / jax.lax.stop_gradient(temperature) if bias is None else None
        losses[name] = 0.0
        for one, other in ((0, 1), (1, 0)):
            pondered = None if teachers is None else teachers[one]
            way = _find(asked[one], keys[other], others[other], queue[other], pondered, alpha, bias, chunk)
            losses[name] += way / 2
    return losses


def _sought(features: dict[str, Array]) -> dict[str, Array]:
    """Among whom counterparts are looked for: the teacher's, which get no gradient, where there is a teacher."""
    return {name: jax.lax.stop_gradient(x[2:]) if len(x) == 4 else x for name, x in features.items()}


def _gathered(features: dict[str, Array]) -> dict[str, Array]:
    """`[n, b, S, D]` of every member of a group as `[n, B, S, D]`, all levels in one message."""
    flat = {name: x.swapaxes(0, 1).reshape(x.shape[1], -1) for name, x in features.items()}
    everyone = jax.lax.all_gather(jnp.concatenate(list(flat.values()), axis=1), "member", axis=0, tiled=True)
    ends = list(itertools.accumulate(x.shape[1] for x in flat.values()))
    pieces = zip(features.items(), jnp.split(everyone, ends[:-1], axis=1), strict=True)
    return {name: piece.reshape(-1, x.shape[0], *x.shape[2:]).swapaxes(0, 1) for (name, x), piece in pieces}


def _find(asked, right, answers, queue, teachers, alpha, bias, chunk: int) -> Array:
    """The mean loss of `asked` `[G, n, D]`, already divided by the temperature, one way.

    Args:
        right: `[G, n, D]`, the counterpart of each.
        answers: `[G, N, D]`, what each is compared with inside its group.
        queue: `[Q, D]`, and besides; None for nothing.
        teachers: `[G, n, D]`, who answer the same question with weight `alpha`.
        bias: of the sigmoid loss.
    """

    def similarities(some: Float[Array, "G D"]) -> Float[Array, "G N+Q"]:
        inside = jnp.einsum("gd,gkd->gk", some, answers, precision="highest")
        if queue is None:
            return inside
        return jnp.concatenate([inside, jnp.einsum("gd,kd->gk", some, queue, precision="highest")], axis=-1)

    def row(some: Float[Array, "G D"], teacher: Float[Array, "G D"] | None) -> Float[Array, " G"]:
        s = similarities(some)
        if bias is not None:
            return jax.nn.softplus(s + bias).sum(axis=-1) - bias
        normaliser = jax.nn.logsumexp(s, axis=-1)
        if teacher is None:
            return normaliser
        return normaliser - alpha * jnp.sum(jax.nn.softmax(similarities(teacher), axis=-1) * s, axis=-1)

    rows = jax.tree.map(lambda x: x.swapaxes(0, 1), (asked, teachers))
    losses = jax.lax.map(jax.checkpoint(lambda row_of_all: row(*row_of_all)), rows, batch_size=chunk)
    return jnp.mean(losses.swapaxes(0, 1) - (1 - alpha) * jnp.sum(asked * right, axis=-1))
