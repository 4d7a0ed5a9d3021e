"""A trained model as an object that is given videos."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from synchformer_jax import clock
from synchformer_jax.convert.export import SUFFIX, Exported
from synchformer_jax.errors import UserError
from synchformer_jax.eval import clip
from synchformer_jax.eval.metrics import softmax
from synchformer_jax.models import inference
from synchformer_jax.weights import open_weights

PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of one video. `offset_sec` above zero: the audio is early."""

    offset_sec: float  # the most probable class
    probability: float  # of that class
    logits: np.ndarray  # float32 [classes]
    grid: np.ndarray  # seconds [classes]
    start_sec: float  # where the crop of the picture starts in the file
    video: str
    audio_shift_sec: float = 0.0  # by how much the audio was made early before the model got it
    audio_shift_samples: int = 0  # by how much it was made late besides, for the model's sake

    @property
    def probabilities(self) -> np.ndarray:
        """Of all classes, float64 `[classes]`."""
        return softmax(self.logits)

    @property
    def sentence(self) -> str:
        """The answer in words."""
        return f"{clip.describe(self.offset_sec)} (probability {self.probability:.0%})"

    def to_json(self) -> dict:
        """As plain values, offsets to the microsecond."""
        return _plain(self) | {
            "offset_sec": round(self.offset_sec, 6),
            "grid": [round(float(offset), 6) for offset in self.grid],
        }


@dataclasses.dataclass(frozen=True)
class Synchronizability:
    """Whether picture and sound of one video could be synchronized at all (paper, section 3.3)."""

    synchronizable: bool
    probability: float  # that they could
    logits: np.ndarray  # float32 [2]: no, yes
    start_sec: float  # as in `Prediction`, like all below
    video: str
    audio_shift_sec: float = 0.0
    audio_shift_samples: int = 0

    @property
    def sentence(self) -> str:
        """The answer in words."""
        could = "can" if self.synchronizable else "cannot"
        return f"picture and sound {could} be synchronized (probability that they can: {self.probability:.0%})"

    def to_json(self) -> dict:
        """As plain values."""
        return _plain(self)


def _plain(result: Prediction | Synchronizability) -> dict:
    values = dataclasses.asdict(result)
    return values | {"logits": [float(value) for value in result.logits]}


