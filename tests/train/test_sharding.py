"""One step on eight simulated devices is the step on one, however the model and the batch are cut."""

import pytest

from tests.simulated import outcome

SCRIPT = """
import json, sys
import jax, numpy as np
from synchformer_jax.train import checkpoint, mesh, state, step
from tests.train.tiny import make_batch, tiny

config = tiny("segment_avclip")
config.augment.flip = 0.0
# Adam would turn the rounding of a gradient that is truly zero, as of key biases, into a step of full length.
config.optimizer.update({"name": "sgd", "learning_rate": 0.01})
_, arrays = state.take_apart(state.make_model(config))
blueprint = state.hollow_model(config)
results = {}
cases = {
    "one": ((1, 1, 1), 1, "none"), "data": ((8, 1, 1), 1, "none"), "fsdp_tensor": ((2, 2, 2), 1, "none"),
    "accumulate": ((2, 1, 1), 2, "none"), "remat_dots": ((1, 1, 1), 1, "dots"), "remat_full": ((1, 1, 1), 1, "full"),
}
for name, (shape, parts, remat) in cases.items():
    config.model.compute.remat = remat
    blueprint = state.hollow_model(config)
    count = int(np.prod(shape))
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = shape
    config.train.accumulate = parts
    run = state.prepare(config, mesh.make_mesh(config, jax.devices()[:count]), blueprint)
    now, frozen = state.start(run, arrays)
    compiled = step.make_train_step(run)
    losses = []
    for number in range(2):
        before = now
        now, metrics = compiled(now, frozen, mesh.put_batch(run.mesh, step.device_fields(make_batch(config, number))))
        losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    def cut(tree):
        return max(leaf.size // leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(tree))

    results[name] = {
        "losses": losses,
        "moved": {
            key: float(np.abs(np.asarray(value) - np.asarray(arrays[key])).sum()) for key, value in now.params.items()
        },
        "donated": all(leaf.is_deleted() for leaf in jax.tree.leaves(before)),
        "cut": cut(now.params),
        "moments_cut": cut(now.opt_state),
    }
    if name == "fsdp_tensor":
        kept = checkpoint.Checkpoints(sys.argv[1], config)
        kept.save(run, now, frozen, {"a": 1})
        kept.finish()
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor = (1, 1, 1)
        single = state.prepare(config, mesh.make_mesh(config, jax.devices()[:1]), blueprint)
        back, _, progress = kept.restore(single, 2)
        pairs = zip(jax.tree.leaves(now), jax.tree.leaves(back), strict=True)
        same = all(np.array_equal(a, b) for a, b in pairs)
        results["restored"] = {"same": same, "step": int(back.step), "progress": progress}
        # And from one device to eight: what one device has written, all of them read.
        kept.save(single, back._replace(step=back.step + 1), jax.device_put(frozen, jax.devices()[0]), {})
        kept.finish()
        spread, _, _ = kept.restore(run, 3)
        pairs = zip(jax.tree.leaves(now._replace(step=now.step + 1)), jax.tree.leaves(spread), strict=True)
        results["spread"] = {"same": all(np.array_equal(a, b) for a, b in pairs), "cut": cut(spread.params)}
        kept.close()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return outcome(SCRIPT, str(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize("case", ["data", "fsdp_tensor", "accumulate", "remat_dots", "remat_full"])
def test_every_mesh_computes_the_same_steps(results, case):
    one, other = results["one"], results[case]
    for mine, theirs in zip(one["losses"], other["losses"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)
    for name, moved in one["moved"].items():
        assert other["moved"][name] == pytest.approx(moved, rel=1e-3, abs=1e-5), name


def test_parameters_and_moments_are_cut_over_fsdp_and_tensor(results):
    assert results["one"]["cut"] == results["data"]["cut"] == 1
    assert results["fsdp_tensor"]["cut"] == results["fsdp_tensor"]["moments_cut"] == 4


def test_a_checkpoint_of_eight_devices_goes_on_with_one(results):
    assert results["restored"] == {"same": True, "step": 2, "progress": {"a": 1}}


def test_a_checkpoint_of_one_device_goes_on_with_eight(results):
    assert results["spread"] == {"same": True, "cut": 4}


def test_the_state_that_goes_in_is_given_up(results):
    assert all(results[case]["donated"] for case in ("one", "data", "fsdp_tensor", "accumulate", "remat_dots"))
