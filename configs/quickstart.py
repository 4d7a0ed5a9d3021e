"""Both stages at a size that two CPU cores train in minutes: configs/quickstart.py:segment_avclip and :sync.

The same classes and code as the full-size model; small frames, narrow, shallow. Where training a small model on little
data needs something of its own, the field says why.
"""

from ml_collections import ConfigDict

from synchformer_jax.train.config import base_config


def get_config(stage: str = "segment_avclip") -> ConfigDict:
    config = base_config(stage, "Ti")
    model = config.model
    # DCT patches see motion and edges from the first step; learned from scratch they need far more data.
    model.visual.update(
        {
            "image_size": 64,
            "tubelet": 4,
            "width": 128,
            "depth": 4,
            "heads": 4,
            "drop_path": 0.0,
            "patch_init": "dct",
            "position_init": "sinusoidal",
        }
    )
    model.audio.update({"width": 128, "depth": 3, "heads": 4, "stride": 16})
    # The lag profile ends the plateau at ln 21 within about a hundred steps.
    model.head.update({"width": 128, "depth": 2, "heads": 4, "dropout": 0.0, "lag_profile": True})
    model.compute.dtype = "float32"
    # A CPU that trains is better at turning planes into RGB before they are batches.
    config.data.update({"size": 64, "workers": 1, "pixels": "rgb"})
    config.train.update({"log_every": 10, "keep": 1})
    config.optimizer.update({"name": "adamw", "schedule": "cosine", "warmup_steps": 50, "weight_decay": 0.05})
    if stage == "segment_avclip":
        config.data.batch_size = 8
        config.contrastive.group_clips = 2
        # Trained patches and temperature let the small model fall back to embeddings that are all alike.
        config.freeze = ("visual.patch", "logit_scale")
        config.optimizer.learning_rate = 1e-3
        config.train.update({"steps": 600, "eval_every": -1, "eval_batches": 8, "checkpoint_every": 100})
    else:
        config.data.batch_size = 32
        config.freeze = ("visual", "audio")
        config.optimizer.learning_rate = 2e-3
        config.train.update({"steps": 300, "eval_every": -1, "eval_batches": 4, "checkpoint_every": 50})
    return config
