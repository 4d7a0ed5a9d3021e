"""Stage 2 with a recipe that leaves the plateau at ln 21 = 3.04 at once; the published one is configs/sync.py.

Give the data set and the stage 1 run: --config.data.train=DIR --config.data.valid=DIR --config.init.avclip=WORKDIR, and
for a run of hours in place of days the cached features: --config.data.visual_features=DIR
(python -m synchformer_jax.train.cache). The model is the published one plus the lag profile, a learned
cross-correlation of the two streams that is added to its logits (synchformer_jax/models/lag_profile.py); such a model
cannot be written in the published format. What was compared, with a small model: benchmarks/results/plateau.md.
"""

from ml_collections import ConfigDict

from synchformer_jax.train.config import base_config


def get_config(size: str = "B") -> ConfigDict:
    config = base_config("sync", size)
    config.model.head.lag_profile = True
    config.data.batch_size = 128
    config.freeze = ("visual", "audio")
    config.optimizer.update(
        {
            "name": "adam",
            # 1e-3 at width 128, where it was compared, times 128 / width.
            "learning_rate": 1e-3 * 128 / config.model.head.width,
            "eps": 1e-7,
            "schedule": "constant",
            "warmup_steps": 100,
        }
    )
    config.train.update({"steps": 10_000_000, "eval_every": 2_000, "checkpoint_every": 2_000, "patience": 20})
    return config
