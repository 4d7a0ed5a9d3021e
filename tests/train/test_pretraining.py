"""Momentum encoders, their queue, soft targets and the level of whole clips, through the trainer's own step."""

import itertools

import jax
import numpy as np
import pytest

from synchformer_jax.train import checkpoint, pretraining
from synchformer_jax.train import mesh as meshes
from synchformer_jax.train import state as states
from synchformer_jax.train import step as steps
from tests.objectives.dense import dense
from tests.train.tiny import SEGMENTS, make_batch


@pytest.fixture(scope="module")
def config(tiny_config):
    """Groups of two of four clips, a queue of two batches, soft targets that grow, and whole clips."""
    config = tiny_config("segment_avclip")
    config.model.avclip.global_pool = "attention"
    config.data.batch_size = 4
    config.augment.flip = 0.0
    config.contrastive.update(
        {
            "momentum_encoders": True,
            "momentum": 0.9,
            "queue_clips": 8,
            "alpha": 0.4,
            "alpha_steps": 2,
            "global_weight": 0.5,
        }
    )
    config.optimizer.update({"name": "sgd", "learning_rate": 0.1})
    return config


@pytest.fixture(scope="module")
def taken(config):
    """The run, its states before and after each of four steps, and their metrics."""
    blueprint, arrays = states.take_apart(states.make_model(config))
    run = states.prepare(config, meshes.make_mesh(config, jax.devices()[:1]), blueprint)
    now, frozen = states.start(run, arrays)
    compiled, history, metrics = steps.make_train_step(run), [jax.device_get(now)], []
    for number in range(4):
        batch = steps.device_fields(make_batch(config, number))
        now, values = compiled(now, frozen, meshes.put_batch(run.mesh, batch))
        history.append(jax.device_get(now))
        metrics.append(jax.device_get(values))
    return run, history, metrics


def embeddings(run, arrays, number):
    """By level, of batch `number`, without the trainer."""
    batch = make_batch(run.config, number)
    return jax.device_get(steps.embed(run.config, run.blueprint.build(arrays), batch))


def test_followers_move_a_tenth_of_the_way_before_each_step(taken):
    _, history, _ = taken
    assert set(history[0].memory["params"]) == {name for name in history[0].params if "logit_scale" not in name}
    for before, after in itertools.pairwise(history):
        for name, old in before.memory["params"].items():
            expected = 0.9 * old.astype(np.float64) + 0.1 * before.params[name]
            np.testing.assert_allclose(after.memory["params"][name], expected, rtol=1e-5, atol=1e-7)


def test_the_oldest_batch_leaves_the_queue(taken):
    run, history, _ = taken
    for number, (before, after) in enumerate(itertools.pairwise(history)):
        fresh = embeddings(run, {**before.params, **after.memory["params"]}, number)
        for level, queue in after.memory["queue"].items():
            rows = 4 * (SEGMENTS if level == "segment" else 1)
            assert queue.shape == (2, 2 * rows, 32)
            new, old = (slice(i * rows, (i + 1) * rows) for i in (number % 2, 1 - number % 2))
            for stream in (0, 1):
                np.testing.assert_allclose(queue[stream, new], fresh[level][stream].reshape(rows, 32), atol=2e-6)
            np.testing.assert_array_equal(queue[:, old], before.memory["queue"][level][:, old])


def test_the_loss_is_the_dense_formula_over_batch_and_queue(taken):
    run, history, metrics = taken
    for number, (before, after) in enumerate(itertools.pairwise(history)):
        asked = embeddings(run, before.params, number)
        answers = embeddings(run, {**before.params, **after.memory["params"]}, number)
        alpha, total = 0.4 * min(1, number / 2), 0.0
        for level, weight, scale in (("segment", 1.0, "logit_scale"), ("global", 0.5, "global_logit_scale")):
            teacher = (*answers[level], before.memory["queue"][level], alpha)
            loss, _ = dense(*asked[level], 2, float(before.params[scale]), None, teacher)
            assert metrics[number][f"{level}_loss"] == pytest.approx(loss, rel=1e-5)
            total += weight * loss
        assert metrics[number]["loss"] == pytest.approx(total, rel=1e-5)


def test_a_checkpoint_holds_the_memory(taken, tmp_path):
    run, history, _ = taken
    kept = checkpoint.Checkpoints(tmp_path, run.config)
    kept.save(run, history[-1], {}, {})
    kept.finish()
    back, _, _ = kept.restore(run, 4)
    kept.close()
    assert jax.tree.structure(back) == jax.tree.structure(history[-1])
    for mine, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(history[-1]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_nothing_is_remembered_without_momentum_encoders(tiny_config):
    config = tiny_config("segment_avclip")
    blueprint, arrays = states.take_apart(states.make_model(config))
    run = states.prepare(config, meshes.make_mesh(config, jax.devices()[:1]), blueprint)
    assert states.start(run, arrays)[0].memory == {} == run.abstract_memory()


def test_the_queue_begins_with_random_directions(config):
    first = pretraining.first_memory(config, {})
    for queue in first["queue"].values():
        np.testing.assert_allclose(np.linalg.norm(queue, axis=-1), 1, rtol=1e-5)
        assert abs(np.mean(queue[0] @ queue[1].T)) < 0.1


def test_the_sigmoid_loss_learns_its_own_temperature_and_bias(tiny_config):
    config = tiny_config("segment_avclip")
    config.model.avclip.loss = "sigmoid"
    config.augment.flip = 0.0
    config.contrastive.group_clips = 4
    blueprint, arrays = states.take_apart(states.make_model(config))
    assert "logit_scale" not in arrays
    run = states.prepare(config, meshes.make_mesh(config, jax.devices()[:1]), blueprint)
    batch = steps.device_fields(make_batch(config, 0))
    loss = jax.jit(jax.value_and_grad(lambda *x: steps.loss_and_metrics(run, *x), has_aux=True))
    (value, (metrics, _)), gradients = loss(arrays, {}, batch, jax.random.key(0))
    expected, of = dense(*embeddings(run, arrays, 0)["segment"], 4, 0.1, -10.0)
    assert value == pytest.approx(expected, rel=1e-5)
    assert metrics["temperature"] == pytest.approx(0.1)
    assert gradients["logit_bias"] == pytest.approx(of[3], rel=1e-4)
    assert gradients["log_scale"] == pytest.approx(-0.1 * of[2], rel=1e-4)  # the temperature is exp(-log_scale)
