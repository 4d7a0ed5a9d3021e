"""From a file to logits: the whole test-time path against the published one, on a real clip."""

import numpy as np
import pytest

from synchformer_jax.eval import clip
from synchformer_jax.models import Synchformer, inference
from synchformer_jax.ops.log_mel import log_mel
from synchformer_jax.predictor import Predictor
from synchformer_jax.train.config import base_config
from tests.parity import Weights, figures, model_of

VIDEO = "vggsound_25fps_ZYc410CE4Rg_0_10000.mp4"


@pytest.fixture(scope="module")
def video(shared_media):
    path = shared_media / VIDEO
    if not path.is_file():
        pytest.skip(f"{VIDEO} is not on this machine")
    return path


def test_pixels_and_spectrogram(video):
    """What goes into the model at the last of the cases: pixels, a thousandth of a level on average."""
    theirs, config = figures("real_clip"), base_config("sync")
    offset, start = theirs["cases"][-1]
    crop = clip.read_crop(video, short_side=256, offset_sec=offset, start_sec=start)
    assert crop.start_sec == start
    frames = inference.cut_frames(config, clip.centre(crop.frames, 224, VIDEO)[None], 14)
    means = np.asarray(frames, np.float64).mean(axis=(0, 2, 3, 4, 5)) / 127.5 - 1
    np.testing.assert_allclose(means, theirs["last_video_mean"], atol=1e-3 / 127.5)
    spectrograms = log_mel(np.asarray(inference.cut_samples(config, crop.audio[None], 14)) / np.float32(32768))[0]
    np.testing.assert_allclose(spectrograms.mean(axis=(1, 2)), theirs["last_spec_mean"], atol=5e-4)
    np.testing.assert_allclose(spectrograms[:1], theirs["last_spec"], atol=1e-2)  # samples of 16 bits, theirs floats


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_logits_and_features(video):
    theirs, config = figures("real_clip"), base_config("sync")
    config.model.compute.dtype = "float32"
    predictor = Predictor(model_of(Synchformer, Weights("synchformer")), config)
    for (offset, start), logits in zip(theirs["cases"], theirs["logits"], strict=True):
        prediction = predictor.predict(video, offset, start)
        np.testing.assert_allclose(prediction.logits, logits, atol=5e-3)
        assert prediction.start_sec == start
    visual = predictor.encode_video(video, start)
    np.testing.assert_allclose(visual[0], theirs["vfeat_last"].astype(np.float32), atol=3e-3)  # stored in 16 bits
