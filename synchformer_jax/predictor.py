"""A trained model as an object that is given videos."""

import dataclasses
import os
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from synchformer_jax import clock
from synchformer_jax.errors import UserError
from synchformer_jax.eval.clip import centre, describe, read_crop, short_side
from synchformer_jax.eval.metrics import softmax
from synchformer_jax.eval.offset import sync_forward
from synchformer_jax.train.checkpoint import load_model


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The offset of one video. `offset_sec` above zero: the audio is early."""

    offset_sec: float  # the most probable class
    probability: float  # of that class
    logits: np.ndarray  # float32 [classes]
    grid: np.ndarray  # seconds [classes]
    start_sec: float  # where the crop of the picture starts in the file
    video: str
    audio_shift_sec: float = 0.0  # by how much the audio was made early before the model got it

    @property
    def probabilities(self) -> np.ndarray:
        """Of all classes, float64 `[classes]`."""
        return softmax(self.logits)

    @property
    def sentence(self) -> str:
        """The answer in words."""
        return f"{describe(self.offset_sec)} (probability {self.probability:.0%})"

    def to_json(self) -> dict:
        """As plain values, offsets to the microsecond."""
        return {
            "video": self.video,
            "offset_sec": round(self.offset_sec, 6),
            "probability": self.probability,
            "start_sec": self.start_sec,
            "audio_shift_sec": self.audio_shift_sec,
            "grid": [round(float(offset), 6) for offset in self.grid],
            "logits": [float(value) for value in self.logits],
        }


class Predictor:
    """Predicts by how much the sound of a video is off its picture."""

    def __init__(self, model: nnx.Module, config: ConfigDict):
        """Takes a `Synchformer` and the configuration it was trained by."""
        self.model = model
        self.config = config
        self.grid = clock.offset_grid(config.model.head.classes)
        self._forward = sync_forward(model, config)

    def predict(self, video: str | os.PathLike, offset_sec: float = 0.0, start_sec: float | None = None) -> Prediction:
        """The offset of the sound of a 5 s crop.

        Args:
            video: a file of any codec, frame rate and size.
            offset_sec: first shifts the audio: above zero makes it early by so many seconds.
            start_sec: where the crop starts in the file; None takes the middle.

        Raises:
            UserError: the video is shorter than the crop and the shift need.
            MediaError: the file cannot be decoded, or has no picture or no sound.
        """
        size = self.config.model.visual.image_size
        side = self.config.data.get("short_side", 0) or short_side(size)
        crop = read_crop(video, short_side=side, offset_sec=offset_sec, start_sec=start_sec)
        logits = self._forward(centre(crop.frames, size, os.fspath(video))[None], crop.audio[None])[0]
        best = int(logits.argmax())
        return Prediction(
            offset_sec=float(self.grid[best]),
            probability=float(softmax(logits)[best]),
            logits=logits,
            grid=self.grid,
            start_sec=crop.start_sec,
            video=os.fspath(video),
            audio_shift_sec=float(offset_sec),
        )


def load(path: str | os.PathLike) -> Predictor:
    """Opens the work folder of a trained sync head.

    Raises:
        UserError: the folder holds no checkpoint, or one of another stage.
    """
    if not Path(path).is_dir():
        raise UserError(f"There is no folder {path}. Give the --workdir of a run of stage sync.")
    model, config = load_model(path)
    if config.stage != "sync":
        raise UserError(f"{path} holds a model of stage {config.stage}. Give the --workdir of a run of stage sync.")
    return Predictor(model, config)