class Predictor:
    """Predicts by how much the sound of a video is off its picture, and gives the features that this rests on.

    Attributes:
        stage: "sync", "synchronizability", "segment_avclip", "motionformer" or "ast".
        grid: offsets of the classes in seconds, float32 `[classes]`; None but for stage sync.
        clip_frames, image_size: length and sides of the crop that the model takes.
    """

    def __init__(
        self, model: nnx.Module, config: ConfigDict, *, audio_shift_samples: int = 0, fresh: Sequence[str] = ()
    ):
        """Takes a model and the configuration of the run or file it is from.

        Args:
            model: of the config's stage.
            config: `stage`, `model` and `data` are read.
            audio_shift_samples: as in `load`.
            fresh: names of parameters that no training has seen.
        """
        self.stage, self.image_size = config.stage, config.model.visual.image_size
        self.clip_frames = inference.clip_frames(config)
        self.short_side = config.data.get("short_side", 0) or clip.short_side(self.image_size)
        self.grid = clock.offset_grid(config.model.head.classes) if self.stage == "sync" else None
        self.audio_shift_samples = audio_shift_samples
        self._model, self._config, self._fresh = model, config, fresh
        self._programs: dict[str, Callable] = {}

    def predict(
        self,
        video: str | os.PathLike,
        offset_sec: float = 0.0,
        start_sec: float | None = None,
        *,
        audio_shift_samples: int | None = None,
    ) -> Prediction | Synchronizability:
        """The offset of the sound of a 5 s crop; of a synchronizability model, whether it has one.

        The test-time path is the published one: 25 fps, short side 256, centre of 224 pixels, 14 segments. A start
        between two frames is rounded to the nearer one, and the sound starts with it.

        Args:
            video: a file of any codec, frame rate and size.
            offset_sec: first shifts the audio: above zero makes it early by so many seconds.
            start_sec: where the crop starts in the file; None takes the middle.
            audio_shift_samples: in place of what `load` was given.

        Raises:
            UserError: the video is shorter than the crop and the shift need, or the model has no head.
            MediaError: the file cannot be decoded, or has no picture or no sound.
        """
        self._require("predict", "head", "visual", "audio")
        crop, shift = self._crop(video, offset_sec, start_sec, audio_shift_samples)
        logits = self._logits(self._centre(crop.frames[None], video), crop.audio[None])[0]
        told = {
            "logits": logits,
            "start_sec": crop.start_sec,
            "video": os.fspath(video),
            "audio_shift_sec": float(offset_sec),
            "audio_shift_samples": shift,
        }
        powers = softmax(logits)
        if self.stage == "synchronizability":
            return Synchronizability(bool(powers[1] >= 0.5), float(powers[1]), **told)
        best = int(logits.argmax())
        return Prediction(float(self.grid[best]), float(powers[best]), grid=self.grid, **told)

    def encode_video(self, video: str | os.PathLike | np.ndarray, start_sec: float | None = None) -> np.ndarray:
        """Visual features of segments, float32 `[B, S, 8, D]`: a token for each 0.08 s; D is 768 at full size.

        Args:
            video: a file, of which a crop is taken as in `predict`; or RGB frames at 25 fps, uint8: clips
                `[B, T, H, W, 3]` (or one, `[T, H, W, 3]`), of which as many segments are taken as fit, in the middle;
                or segments `[B, S, 16, H, W, 3]`. Of larger pictures than the model's the centre counts.
            start_sec: where the crop of a file starts; None takes the middle.

        Raises:
            UserError: the array is not as described, or the model does not see.
            MediaError: the file cannot be decoded.
        """
        self._require("encode_video", "visual")
        if isinstance(video, (str, os.PathLike)):
            video, name = self._crop(video, 0.0, start_sec, 0, may_be_silent=True)[0].frames, os.fspath(video)
        else:
            video, name = np.asarray(video), "The video"
        if video.dtype != np.uint8 or video.ndim not in (4, 5, 6) or video.shape[-1] != 3:
            raise UserError(
                f"encode_video got {video.dtype} {list(video.shape)}. Give a path, or RGB frames as uint8: clips "
                "[B, T, H, W, 3] or segments [B, S, frames, H, W, 3]."
            )
        video = self._centre(video[None] if video.ndim == 4 else video, name)
        if video.ndim == 5:
            video = self._cut(inference.cut_frames, video, video.shape[1], "frames")
        elif video.shape[2] != self._config.model.visual.frames:
            raise UserError(
                f"encode_video got segments of {video.shape[2]} frames; the model takes "
                f"{self._config.model.visual.frames}. Cut them so, or give whole clips [B, T, H, W, 3]."
            )
        return self._run("encode_frames", video)

    def encode_audio(
        self,
        audio: str | os.PathLike | np.ndarray,
        start_sec: float | None = None,
        *,
        audio_shift_samples: int | None = None,
    ) -> np.ndarray:
        """Audio features of segments, float32 `[B, S, 6, D]`: a token for each 0.1 s; D is 768 at full size.

        Args:
            audio: a video file, of whose sound a crop is taken as in `predict`; or samples at 16 kHz, int16 or float
                in [-1, 1]: clips `[B, N]` (or one, `[N]`), of which as many segments are taken as fit, in the middle;
                or segments `[B, S, 10240]`.
            start_sec: where the crop of a file starts; None takes the middle.
            audio_shift_samples: of a file, in place of what `load` was given.

        Raises:
            UserError: the array is not as described, or the model does not hear.
            MediaError: the file cannot be decoded.
        """
        self._require("encode_audio", "audio")
        if isinstance(audio, (str, os.PathLike)):
            audio = self._crop(audio, 0.0, start_sec, audio_shift_samples)[0].audio
        audio = np.asarray(audio)
        floats = np.issubdtype(audio.dtype, np.floating)
        if not (floats or audio.dtype == np.int16) or audio.ndim not in (1, 2, 3):
            raise UserError(
                f"encode_audio got {audio.dtype} {list(audio.shape)}. Give a path, or samples as int16 or float in "
                "[-1, 1]: clips [B, N] or segments [B, S, samples]."
            )
        if floats and np.abs(audio).max(initial=0) > 8:  # resampling may leave [-1, 1] a little
            raise UserError("encode_audio got float samples far beyond [-1, 1]. Divide 16-bit samples by 32768.")
        audio = audio.astype(np.float32) if floats else audio
        samples = self._config.model.visual.frames * clock.SAMPLES_PER_FRAME
        if audio.ndim < 3:
            audio = np.atleast_2d(audio)
            audio = self._cut(
                inference.cut_samples, audio, audio.shape[1] // clock.SAMPLES_PER_FRAME, "frames of sound"
            )
        elif audio.shape[2] != samples:
            raise UserError(
                f"encode_audio got segments of {audio.shape[2]} samples; the model takes {samples}. Cut them so, or "
                "give whole clips [B, N]."
            )
        return self._run("encode_samples", audio)

    def compare(self, visual_features: np.ndarray, audio_features: np.ndarray) -> np.ndarray:
        """The logits of what `encode_video` and `encode_audio` gave, float32 `[B, classes]`.

        Args:
            visual_features: `[B, S, 8, D]`; S is the model's number of segments, 14 as published.
            audio_features: `[B, S, 6, D]`.

        Raises:
            UserError: the shapes are not the head's, or the model has no head.
        """
        self._require("compare", "head")
        visual, audio = (np.asarray(part, np.float32) for part in (visual_features, audio_features))
        if visual.ndim != 4 or audio.ndim != 4 or len(visual) != len(audio):
            raise UserError(
                f"compare got features of shapes {list(visual.shape)} and {list(audio.shape)}. Give "
                "[B, S, tokens, D] of as many clips each, as encode_video and encode_audio give them."
            )
        return self._run("compare", visual, audio)

    def _crop(
        self, video, offset_sec, start_sec, shift: int | None, may_be_silent: bool = False
    ) -> tuple[clip.Crop, int]:
        shift = self.audio_shift_samples if shift is None else shift
        crop = clip.read_crop(
            video,
            short_side=self.short_side,
            offset_sec=offset_sec,
            start_sec=start_sec,
            crop_sec=self.clip_frames / clock.FRAME_RATE,
            audio_shift_samples=shift,
            may_be_silent=may_be_silent,
        )
        return crop, shift

    def _centre(self, frames: np.ndarray, name: str | os.PathLike) -> np.ndarray:
        return clip.centre(frames, self.image_size, os.fspath(name))

    def _cut(self, cut: Callable, clips: np.ndarray, frames: int, what: str) -> np.ndarray:
        if frames < self._config.model.visual.frames:
            raise UserError(
                f"The clips have {frames} {what} and a segment takes {self._config.model.visual.frames}, at "
                f"{clock.FRAME_RATE} frames a second. Give longer ones."
            )
        return np.asarray(cut(self._config, clips))

    def _require(self, call: str, *parts: str) -> None:
        """Tells clearly what a model cannot do."""
        lacks = {
            "segment_avclip": {"head": "a segment AVCLIP checkpoint has features and no head that compares them"},
            "motionformer": dict.fromkeys(("head", "audio"), "a Motionformer checkpoint only sees"),
            "ast": dict.fromkeys(("head", "visual"), "an AST checkpoint only hears"),
        }.get(self.stage, {})
        why = next((lacks[part] for part in parts if part in lacks), None)
        if why:
            raise UserError(f"{call} is not possible: {why}. To get offsets, load a sync model.")
        if self._fresh:
            raise UserError(
                f"{call} is not possible: no training has seen {self._fresh[0].split('.')[0]}.* of this model, which "
                "Synchformer adds. Train it as stage 1 first."
            )

    def _logits(self, frames: np.ndarray, audio: np.ndarray) -> np.ndarray:
        """Of clips `[B, T, H, W, 3]` and `[B, N]`."""
        return self._run("classify", frames, audio)

    def _run(self, name: str, *inputs: np.ndarray) -> np.ndarray:
        """One of the functions of `inference`, compiled at its first call for each shape."""
        if name not in self._programs:
            graph, state = nnx.split(self._model)
            call = jax.jit(
                lambda state, *inputs: getattr(inference, name)(self._config, nnx.merge(graph, state), *inputs)
            )
            self._programs[name] = functools.partial(call, state)
        with inference.exact_products(self._config):
            return np.asarray(self._programs[name](*inputs))


