"""Stage 1 as published: segment-level contrastive pretraining on AudioSet, VGGSound or LRS3.

Give the data set: --config.data.train=DIR --config.data.valid=DIR. The published run took 16 GPUs with 2 clips each;
here the whole batch may lie on one device, and negatives still come from groups of 2 clips. Of the published sound
effects, reverberation and pitch shift are not made (synchformer_jax/ops/augment.py).
"""

from ml_collections import ConfigDict

from synchformer_jax.train.config import base_config


def get_config() -> ConfigDict:
    config = base_config("segment_avclip")
    config.data.batch_size = 32
    config.contrastive.group_clips = 2
    config.augment = {
        "flip": 0.5,
        "colour_jitter": 0.2,
        "greyscale": 0.2,
        "volume": 0.2,
        "low_pass": 0.2,
        "noise": 0.2,
    }
    config.optimizer.update(
        {"name": "adamw", "learning_rate": 1e-4, "weight_decay": 0.0, "schedule": "cosine", "warmup_steps": 1000}
    )
    config.model.compute.remat = "dots"
    config.train.update({"steps": 1_000_000, "eval_every": 10_000, "checkpoint_every": 5_000, "patience": 20})
    return config
