"""Videos of flashes and clicks, and a model that finds their offset by plain correlation: nothing is learned.

Where everything between a file and the logits is right to a frame, this model is never wrong.
"""

import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import soundfile
from flax import nnx
from ml_collections import ConfigDict

from synchformer_jax import clock, models
from synchformer_jax.data.records import ShardWriter, encode_example, shard_path, write_metadata
from synchformer_jax.media.encode import write_mp4
from synchformer_jax.train.config import base_config
from synchformer_jax.train.state import hollow_model

SIZE, SECONDS = 32, 10


class Correlator(nnx.Module):
    """Takes the place of `Synchformer`."""

    def visual(self, frames, mask=None, *, key=None):
        """The brightness of the first eight frames of each segment, `[B, S, 8, 1]`."""
        return frames[:, :, :8].mean(axis=(3, 4, 5))[..., None].astype(jnp.float32)

    def audio(self, log_mel, mask=None, *, key=None):
        """The loudness of the same eight frames, at four log-mel columns a frame."""
        columns = log_mel[..., :32].max(axis=2)
        return columns.reshape(*columns.shape[:2], 8, 4).max(axis=-1)[..., None].astype(jnp.float32)

    def head(self, visual, audio, *, key=None):
        """How well the streams fit at each offset: what is seen at frame i is heard at frame i - 5 k."""
        v, a = (x.reshape(x.shape[0], -1) for x in (visual, audio))
        v, a = ((x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True) for x in (v, a))
        frames = v.shape[1]
        fits = []
        for shift in range(-50, 51, 5):
            here, there = (slice(max(0, way * shift), frames + min(0, way * shift)) for way in (1, -1))
            fits.append((v[:, here] * a[:, there]).mean(axis=1))
        return jnp.stack(fits, axis=1)


def config() -> ConfigDict:
    """Of a run that could have given the correlator, or a tiny real model."""
    config = base_config("sync", "Ti")
    config.model = models.model_config("Ti")
    config.model.visual.update({"image_size": SIZE, "width": 24, "depth": 1, "heads": 2})
    config.model.audio.update({"width": 24, "depth": 1, "heads": 2})
    config.model.head.update({"width": 24, "depth": 1, "heads": 2})
    config.model.compute.dtype = "float32"
    config.data.update({"size": SIZE, "batch_size": 8, "workers": 0})
    return config


def tiny_model(seed: int = 3) -> models.Synchformer:
    """A real model with weights of NumPy, which needs no compilation."""
    random, blueprint = np.random.default_rng(seed), hollow_model(config())
    weights = {name: 0.2 * random.normal(size=shape) for name, shape in blueprint.shapes().items()}
    return blueprint.build({name: jnp.asarray(weight, jnp.float32) for name, weight in weights.items()})


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames `[250, 36, 44, 3]` and samples: a flash of two frames and a click at 24 irregular moments."""
    random = np.random.default_rng(seed)
    moments = np.sort(random.choice(np.arange(4, 246, 4), 24, replace=False))
    frames = np.full((SECONDS * clock.FRAME_RATE, 36, 44, 3), 30, np.uint8)
    audio = 30 * random.normal(size=SECONDS * clock.SAMPLE_RATE)
    decay = 12000 * np.exp(-np.arange(400) / 80)
    for moment in moments:
        frames[moment : moment + 2] = 220
        start = moment * clock.SAMPLES_PER_FRAME
        audio[start : start + 400] += decay * random.choice([-1, 1], 400)
    return frames, np.clip(audio, -32767, 32767).astype(np.int16)


def write_video(path: Path, seed: int) -> Path:
    """One mp4 in sync."""
    write_mp4(path, *draw(seed))
    return path


def write_data_set(root: Path, clips: int, levels: tuple[str, ...]) -> Path:
    """Records of so many clips in a split "test"; returns the folder to give to the pipeline."""
    folder = root / "flashes" / "1.0.0"
    folder.mkdir(parents=True)
    with ShardWriter(shard_path(folder, "test", 0, 1)) as writer:
        for i in range(clips):
            frames, audio = draw(i)
            sound = io.BytesIO()
            soundfile.write(sound, audio, clock.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            video = write_video(root / f"{i}.mp4", i).read_bytes()
            fields = {
                "clip_id": f"flash_{i:03d}", "level": levels[i % len(levels)], "video": video,
                "audio": sound.getvalue(), "num_frames": len(frames), "num_samples": len(audio),
                "height": frames.shape[1], "width": frames.shape[2],
            }  # fmt: skip
            writer.write(encode_example(fields))
    write_metadata(folder)
    return root
