"""A tiny model and batches from a formula, shared by the tests of the trainer."""

import numpy as np

from synchformer_jax.train.config import base_config

SEGMENTS = 2


def tiny(stage, tmp=None):
    """A config of the smallest model that has all parts, computed in float32."""
    config = base_config(stage, "Ti")
    config.model.segments = SEGMENTS
    config.model.visual.update(
        {"image_size": 32, "patch_size": 16, "tubelet": 8, "width": 32, "depth": 1, "heads": 2, "drop_path": 0.0}
    )
    config.model.audio.update({"width": 32, "depth": 1, "heads": 2, "stride": 16})
    config.model.head.update({"width": 32, "depth": 1, "heads": 2, "dropout": 0.1})
    if stage == "synchronizability":
        config.model.head.classes = 2
    config.model.compute.dtype = "float32"
    config.data.update({"batch_size": 8, "size": 32, "workers": 0})
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 2})
    config.train.update({"steps": 6, "log_every": 1, "eval_every": 3, "eval_batches": 2, "checkpoint_every": 2})
    if stage == "sync":
        config.freeze = ("visual", "audio")
        config.init.random_extractors = True
    if tmp is not None:
        config.data.train = config.data.valid = str(tmp)
    return config


def get_config(stage):
    """For --config tests/train/tiny.py:STAGE."""
    return tiny(stage)


def make_batch(config, number, size=None):
    """Batch `number`, a pure function of it."""
    rng = np.random.default_rng([config.seed, number])
    size = size or config.data.batch_size
    frames = 16 * SEGMENTS if config.stage == "segment_avclip" else 16 + 8 * (SEGMENTS - 1)
    batch = {
        "frames": rng.integers(0, 256, (size, frames, 32, 32, 3)).astype(np.uint8),
        "audio": (3000 * rng.standard_normal((size, frames * 640))).astype(np.int16),
        "record": np.arange(size) + 100 * number,
    }
    if config.stage != "segment_avclip":
        batch["target"] = rng.integers(0, config.model.head.classes, size).astype(np.int32)
    return batch


class FakeBatches:
    """What `pipeline.batches` gives, without files."""

    def __init__(self, config, split, *, train, start_step=0):
        self.config, self.train, self.step = config, train, start_step

    def __iter__(self):
        return self

    def __next__(self):
        if not self.train and self.step >= 3:
            raise StopIteration
        self.step += 1
        short = not self.train and self.step == 3
        return make_batch(self.config, self.step + (0 if self.train else 1000), 5 if short else None)

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]

    def close(self):
        self.closed = True
