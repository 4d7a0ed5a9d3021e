"""One video in, one offset out."""

import dataclasses
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import synchformer_jax
from synchformer_jax.convert.export import export_model
from synchformer_jax.errors import UserError
from synchformer_jax.media.decode import decode
from synchformer_jax.ops.log_mel import log_mel
from synchformer_jax.predictor import Predictor
from synchformer_jax.train.state import hollow_model, take_apart
from synchformer_jax.weights import Weights, save_weights
from tests.eval import flashes


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return flashes.write_video(tmp_path_factory.mktemp("video") / "flash.mp4", seed=11)


def test_the_audio_that_was_shifted_is_found(video):
    """The correlator knows nothing but the sign and the size of offsets; see tests/eval/flashes.py."""
    predictor = Predictor(flashes.Correlator(), flashes.config())
    for offset in (-2.0, -0.6, 0.0, 0.2, 1.4, 2.0):
        prediction = predictor.predict(video, offset_sec=offset)
        assert prediction.offset_sec == pytest.approx(offset)
        assert prediction.audio_shift_sec == offset
    early = predictor.predict(video, offset_sec=1.4, start_sec=0.6)
    assert early.offset_sec == pytest.approx(1.4) and early.start_sec == 0.6
    assert early.sentence.startswith("the audio is 1.40 s early (probability ")


def test_a_real_model_sees_what_plain_slicing_gives(video):
    """The whole path against decoding the whole file, cutting by hand."""
    model = flashes.tiny_model()
    prediction = Predictor(model, flashes.config()).predict(video, offset_sec=0.35, start_sec=1.0)
    clip = decode(video, short_side=36)
    height, width = clip.frames.shape[1:3]
    top, left = (height - 32) // 2, (width - 32) // 2
    first, sample = 25 + 2, round(1.35 * 16_000) + 1280
    segments = np.stack([clip.frames[first + 8 * i :][:16, top : top + 32, left : left + 32] for i in range(14)])
    sounds = np.stack([clip.audio[sample + 5120 * i :][:10_240] for i in range(14)])
    frames = jnp.asarray(segments[None] / 255 * 2 - 1, jnp.float32)
    expected = nnx.jit(lambda model, *inputs: model(*inputs))(model, frames, log_mel(jnp.asarray(sounds[None] / 32768)))
    np.testing.assert_allclose(prediction.logits, expected[0], rtol=1e-3, atol=1e-4)
    powers = np.exp(prediction.logits.astype(float))
    assert prediction.probability == pytest.approx((powers / powers.sum()).max(), rel=1e-6)
    assert prediction.logits.argmax() == np.argmin(np.abs(prediction.grid - prediction.offset_sec))
    again = json.loads(json.dumps(prediction.to_json()))
    shifts = {"audio_shift_sec", "audio_shift_samples"}
    assert set(again) == {"video", "offset_sec", "probability", "start_sec", "grid", "logits"} | shifts
    assert again["grid"] == [round(-2 + 0.2 * i, 6) for i in range(21)] and len(again["logits"]) == 21
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.offset_sec = 0


def test_sound_can_be_moved_for_a_checkpoint_that_needs_it(video):
    """Above zero makes it late, as decoders do that keep the priming of AAC."""
    predictor = Predictor(flashes.Correlator(), flashes.config(), audio_shift_samples=9600)
    late = predictor.predict(video)
    assert late.offset_sec == pytest.approx(-0.6)
    assert late.to_json()["audio_shift_samples"] == 9600 and late.audio_shift_sec == 0
    early = predictor.predict(video, 1.0, audio_shift_samples=-6400)
    assert early.offset_sec == pytest.approx(1.4) and early.audio_shift_samples == -6400


def stage_of(stage, **model):
    """A tiny model of another stage."""
    config = flashes.config()
    config.stage = stage
    config.model.segments = model.pop("segments", 14)
    config.model.head.update(model)
    random, blueprint = np.random.default_rng(5), hollow_model(config)
    weights = {name: 0.2 * random.normal(size=shape) for name, shape in blueprint.shapes().items()}
    return blueprint.build({name: jnp.asarray(weight, jnp.float32) for name, weight in weights.items()}), config


def test_features_compared_give_the_prediction(video):
    predictor = Predictor(flashes.tiny_model(), flashes.config())
    expected = predictor.predict(video, start_sec=2.0).logits
    visual, audio = predictor.encode_video(video, 2.0), predictor.encode_audio(video, 2.0)
    assert visual.shape == (1, 14, 8, 24) and audio.shape == (1, 14, 6, 24)
    assert visual.dtype == audio.dtype == np.float32
    np.testing.assert_allclose(predictor.compare(visual, audio)[0], expected, rtol=1e-4, atol=1e-5)
    crop = decode(video, short_side=36, start_sec=2.0, duration_sec=5.0)
    assert crop.frames.shape[:1] + crop.audio.shape == (125, 80_000)
    frames, samples = crop.frames, crop.audio
    # Segments of one clip start at frame 2, in the middle, and lie half over each other.
    segments = np.stack([frames[2 + 8 * i :][:16] for i in range(14)])[None]
    sounds = np.stack([samples[640 * (2 + 8 * i) :][:10_240] for i in range(14)])[None]
    for given in (frames, frames[None], segments):
        np.testing.assert_allclose(predictor.encode_video(given), visual, rtol=1e-4, atol=1e-5)
    for given in (samples, samples[None], sounds, samples / 32768):
        np.testing.assert_allclose(predictor.encode_audio(given), audio, rtol=1e-4, atol=1e-5)
    assert predictor.encode_video(np.concatenate([frames, frames[:75]])).shape == (1, 24, 8, 24)


