"""One video in, one offset out."""

import dataclasses
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synchformer_jax.errors import UserError
from synchformer_jax.media.decode import decode
from synchformer_jax.ops.log_mel import log_mel
from synchformer_jax.predictor import Predictor
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
    assert set(again) == {"video", "offset_sec", "probability", "start_sec", "audio_shift_sec", "grid", "logits"}
    assert again["grid"] == [round(-2 + 0.2 * i, 6) for i in range(21)] and len(again["logits"]) == 21
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.offset_sec = 0


def test_a_folder_without_a_run_is_named(tmp_path):
    import synchformer_jax

    with pytest.raises(UserError, match="gone"):
        synchformer_jax.load(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no checkpoint"):
        synchformer_jax.load(tmp_path)


def test_importing_the_package_does_not_import_jax():
    code = "import sys, synchformer_jax, synchformer_jax.cli; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_attributes_are_unknown():
    import synchformer_jax

    assert not hasattr(synchformer_jax, "lode")
    assert set(synchformer_jax.__all__) == {"__version__", "load"}