class ExportedPredictor(Predictor):
    """A `Predictor` of a compiled program, which holds nothing but the way from clips to logits."""

    def __init__(self, exported: Exported, *, audio_shift_samples: int = 0):
        self.stage, self.image_size, self.clip_frames = exported.stage, exported.image_size, exported.clip_frames
        self.short_side = clip.short_side(self.image_size)
        self.grid = clock.offset_grid(exported.classes) if self.stage == "sync" else None
        self.audio_shift_samples, self._exported, self._fresh = audio_shift_samples, exported, ()

    def _require(self, call: str, *parts: str) -> None:
        if call != "predict":
            raise UserError(
                f"{call} is not possible: a {SUFFIX} file holds one program, from whole clips to logits and features "
                "(see synchformer_jax/convert/export.py). Load the checkpoint that it was made from."
            )
        super()._require(call, *parts)

    def _logits(self, frames: np.ndarray, audio: np.ndarray) -> np.ndarray:
        return self._exported(frames, audio)["logits"]


def load(path: str | os.PathLike, precision: str | None = None, *, audio_shift_samples: int = 0) -> Predictor:
    """Opens a trained model, wherever it is.

    Args:
        path: the work folder of a run; a published checkpoint or `state_dict`; or what `synchformer convert` wrote.
        precision: "float32" (also None) or "bfloat16", in which products are computed.
        audio_shift_samples: by how many samples of 1/16,000 s the sound is made late (below zero: early) before the
            model gets it. For checkpoints that were trained on sound that a decoder left out of place: -1024 makes it
            as early as FFmpeg 4.2 left it (see `synchformer_jax.media`). Silence stands where the file then has no
            sound.

    Raises:
        UserError: there is no checkpoint, or none that can be read.
    """
    path = Path(path)
    if precision not in (None, *PRECISIONS):
        raise UserError(f"precision is {precision!r}. Give one of {', '.join(PRECISIONS)}.")
    if not path.exists():
        raise UserError(f"There is nothing at {path}. Give the --workdir of a run, or a checkpoint.")
    if path.suffix == SUFFIX:
        if precision:
            raise UserError(f"{path} was compiled for one precision. Leave the precision out, or convert it again.")
        return ExportedPredictor(Exported(path), audio_shift_samples=audio_shift_samples)
    weights = open_weights(path)
    weights.config.model.compute.dtype = precision or PRECISIONS[0]
    return Predictor(weights.model(), weights.config, audio_shift_samples=audio_shift_samples, fresh=weights.fresh)
