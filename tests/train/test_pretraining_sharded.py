"""Stage 1 with all its options on eight simulated devices is that on one, for few messages between them."""

import pytest

from tests.simulated import outcome

SCRIPT = """
import json, re
import jax, numpy as np
from synchformer_jax.train import hlo, mesh, state, step
from tests.train.tiny import make_batch, tiny

KINDS = "all-gather|reduce-scatter|all-to-all|collective-permute"
MESSAGE = re.compile(rf"= \\(?\\w+\\[[\\d,]*\\].*? ({KINDS})(?:-start)?\\(")


def prepared(shape, clips=16, **options):
    config = tiny("segment_avclip")
    config.augment.flip = 0.0
    config.augment.update({"volume": 0.5, "noise": 0.5, "low_pass": 0.5})
    config.contrastive.update(options)
    # Plain steps of the gradient's own length: what moves is the gradient.
    config.optimizer.update({"name": "sgd", "b1": 0.0, "learning_rate": 1.0, "warmup_steps": 0, "clip_norm": 0.0})
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = shape
    if options.get("momentum_encoders"):
        config.model.avclip.global_pool = "attention"
    devices = jax.devices()[: int(np.prod(shape))]
    _, arrays = state.take_apart(state.make_model(config))
    run = state.prepare(config, mesh.make_mesh(config, devices), state.hollow_model(config))
    now, frozen = state.start(run, arrays)
    batch = mesh.put_batch(run.mesh, step.device_fields(make_batch(config, 0, clips)))
    return step.make_train_step(run), now, frozen, batch


results, first = {"apart": {}, "messages": {}, "fsdp_bytes": {}}, None
for name, shape in (("one", (1, 1, 1)), ("fsdp", (1, 8, 1)), ("all", (2, 2, 2))):
    options = {"momentum_encoders": True, "momentum": 0.9, "queue_clips": 32, "alpha": 0.4}
    compiled, now, frozen, batch = prepared(shape, group_clips=0, chunk=5, **options)
    before = jax.device_get(now.params)
    after, metrics = jax.device_get(compiled(now, frozen, batch))
    found = {
        "moved": np.concatenate([np.ravel(after.params[key] - before[key]) for key in sorted(before)]),
        "followers": np.concatenate([np.ravel(after.memory["params"][key]) for key in sorted(after.memory["params"])]),
        "queue": np.concatenate([np.ravel(after.memory["queue"][key]) for key in ("segment", "global")]),
        "metrics": np.array([metrics[key] for key in sorted(metrics) if key != "learning_rate"]),
    }
    first = first or found
    results["apart"][name] = {
        key: float(np.linalg.norm(values - first[key]) / np.linalg.norm(first[key])) for key, values in found.items()
    }
for name, group in (("inside", 2), ("across", 0)):
    text = prepared((8, 1, 1), group_clips=group)
    text = text[0].lower(*text[1:]).compile().as_text()
    results["messages"][name] = sorted(MESSAGE.findall(text))
for clips in (16, 32):
    text = prepared((1, 8, 1), clips, group_clips=2)
    found = hlo.collectives(hlo.parse(text[0].lower(*text[1:]).compile().as_text()), 8)
    results["fsdp_bytes"][clips] = sum(one.count * one.bytes for one in found)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    return outcome(SCRIPT)


@pytest.mark.parametrize("case", ["fsdp", "all"])
def test_gradients_followers_and_queue_are_those_of_one_device(results, case):
    assert max(results["apart"][case].values()) < 1e-5, results["apart"][case]


def test_a_step_gathers_features_once_or_never(results):
    """Data parallel, where nothing else is gathered: the rest are sums of gradients."""
    assert results["messages"] == {"inside": [], "across": ["all-gather", "reduce-scatter"]}


def test_with_fsdp_weights_travel_and_activations_do_not(results):
    assert results["fsdp_bytes"]["32"] == results["fsdp_bytes"]["16"] > 0
