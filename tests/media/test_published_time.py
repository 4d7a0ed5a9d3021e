"""By which clock the published figures were made; the findings that `synchformer_jax.media` reports."""

from pathlib import Path

import av
import numpy as np
import pytest

from synchformer_jax import clock
from synchformer_jax.media import decode
from synchformer_jax.ops.log_mel import log_mel

FIGURES = Path(__file__).resolve().parents[1] / "data" / "real_clip.npz"
AAC_DELAY = 1024


def samples_from(path, *, seek: bool) -> tuple[int, np.ndarray]:
    """(time stamp of the first sample, samples) as torchvision's `read_video` gets them, or without its seek."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        if seek:
            container.seek(0, any_frame=False, backward=True, stream=stream)
        frames = list(container.decode(stream))
    return frames[0].pts, np.concatenate([frame.to_ndarray()[0] for frame in frames])


def test_a_seek_to_the_start_loses_no_sound_here(tmp_path, flash_and_click):
    """FFmpeg 4.2 lost 1,024 samples."""
    path = flash_and_click.write(tmp_path / "x.mp4")
    (start, whole), (sought_start, sought) = (samples_from(path, seek=seek) for seek in (False, True))
    assert start == sought_start == 0 and len(whole) == len(sought)
    np.testing.assert_array_equal(whole[AAC_DELAY:], sought[AAC_DELAY:])


@pytest.mark.parametrize(("shift", "fits"), [(0, True), (-AAC_DELAY, False), (AAC_DELAY, False)])
def test_parity_figures_were_made_on_honest_time(shared_media, shift, fits):
    figures = np.load(FIGURES)
    offset, start = figures["cases"][-1]
    audio = decode.decode(shared_media / "vggsound_25fps_ZYc410CE4Rg_0_10000.mp4").audio
    # The row of 14 half-overlapping segments, 120 frames, lies in the middle of the crop, 125 frames.
    row = clock.to_samples(start + offset) + (125 - 120) // 2 * clock.SAMPLES_PER_FRAME + shift
    first = audio[row : row + clock.SEGMENT_SAMPLES].astype(np.float32) / 32768
    distance = np.abs(np.asarray(log_mel(first[None]))[0] - figures["last_spec"][0]).mean()
    assert distance < 1e-3 if fits else distance > 0.1
