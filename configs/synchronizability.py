"""Stage 3 as published: can these two streams be synchronized at all? The head of stage 2, fine-tuned for two classes.

Give the data set and the stage 2 run: --config.data.train=DIR --config.data.valid=DIR --config.init.sync=WORKDIR. 13
segments; the negatives are offsets of a whole crop.
"""

from ml_collections import ConfigDict

from synchformer_jax.train.config import base_config


def get_config(size: str = "B") -> ConfigDict:
    config = base_config("synchronizability", size)
    config.model.segments = 13
    config.model.head.classes = 2
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