@pytest.mark.parametrize(
    ("call", "given", "told"),
    [
        ("encode_video", np.zeros((125, 36, 44, 3), np.float32), "float32"),
        ("encode_video", np.zeros((125, 36, 44), np.uint8), r"\[125, 36, 44\]"),
        ("encode_video", np.zeros((125, 30, 44, 3), np.uint8), "44x30"),
        ("encode_video", np.zeros((15, 36, 44, 3), np.uint8), "15 frames and a segment takes 16"),
        ("encode_video", np.zeros((1, 2, 8, 36, 44, 3), np.uint8), "segments of 8 frames; the model takes 16"),
        ("encode_audio", np.zeros(80_000, np.int32), "int32"),
        ("encode_audio", np.full(80_000, 300.0), "far beyond"),
        ("encode_audio", np.zeros(10_000, np.int16), "15 frames of sound"),
        ("encode_audio", np.zeros((1, 2, 10_000), np.int16), "segments of 10000 samples; the model takes 10240"),
    ],
)
def test_arrays_that_do_not_fit_are_told_how_to(call, given, told):
    predictor = Predictor(flashes.tiny_model(), flashes.config())
    with pytest.raises(UserError, match=told):
        getattr(predictor, call)(given)


def test_features_that_do_not_fit_are_told_how_to():
    predictor = Predictor(flashes.tiny_model(), flashes.config())
    visual, audio = np.zeros((1, 14, 8, 24)), np.zeros((1, 14, 6, 24))
    with pytest.raises(UserError, match="of as many clips each"):
        predictor.compare(visual, np.concatenate([audio, audio]))
    with pytest.raises(UserError, match="got 13 visual and 13 audio segments"):
        predictor.compare(visual[:, 1:], audio[:, 1:])


def test_segment_avclip_gives_features_alone(video):
    predictor = Predictor(*stage_of("segment_avclip"))
    assert predictor.encode_video(video).shape == (1, 14, 8, 24)
    assert predictor.encode_audio(video).shape == (1, 14, 6, 24)
    for call in (lambda: predictor.predict(video), lambda: predictor.compare(0, 0)):
        with pytest.raises(UserError, match=r"features and no head .*load a sync model"):
            call()


def test_synchronizability_is_predicted(video):
    predictor = Predictor(*stage_of("synchronizability", segments=13, classes=2))
    assert predictor.clip_frames == 112 and predictor.grid is None
    answer = predictor.predict(video)
    powers = np.exp(answer.logits.astype(float))
    assert answer.probability == pytest.approx(powers[1] / powers.sum(), rel=1e-6)
    assert answer.synchronizable == (answer.logits[1] >= answer.logits[0])
    assert ("can be" in answer.sentence) == answer.synchronizable
    told = json.loads(json.dumps(answer.to_json()))
    assert told["synchronizable"] is answer.synchronizable and len(told["logits"]) == 2
    logits = predictor.compare(predictor.encode_video(video), predictor.encode_audio(video))
    np.testing.assert_allclose(logits[0], answer.logits, rtol=1e-4, atol=1e-5)


def test_all_kinds_of_checkpoints_open(tmp_path, video):
    config = flashes.config()
    _, arrays = take_apart(flashes.tiny_model())
    weights = Weights({name: np.asarray(array) for name, array in arrays.items()}, config, "a test")
    for name in ("tiny.pth", "tiny.safetensors", "run"):
        save_weights(weights, tmp_path / name)
        predictor = synchformer_jax.load(tmp_path / name)
        assert predictor.stage == "sync" and predictor.clip_frames == 125 and predictor.image_size == 32
        there = take_apart(predictor._model)[1]
        assert there.keys() == arrays.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(there[key], array, err_msg=key)
    with pytest.raises(UserError, match="float32, bfloat16"):
        synchformer_jax.load(tmp_path / "run", "float16")


def test_a_compiled_program_predicts(tmp_path, video):
    path = tmp_path / "tiny.jaxexport"
    export_model(flashes.tiny_model(), flashes.config(), path)
    predictor = synchformer_jax.load(path, audio_shift_samples=160)
    exported = predictor.predict(video, 0.4, 2.0)
    own = Predictor(flashes.tiny_model(), flashes.config(), audio_shift_samples=160).predict(video, 0.4, 2.0)
    np.testing.assert_allclose(exported.logits, own.logits, rtol=1e-4, atol=1e-5)
    assert exported.to_json() | {"logits": 0, "probability": 0} == own.to_json() | {"logits": 0, "probability": 0}
    with pytest.raises(UserError, match="compiled for one precision"):
        synchformer_jax.load(path, "float32")
    with pytest.raises(UserError, match="encode_audio is not possible"):
        predictor.encode_audio(video)


def test_what_no_training_has_seen_is_not_used(video):
    model, config = stage_of("motionformer")
    predictor = Predictor(model, config)
    assert predictor.encode_video(video).shape == (1, 14, 8, 24)
    with pytest.raises(UserError, match="a Motionformer checkpoint only sees"):
        predictor.encode_audio(video)
    with pytest.raises(UserError, match=r"no training has seen pool\.\*"):
        Predictor(model, config, fresh=("pool.cls",)).encode_video(video)


def test_where_nothing_is_is_named(tmp_path):
    with pytest.raises(UserError, match="gone"):
        synchformer_jax.load(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no checkpoint"):
        synchformer_jax.load(tmp_path)


def test_importing_the_package_does_not_import_jax():
    code = "import sys, synchformer_jax, synchformer_jax.cli; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_attributes_are_unknown():
    assert not hasattr(synchformer_jax, "lode")
    assert set(synchformer_jax.__all__) == {"__version__", "load"}
