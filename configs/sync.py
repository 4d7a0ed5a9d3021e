"""Stage 2 as published: the sync head on frozen extractors.

Give the data set and the stage 1 run: --config.data.train=DIR --config.data.valid=DIR --config.init.avclip=WORKDIR. The
learning rate is 2e-6 for every 16 clips of a batch. Published training sits at ln 21 = 3.04 for long before it learns;
configs/sync_fast.py ends that early.

--config.data.fixed_offsets=TABLE.csv validates by a published table of offsets. Sound effects and colours stay as they
are, as published; the flip is of whole clips.
"""

from ml_collections import ConfigDict

from synchformer_jax.train.config import base_config


def get_config(size: str = "B") -> ConfigDict:
    config = base_config("sync", size)
    config.data.batch_size = 128
    config.freeze = ("visual", "audio")
    config.optimizer.update(
        {
            "name": "adam",
            "learning_rate": 2e-6,
            "per_clips": 16,
            "eps": 1e-7,
            "schedule": "constant",
            "warmup_steps": 1000,
        }
    )
    config.train.update({"steps": 10_000_000, "eval_every": 5_000, "checkpoint_every": 5_000, "patience": 20})
    return config
