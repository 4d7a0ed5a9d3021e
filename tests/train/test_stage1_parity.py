"""Stage 1 through the trainer's own step, at full size, against the published implementation's figures; minutes."""

import jax
import numpy as np
import pytest

from synchformer_jax.convert import published
from synchformer_jax.models import SegmentAVCLIP
from synchformer_jax.train import mesh as meshes
from synchformer_jax.train import state as states
from synchformer_jax.train import step as steps
from synchformer_jax.train.config import base_config
from tests.parity import Weights, figures, model_of, normal, published_norm

pytestmark = pytest.mark.slow


def test_loss_and_gradients_of_the_trainer(monkeypatch):
    """The figures begin where the trainer's inputs are ready: normalised frames and log-mel are put in there."""
    config = base_config("segment_avclip")
    config.model.segments, config.model.compute.dtype, config.model.visual.drop_path = 2, "float32", 0.0
    config.data.batch_size = config.contrastive.group_clips = 2
    frames = normal("input/avclip_vis", (2, 2, 3, 16, 224, 224)).transpose(0, 1, 3, 4, 5, 2)
    log_mel = normal("input/avclip_aud", (2, 2, 66, 128)).swapaxes(2, 3)
    monkeypatch.setattr(steps, "visual_input", lambda config, batch, key: batch["frames"])
    monkeypatch.setattr(steps, "audio_input", lambda config, audio, key, mesh: audio)
    blueprint, (_, arrays) = states.hollow_model(config), states.take_apart(model_of(SegmentAVCLIP, Weights("avclip")))
    run = states.prepare(config, meshes.make_mesh(config, jax.devices()[:1]), blueprint)
    batch = meshes.put_batch(run.mesh, {"frames": frames, "audio": log_mel})
    theirs = figures("avclip_loss")
    norms = dict(zip(theirs["grad_names"].tolist(), theirs["grad_norms"].tolist(), strict=True))

    gradient = jax.jit(jax.value_and_grad(lambda *x: steps.loss_and_metrics(run, *x), has_aux=True))
    (loss, _), gradients = gradient(arrays, {}, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, theirs["loss"], rtol=1e-4)
    ours = published.from_state(blueprint.build(gradients))
    small = 1e-5 * max(norms.values())  # key biases have a true gradient of zero
    for name, value in norms.items():
        np.testing.assert_allclose(published_norm(ours[name]), value, rtol=1e-4, atol=small, err_msg=name)
    exact = np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in gradients.values()))
    del gradients

    state, frozen = states.start(run, arrays)
    _, metrics = steps.make_train_step(run)(state, frozen, batch)
    np.testing.assert_allclose(metrics["loss"], theirs["loss"], rtol=1e-4)
    np.testing.assert_allclose(metrics["grad_norm"], exact, rtol=1e-4)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(np.square(theirs["grad_norms"]).sum()), rtol=3e-4)
