"""Contrastive losses between the two streams, within groups of clips (paper, section 3.1).

A segment of one stream looks for its counterpart in the other stream of its group, both ways. With `s` the similarities
of one segment to all it may be confused with, and `t` that to its counterpart, a segment's loss is

- InfoNCE (arXiv 1807.03748): `logsumexp(s) - t`, a cross-entropy;
- sigmoid (SigLIP, arXiv 2303.15343): `sum(softplus(s + bias)) - (t + bias)`, one yes or no for every pair.

So neither needs to know where among the others the counterpart stands, and rows of similarities can be computed in
chunks, on any device that has the features.
"""

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


def contrastive_loss(
    visual: Float[Array, "B S D"],
    audio: Float[Array, "B S D"],
    temperature: Float[Array, ""] | float,
    bias: Float[Array, ""] | float | None = None,
    *,
    clips: int = 0,
    chunk: int = 0,
    teacher: Teacher | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """The mean loss of all segments, both ways.

    Args:
        visual, audio: `[B, S, D]` embeddings of unit length; with S = 1, of whole clips.
        temperature: what the similarities are divided by.
        bias: of the sigmoid loss; None takes InfoNCE.
        clips: neighbouring clips that make up a group, a divisor of B; 0 takes the whole batch.
        chunk: rows of each group's similarities held at once; 0 holds all. They are computed again in the backward
            pass, so that memory grows with the number of segments instead of its square.
        teacher: looks for counterparts among these instead of among `visual` and `audio`; `alpha` is for InfoNCE.
        mesh: of the trainer (its axes data and fsdp cut the clips), where the features lie on several devices. Each
            device compares its own clips; features travel in one gather, and their gradients back in one
            reduce-scatter, between the devices that share a group. A group inside one device needs neither.

    Returns:
        The loss in nats, float32. InfoNCE is ln N where N embeddings tell nothing.

    Raises:
        ValueError: the clips do not divide into groups, or over the devices.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"] if mesh is not None else 1
    clips = clips or visual.shape[0]
    if visual.shape[0] % clips or visual.shape[0] % shards:
        raise ValueError(f"{visual.shape[0]} clips do not divide into groups of {clips} on {shards} devices")
    span = math.lcm(visual.shape[0] // shards, clips) * shards // visual.shape[0]  # devices that hold whole groups
    own = jnp.stack([visual, audio]).astype(jnp.float32)
    if teacher is not None:
        teacher = jax.lax.stop_gradient(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), teacher))
    if shards == 1:
        return _on_device(own, teacher, temperature, bias, clips=clips, chunk=chunk, span=1)
    # The same devices in the same order, named by whether they share a group.
    devices = mesh.devices.reshape(shards // span, span, -1)
    of_device = PartitionSpec(("group", "member"))
    of_clips, whole = PartitionSpec(None, *of_device), PartitionSpec()

    def on_device(own, keys, rest, temperature, bias):
        teacher = None if keys is None else Teacher(*keys, *rest)
        temperature, bias = temperature[0], None if bias is None else bias[0]
        return _on_device(own, teacher, temperature, bias, clips=clips, chunk=chunk, span=span)[None]

    # Every device gets its own copy of the scalars and gives its own loss: sums, in the gradient too, are taken
    # outside, where XLA knows one mesh only.
    each = [None if x is None else jnp.broadcast_to(jnp.float32(x), shards) for x in (temperature, bias)]
    keys, rest = (None, None) if teacher is None else (jnp.stack(teacher[:2]), teacher[2:])
    return jax.shard_map(
        on_device,
        mesh=Mesh(devices, ("group", "member", "tensor")),
        in_specs=(of_clips, of_clips, whole, of_device, of_device),
        out_specs=of_device,
    )(own, keys, rest, *each).mean()


def _on_device(own: Float[Array, "2 b S D"], teacher, temperature, bias, *, clips: int, chunk: int, span: int) -> Array:
    """The mean loss of the clips of one of `span` devices that share whole groups."""
    keys = own if teacher is None else jnp.stack([teacher.visual, teacher.audio])
    answers, asked, width = keys, own, own.shape[-1]
    if span > 1:
        answers = jax.lax.all_gather(keys, "member", axis=1, tiled=True)
        if answers.shape[1] != clips:
            # Groups begin or end inside a device: each of the devices computes all groups that they share.
            asked = answers if teacher is None else jax.lax.all_gather(own, "member", axis=1, tiled=True)
            keys = answers
    answers = answers.reshape(2, -1, clips * own.shape[2], width)
    asked, keys = (x.reshape(2, answers.shape[1], -1, width) for x in (asked / temperature, keys))
    teachers, queue, alpha = None, (None, None), 0.0  # XLA of JAX 0.11 crashes on products with nothing
    if teacher is not None:
        queue, alpha = teacher.queue, teacher.alpha
        teachers = keys / jax.lax.stop_gradient(temperature)
    total = 0.0
    for one, other in ((0, 1), (1, 0)):
        pondered = None if teachers is None or bias is not None else teachers[one]
        total += _find(asked[one], keys[other], answers[other], queue[other], pondered, alpha, bias, chunk)
    return total / 2


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

    def row(some: Float[Array, "G D"], teacher: Float[Array, "G D"] | None) -> Float[Array, "G"]:
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
