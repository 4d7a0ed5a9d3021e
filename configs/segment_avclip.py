"""Stage 1 as published: segment-level contrastive pretraining on AudioSet, VGGSound or LRS3.

Give the data set: --config.data.train=DIR --config.data.valid=DIR. The published run took 16 GPUs with 2 clips each;
here the whole batch may lie on one device, and negatives still come from groups of 2 clips.

The published run starts from two trained extractors; give their files, without which both start from fresh weights:

    --config.init.motionformer=ssv2_divided_224_16x4.pyth    Motionformer on Something-Something v2, divided attention
    --config.init.ast=model.safetensors                      MIT/ast-finetuned-audioset-10-10-0.4593 of Hugging Face

With ssv2_joint_224_16x4.pyth also give --config.model.visual.attention=joint and --config.model.visual.position=joint;
with ssv2_motionformer_224_16x4.pyth, --config.model.visual.attention=trajectory.
"""

from ml_collections import ConfigDict

from synchformer_jax.train.config import base_config


def get_config() -> ConfigDict:
    config = base_config("segment_avclip")
    config.data.batch_size = 32
    config.contrastive.group_clips = 2
    config.augment = {
        "upscale": 0.2,
        "flip": 0.5,
        "colour_jitter": 0.2,
        "greyscale": 0.2,
        "reverb": 0.2,
        "volume": 0.2,
        "pitch_shift": 0.2,
        "low_pass": 0.2,
        "noise": 0.2,
    }
    config.optimizer.update(
        {"name": "adamw", "learning_rate": 1e-4, "weight_decay": 0.0, "schedule": "cosine", "warmup_steps": 1000}
    )
    config.model.compute.remat = "dots"
    config.train.update({"steps": 1_000_000, "eval_every": 10_000, "checkpoint_every": 5_000, "patience": 20})
    return config
