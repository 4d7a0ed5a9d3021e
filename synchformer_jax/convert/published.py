"""The names and layouts of the published PyTorch weights, and ours.

One table of rules serves both directions, so what is read is written back bit for bit. The published models hold a 2D
patch embedding that their forward pass never reads; it is skipped on reading and written as the tubelet embedding
summed over time (what a still picture would meet).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from absl import logging
from flax import nnx

from synchformer_jax.errors import UserError
from synchformer_jax.models import AST, Motionformer, SegmentAVCLIP, SyncHead, Synchformer
from synchformer_jax.models.motionformer import DividedBlock
from synchformer_jax.models.space_time import TrajectoryAttention

TRIMMED = ("position_embeddings", "pos_emb_cfg.pos_emb")  # published code cuts these where they are longer than needed
TABLE_ROWS = 20


@dataclasses.dataclass(frozen=True)
class Rule:
    """One published array and the place of its values in ours.

    `layout` says how axes correspond: "same", "token" (two axes of 1 in front), "table" (one axis of 1 in front),
    "linear" (outputs before inputs), "tubelet" and "patch" (convolutions, outputs and colours first).
    """

    name: str
    path: tuple[str, ...]
    layout: str = "same"
    inputs: int = 1  # axes of our kernel that are inputs, for "linear"
    layer: int | None = None  # index in the axis "layers"
    part: int | None = None  # which of query, key and value, where they are published apart

    def place(self) -> tuple:
        """The index of the values in our array."""
        place = () if self.layer is None else (self.layer,)
        if self.part is None:
            return place
        return (*place, slice(None), self.part) if self.layout == "linear" else (*place, self.part)

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The published shape of values that have the shape `ours` with us."""
        if self.layout == "linear":
            return math.prod(ours[self.inputs :]), math.prod(ours[: self.inputs])
        if self.layout == "tubelet":
            return ours[4], ours[3], *ours[:3]
        if self.layout == "patch":
            return ours[2], 1, *ours[:2]
        if self.layout == "same":
            return (math.prod(ours),) if ours else ()
        return (1,) * {"token": 2, "table": 1}[self.layout] + ours

    def read(self, theirs: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
        """The published values in our layout."""
        axes = {"linear": (1, 0), "tubelet": (2, 3, 4, 1, 0), "patch": (2, 3, 1, 0)}.get(self.layout)
        return (theirs if axes is None else theirs.transpose(axes)).reshape(ours)

    def write(self, ours: np.ndarray) -> np.ndarray:
        """Our values in the published layout."""
        shape = self.shape(ours.shape)
        if self.layout == "linear":
            return ours.reshape(shape[::-1]).T
        if self.layout == "tubelet":
            return ours.transpose(4, 3, 0, 1, 2)
        if self.layout == "patch":
            return ours.transpose(2, 0, 1)[:, None]
        return ours.reshape(shape)


def to_state(
    model: nnx.Module, arrays: Mapping[str, np.ndarray], warn: Callable[[str], None] = logging.warning
) -> nnx.State:
    """Published weights as the state of our model; `nnx.update(model, state)` or `nnx.merge(graph, state)` puts it in.

    Args:
        model: a Synchformer, Synchronizability, SegmentAVCLIP, Motionformer, AST or SyncHead, which may be abstract
            (`nnx.eval_shape`).
        arrays: by published name, with or without a leading "module.".
        warn: is told of positions that are cut.

    Raises:
        UserError: with a table of the keys that are missing, unexpected or of another shape.
    """
    names = {name.removeprefix("module."): name for name in arrays}  # arrays may be made or read one by one
    rules = rules_of(model)
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    known = {rule.name for rule in rules} | set(unread_of(model))
    problems = [("unexpected", name, "", np.shape(arrays[names[name]])) for name in names if name not in known]
    values: dict[tuple, np.ndarray] = {}
    for rule in rules:
        variable = flat[rule.path]
        if rule.path not in values:
            values[rule.path] = np.empty(variable.shape, np.float32)
        target = values[rule.path][rule.place()]
        expected = rule.shape(target.shape)
        if rule.name not in names:
            problems.append(("missing", rule.name, expected, ""))
            continue
        array = trim(rule.name, np.asarray(arrays[names[rule.name]]), expected, warn)
        if array.shape != expected:
            problems.append(("misshapen", rule.name, expected, array.shape))
            continue
        values[rule.path][rule.place()] = rule.read(array, target.shape)
    if problems:
        raise UserError(_table(model, problems))
    return nnx.from_flat_state([(path, variable.replace(values[path])) for path, variable in flat.items()])


def from_state(model: nnx.Module) -> dict[str, np.ndarray]:
    """The weights of our model under their published names and in their published shapes, float32.

    Raises:
        UserError: the model has parts that the published one has not.
    """
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    ours = {path: np.asarray(variable.get_value(), np.float32) for path, variable in flat.items()}
    arrays = {}
    for rule in rules_of(model):
        arrays[rule.name] = np.array(rule.write(ours[rule.path][rule.place()]), order="C")
    for name, (source, axis) in unread_of(model).items():
        arrays[name] = arrays[source] if axis is None else _stand_in(arrays[source], axis)
    return arrays


def shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """The published names and shapes of a model, which may be abstract.

    Raises:
        UserError: the model has parts that the published one has not.
    """
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    found = {}
    for rule in rules_of(model):
        one = np.broadcast_to(np.float32(0), flat[rule.path].shape)[rule.place()]
        found[rule.name] = rule.shape(one.shape)
    for name, (source, axis) in unread_of(model).items():
        found[name] = found[source] if axis is None else _stand_in(np.broadcast_to(0.0, found[source]), axis).shape
    return found


def count(model: nnx.Module) -> int:
    """The number of parameters by the published keys; the unread ones count too.

    Raises:
        UserError: the model has parts that the published one has not.
    """
    return sum(math.prod(shape) for shape in shapes(model).values())


def rules_of(model: nnx.Module) -> list[Rule]:
    """All rules of a model.

    Raises:
        UserError: the model is of no published kind or has parts that the published one has not.
    """
    if isinstance(model, Motionformer):
        return list(_visual(model, "", ()))
    if isinstance(model, AST):
        return list(_audio(model, "", ()))
    if isinstance(model, SegmentAVCLIP):
        both = [*_visual(model.visual, "v_encoder.", ("visual",)), *_audio(model.audio, "a_encoder.", ("audio",))]
        return [*both, *_contrast(model)]
    if isinstance(model, Synchformer):
        rules = [*_visual(model.visual, "vfeat_extractor.", ("visual",))]
        rules += _audio(model.audio, "afeat_extractor.", ("audio",))
        return rules + list(_head(model.head, ("head",)))
    if isinstance(model, SyncHead):
        return list(_head(model, ()))
    raise UserError(f"{type(model).__name__} has no published counterpart. Give one of the Synchformer models.")


def unread_of(model: nnx.Module) -> dict[str, tuple[str, int | None]]:
    """Published arrays that no forward pass reads: name -> (array that stands in for it, axis to sum over or None)."""
    if isinstance(model, SegmentAVCLIP):
        prefix, visual = "v_encoder.", model.visual
    elif isinstance(model, Synchformer):
        prefix, visual = "vfeat_extractor.", model.visual
    elif isinstance(model, Motionformer):
        prefix, visual = "", model
    else:
        return {}
    of_3d, of_2d = f"{prefix}patch_embed_3d.proj.", f"{prefix}patch_embed.proj."
    unread = {f"{of_2d}weight": (f"{of_3d}weight", 2), f"{of_2d}bias": (f"{of_3d}bias", None)}
    if not hasattr(visual, "position_time"):
        count = visual.grid[1] * visual.grid[2]
        unread[f"{prefix}pos_embed"] = (f"{prefix}st_embed", -count)
    return unread


def _stand_in(array: np.ndarray, axis: int) -> np.ndarray:
    """The array summed over an axis; a negative axis -n keeps the first 1 + n rows of a table."""
    return array.sum(axis=axis) if axis >= 0 else array[:, : 1 - axis]


def trim(name: str, array: np.ndarray, expected: tuple[int, ...], warn: Callable[[str], None]) -> np.ndarray:
    """A position table cut to the expected rows where the published code cuts it, and a word of it."""
    fits = array.ndim == 3 and len(expected) == 3 and array.shape[1] > expected[1] and array.shape[2] == expected[2]
    if not (name.endswith(TRIMMED) and fits):
        return array
    warn(f"{name} has {array.shape[1]:,} positions; the first {expected[1]} are taken.")
    return array[:, : expected[1]]


def _contrast(model: SegmentAVCLIP) -> Iterator[Rule]:
    """What the contrastive models have besides the extractors; with a level of whole clips, names are the published
    MultilevelMoCoCLIP's."""
    if model.sigmoid:
        raise UserError(
            "This model learned by the sigmoid loss, for which the published format has no place. Train one with "
            "model.avclip.loss = info_nce to convert it."
        )
    if "global" not in model.levels:
        yield Rule("logit_scale", ("logit_scale",))
        return
    yield Rule("segment_logit_scale", ("logit_scale",))
    yield Rule("global_logit_scale", ("global_logit_scale",))
    if hasattr(model, "global_visual"):
        for prefix, name in (("v_encoder.", "global_visual"), ("a_encoder.", "global_audio")):
            yield Rule(f"{prefix}global_attn_agg.pos_emb", (name, "position"), "table")
            yield from _pool(f"{prefix}global_attn_agg.", (name, "pool"))


def _visual(model: Motionformer, prefix: str, path: tuple[str, ...]) -> Iterator[Rule]:
    yield Rule(f"{prefix}patch_embed_3d.proj.weight", (*path, "patch", "kernel"), "tubelet")
    yield Rule(f"{prefix}patch_embed_3d.proj.bias", (*path, "patch", "bias"))
    yield Rule(f"{prefix}cls_token", (*path, "cls"), "token")
    if hasattr(model, "position_time"):
        yield Rule(f"{prefix}pos_embed", (*path, "position"), "table")
        yield Rule(f"{prefix}temp_embed", (*path, "position_time"), "table")
    else:
        yield Rule(f"{prefix}st_embed", (*path, "position"), "table")
    if isinstance(model.blocks, DividedBlock):
        norms = {"norm1": "norm_space", "norm2": "norm_mlp", "norm3": "norm_time"}
        linears = {"attn.qkv": "space.qkv", "attn.proj": "space.out"}
        linears |= {"timeattn.qkv": "time.qkv", "timeattn.proj": "time.out"}
    else:
        norms = {"norm1": "norm_attention", "norm2": "norm_mlp"}
        linears = {"attn.qkv": "attention.qkv", "attn.proj": "attention.out"}
        if isinstance(model.blocks.attention, TrajectoryAttention):
            linears |= {"attn.proj_q": "attention.along_q", "attn.proj_kv": "attention.along_kv"}
    linears |= {"mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down"}
    for layer in range(model.depth):
        yield from _block(f"{prefix}blocks.{layer}.", (*path, "blocks"), norms, linears, layer)
    yield from _norm(f"{prefix}norm", (*path, "norm"))
    yield from _pool(f"{prefix}spatial_attn_agg.", (*path, "pool"))


def _audio(model: AST, prefix: str, path: tuple[str, ...]) -> Iterator[Rule]:
    embeddings = f"{prefix}ast.embeddings."
    yield Rule(f"{embeddings}cls_token", (*path, "cls"), "token")
    yield Rule(f"{embeddings}distillation_token", (*path, "distillation"), "token")
    yield Rule(f"{embeddings}position_embeddings", (*path, "position"), "table")
    yield Rule(f"{embeddings}patch_embeddings.projection.weight", (*path, "patch", "kernel"), "patch")
    yield Rule(f"{embeddings}patch_embeddings.projection.bias", (*path, "patch", "bias"))
    norms = {"layernorm_before": "norm_attention", "layernorm_after": "norm_mlp"}
    linears = {"attention.output.dense": "attention.out", "intermediate.dense": "mlp.up", "output.dense": "mlp.down"}
    for layer in range(model.depth):
        block, ours = f"{prefix}ast.encoder.layer.{layer}.", (*path, "blocks")
        yield from _block(block, ours, norms, linears, layer)
        yield from _apart(f"{block}attention.attention.", (*ours, "attention", "qkv"), layer)
    yield from _norm(f"{prefix}ast.layernorm", (*path, "norm"))
    yield from _pool(f"{prefix}freq_attn_agg.", (*path, "pool"))


def _head(model: SyncHead, path: tuple[str, ...]) -> Iterator[Rule]:
    if hasattr(model, "lag"):
        raise UserError(
            "This model has a lag profile, for which the published format has no place. Train one with "
            "model.head.lag_profile = False to convert it."
        )
    for name, ours in (("vproj", "visual"), ("aproj", "audio")):
        yield from _linear(name, (*path, ours))
    name = "transformer."
    yield Rule(f"{name}OFF_tok", (*path, "off"), "token")
    yield Rule(f"{name}MOD_tok", (*path, "mod"), "token")
    yield from _norm(f"{name}vis_in_lnorm", (*path, "norm_visual"))
    yield from _norm(f"{name}aud_in_lnorm", (*path, "norm_audio"))
    yield Rule(f"{name}pos_emb_cfg.pos_emb", (*path, "position"), "table")
    norms = {"ln1": "norm_attention", "ln2": "norm_mlp"}
    linears = {"attn.proj": "attention.out", "mlp.0": "mlp.up", "mlp.2": "mlp.down"}
    for layer in range(model.depth):
        block, ours = f"{name}blocks.{layer}.", (*path, "blocks")
        yield from _block(block, ours, norms, linears, layer)
        yield from _apart(f"{block}attn.", (*ours, "attention", "qkv"), layer)
    yield from _norm(f"{name}ln_f", (*path, "norm"))
    last = "sync_head" if model.classify.bias.shape == (2,) else "off_head"
    yield from _linear(f"{name}{last}", (*path, "classify"))


def _pool(prefix: str, path: tuple[str, ...]) -> Iterator[Rule]:
    yield Rule(f"{prefix}cls_token", (*path, "cls"), "token")
    block = (*path, "block")
    yield Rule(f"{prefix}self_attn.in_proj_weight", (*block, "attention", "qkv", "kernel"), "linear")
    yield Rule(f"{prefix}self_attn.in_proj_bias", (*block, "attention", "qkv", "bias"))
    linears = {"self_attn.out_proj": "attention.out", "linear1": "mlp.up", "linear2": "mlp.down"}
    yield from _block(prefix, block, {"norm1": "norm_attention", "norm2": "norm_mlp"}, linears, None)


def _block(
    prefix: str, path: tuple[str, ...], norms: Mapping[str, str], linears: Mapping[str, str], layer: int | None
) -> Iterator[Rule]:
    for name, ours in norms.items():
        yield from _norm(prefix + name, (*path, ours), layer)
    for name, ours in linears.items():
        yield from _linear(prefix + name, (*path, *ours.split(".")), layer)


def _norm(name: str, path: tuple[str, ...], layer: int | None = None) -> Iterator[Rule]:
    yield Rule(f"{name}.weight", (*path, "scale"), layer=layer)
    yield Rule(f"{name}.bias", (*path, "bias"), layer=layer)


def _linear(name: str, path: tuple[str, ...], layer: int | None = None) -> Iterator[Rule]:
    inputs = 2 if path[-1] == "out" else 1  # attention's output takes heads and their width
    yield Rule(f"{name}.weight", (*path, "kernel"), "linear", inputs=inputs, layer=layer)
    yield Rule(f"{name}.bias", (*path, "bias"), layer=layer)


def _apart(prefix: str, path: tuple[str, ...], layer: int) -> Iterator[Rule]:
    for part, name in enumerate(("query", "key", "value")):
        yield Rule(f"{prefix}{name}.weight", (*path, "kernel"), "linear", layer=layer, part=part)
        yield Rule(f"{prefix}{name}.bias", (*path, "bias"), layer=layer, part=part)


def _table(model: nnx.Module, problems: list[tuple]) -> str:
    """What does not fit, as a table that a person can read."""
    counts = ", ".join(
        f"{sum(problem[0] == kind for problem in problems)} {kind}" for kind in ("missing", "unexpected", "misshapen")
    )
    shown = [("", "key", "wanted", "found"), *((a, b, str(c), str(d)) for a, b, c, d in problems[:TABLE_ROWS])]
    widths = [max(len(row[i]) for row in shown) for i in range(4)]
    aligned = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in shown]
    rows = [("  " + "  ".join(row)).rstrip() for row in aligned]
    more = len(problems) - TABLE_ROWS
    rows += [f"  and {more} more"] if more > 0 else []
    hint = "Check that the file is of this model and that model.* has the sizes that it was trained with."
    return f"The weights do not fit {type(model).__name__} ({counts} keys). {hint}\n" + "\n".join(rows)
