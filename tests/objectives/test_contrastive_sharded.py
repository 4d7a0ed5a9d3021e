"""The contrastive losses of a batch that lies on eight devices: the dense formula's, for few messages."""

import json

import pytest

from tests.simulated import outcome

SCRIPT = """
import json, re
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from synchformer_jax.objectives.contrastive import Level, Teacher, contrastive_losses
from tests.objectives.dense import dense, unit

B, S, D, Q = 24, 2, 16, 10
rng = np.random.default_rng(0)
visual, audio, *momentum = (unit(rng, B, S, D) for _ in range(4))
queue = unit(rng, 2, Q, D)
losses = {"info_nce": (0.07, None), "sigmoid": (0.1, -10.0)}
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
MESSAGE = rf"= \\(?(\\w+)\\[([\\d,]*)\\].*? ({KINDS})(?:-start)?\\("


def case(shape, clips, kind, alpha, twice=False):
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    cut, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((("data", "fsdp"),), ()))
    teacher, placed = None, None
    if alpha is not None:
        teacher = (*momentum, queue, alpha)
        placed = Teacher(*(jax.device_put(x, cut) for x in momentum), jax.device_put(queue, whole), alpha)

    def loss(visual, audio, temperature, bias, teacher):
        level = Level(visual, audio, temperature, bias, teacher)
        levels = {"segment": level, "again": level} if twice else {"segment": level}
        found = contrastive_losses(levels, clips=clips, chunk=5, mesh=mesh)
        return sum(found.values()) / len(found)

    sought = (0, 1, 2) if losses[kind][1] is None else (0, 1, 2, 3)
    step = jax.jit(jax.value_and_grad(loss, argnums=sought))
    compiled = step.lower(*(jax.device_put(x, cut) for x in (visual, audio)), *losses[kind], placed).compile()
    value, gradients = step(*(jax.device_put(x, cut) for x in (visual, audio)), *losses[kind], placed)
    right, right_gradients = dense(visual, audio, clips or B, *losses[kind], teacher)
    worst = max(
        [abs(float(value) / right - 1)]
        + [float(np.abs(np.asarray(g) - r).max() / np.abs(r).max()) for g, r in zip(gradients, right_gradients)]
    )
    messages = {}
    for line in compiled.as_text().splitlines():
        found = re.search(MESSAGE, line)
        if found and found[2]:  # an all-reduce of scalars is the loss or the temperature's gradient
            messages[found[3]] = messages.get(found[3], 0) + 1
    return {"worst": worst, "messages": messages, "cut": gradients[0].sharding.is_equivalent_to(cut, 3)}


results = {}
for name, (shape, *rest) in json.loads(CASES).items():
    results[name] = case(tuple(shape), *rest)
print(json.dumps(results))
"""
# The mesh (data, fsdp, tensor), clips in a group, the loss, and alpha where there is a teacher; 24 clips.
CASES = {f"groups of {clips}": ((8, 1, 1), clips, "info_nce", None) for clips in (1, 2, 3, 4, 6, 8, 12, 0)} | {
    "fsdp and tensor, inside": ((2, 2, 2), 3, "info_nce", None),
    "fsdp and tensor, across": ((2, 2, 2), 12, "info_nce", None),
    "fsdp and tensor, all": ((2, 2, 2), 0, "info_nce", None),
    "sigmoid, inside": ((4, 2, 1), 3, "sigmoid", None),
    "sigmoid, all": ((4, 2, 1), 0, "sigmoid", None),
    "teacher, inside": ((4, 2, 1), 3, "info_nce", 0.4),
    "teacher, uneven": ((4, 2, 1), 4, "info_nce", 0.4),
    "teacher, all": ((2, 2, 2), 0, "info_nce", 0.4),
    "two levels": ((8, 1, 1), 0, "info_nce", None, True),
    "two levels, teacher, uneven": ((4, 2, 1), 4, "info_nce", 0.4, True),
}


@pytest.fixture(scope="module")
def results():
    return outcome(f"CASES = {json.dumps(json.dumps(CASES))}\n{SCRIPT}")


@pytest.mark.parametrize("case", CASES)
def test_equals_the_dense_formula(results, case):
    assert results[case]["worst"] < 1e-5
    assert results[case]["cut"]  # gradients lie where their clips do


@pytest.mark.parametrize("case", ["groups of 1", "groups of 3", "fsdp and tensor, inside", "sigmoid, inside"])
def test_a_group_inside_one_device_sends_no_features(results, case):
    assert results[case]["messages"] == {}


@pytest.mark.parametrize(
    "case", ["groups of 6", "groups of 0", "groups of 4", "fsdp and tensor, all", "sigmoid, all", "two levels"]
)
def test_features_travel_once_and_their_gradients_once(results, case):
    assert results[case]["messages"] == {"all-gather": 1, "reduce-scatter": 1}


def test_a_teacher_needs_no_way_back(results):
    assert results["teacher, inside"]["messages"] == {}
    assert results["teacher, all"]["messages"] == {"all-gather": 1}


def test_all_that_is_needed_of_levels_and_teacher_travels_at_once(results):
    assert results["two levels, teacher, uneven"]["messages"] == {"all-gather": 1, "reduce-scatter": 1}
