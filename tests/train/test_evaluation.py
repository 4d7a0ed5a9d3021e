"""What an evaluation of stage 1 shows."""

from types import SimpleNamespace

import numpy as np

from synchformer_jax.train import evaluation
from tests.train.tiny import FakeBatches, tiny


def test_the_picture_holds_the_cosines_of_the_first_clips(monkeypatch):
    config = tiny("segment_avclip")
    config.contrastive.group_clips = 0
    rng = np.random.default_rng(0)

    def unit(*shape):
        values = rng.standard_normal(shape).astype(np.float32)
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    seen = []

    def eval_step(arrays, batch):
        visual = unit(8, 2, 16)
        seen.append(visual)
        return {"visual": visual, "audio": visual, "temperature": np.float32(0.1)}

    monkeypatch.setattr(evaluation.meshes, "put_batch", lambda mesh, batch: batch)
    run = SimpleNamespace(config=config, mesh=None)
    batches = FakeBatches(config, "valid", train=False)
    values, pictures = evaluation.evaluate(run, eval_step, {}, [next(batches), next(batches)])
    first = seen[0][: evaluation.PICTURED].reshape(-1, 16)
    np.testing.assert_allclose(pictures["similarity"], first @ first.T, atol=1e-6)
    assert values["precision"] == 1.0  # both streams are the same
