"""Learning rates against the published formulas, and who gets weight decay."""

import jax.numpy as jnp
import numpy as np
import pytest

from synchformer_jax.train.optimizer import make_optimizer, make_schedule


def test_cosine_is_the_published_one(tiny_config):
    config = tiny_config("segment_avclip")
    config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 10})
    config.train.steps = 100
    steps = np.arange(100)
    expected = np.where(steps < 10, (steps + 1) / 10, 0.5 * (1 + np.cos(np.pi * (steps - 10) / 90))) * 1e-4
    np.testing.assert_allclose([make_schedule(config)(step) for step in steps], expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_one_step_is_the_textbook_one(tiny_config, name):
    config = tiny_config("segment_avclip")
    config.optimizer.update({"name": name, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.1})
    config.optimizer.update({"learning_rate": 0.01, "clip_norm": 1.0})
    params = {"a.kernel": jnp.full((2, 2), 3.0), "b.bias": jnp.full((2, 2), 3.0), "c.scale": jnp.full(4, 3.0)}
    axes = {"a.kernel": ("embed", "mlp"), "b.bias": ("heads", None), "c.scale": ("layers",)}
    grads = {key: jnp.full_like(value, 2.0) for key, value in params.items()}  # norm 2 sqrt 12
    optimizer, _ = make_optimizer(config, axes)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    clipped = 2 / np.sqrt(48)
    decayed = {"adamw": 1 + 0.3, "adam": 1.0, "sgd": clipped + 0.3}[name]
    plain = clipped if name == "sgd" else 1.0
    np.testing.assert_allclose(updates["a.kernel"], -0.01 * decayed, rtol=1e-4)
    np.testing.assert_allclose(updates["b.bias"], -0.01 * plain, rtol=1e-4)
    np.testing.assert_allclose(updates["c.scale"], -0.01 * plain, rtol=1e-4)
