"""Stage 1 as published: segment-level contrastive pretraining on AudioSet, VGGSound or LRS3.

    --config configs/segment_avclip.py:vggsound      or :audioset (the default), :lrs3
    --config configs/segment_avclip.py:audioset,S    another size of the model: Ti, S, B (the published), L

Give the data set: --config.data.train=DIR --config.data.valid=DIR. The published run took 16 GPUs with 2 clips each;
here the whole batch may lie on one device, and negatives still come from groups of 2 clips.

The published run starts from two trained extractors; give their files, without which both start from fresh weights:

    --config.init.motionformer=ssv2_divided_224_16x4.pyth    Motionformer on Something-Something v2, divided attention
    --config.init.ast=model.safetensors                      MIT/ast-finetuned-audioset-10-10-0.4593 of Hugging Face

With ssv2_joint_224_16x4.pyth also give --config.model.visual.attention=joint and --config.model.visual.position=joint;
with ssv2_motionformer_224_16x4.pyth, --config.model.visual.attention=trajectory.
"""

from ml_collections import ConfigDict

from synchformer_jax.errors import UserError
from synchformer_jax.train.config import base_config

EPOCHS = 100  # that the cosine is laid out for; the published runs were stopped after 28, 20 and 30 of them
# Training clips, about: set train.steps to EPOCHS of yours. LRS3's pictures and sounds are only cropped and flipped.
DATA_SETS = {
    "audioset": {"clips": 1_600_000, "learning_rate": 1e-4, "augmented": True},
    "vggsound": {"clips": 170_000, "learning_rate": 1e-4, "augmented": True},
    "lrs3": {"clips": 60_000, "learning_rate": 5e-5, "augmented": False},
}


def get_config(variant: str = "audioset") -> ConfigDict:
    name, _, size = variant.partition(",")
    if name not in DATA_SETS:
        raise UserError(f"configs/segment_avclip.py has no variant {name!r}. Give one of {', '.join(DATA_SETS)}.")
    data_set = DATA_SETS[name]
    config = base_config("segment_avclip", size or "B")
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
    if not data_set["augmented"]:
        config.augment.update({effect: 0.0 for effect in config.augment if effect != "flip"})
    config.optimizer.update(
        {
            "name": "adamw",
            "learning_rate": data_set["learning_rate"],
            "weight_decay": 0.0,
            "schedule": "cosine",
            "warmup_steps": 1000,
        }
    )
    config.model.compute.remat = "dots"
    epoch = data_set["clips"] // config.data.batch_size
    config.train.update(
        {"steps": EPOCHS * epoch, "eval_every": epoch, "checkpoint_every": min(epoch, 2_000), "patience": 20}
    )
    return config
