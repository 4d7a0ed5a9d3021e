"""Planes to RGB against FFmpeg, for every level of luma and colour difference."""

import av
import jax
import numpy as np
import pytest

from synchformer_jax.ops.colour import planes_to_rgb


def ffmpeg(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    frame = av.VideoFrame.from_ndarray(planes.reshape(height * 3 // 2, width), format="yuv420p")
    return frame.to_ndarray(format="rgb24")


@pytest.mark.parametrize("kind", ["noise", "every difference", "every luma"])
def test_equals_ffmpeg(kind):
    """Bit for bit where FFmpeg uses its vector instructions; its plain C code rounds by one or two levels otherwise."""
    height, width = 256, 1024
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, height * width * 3 // 2, np.uint8)
    if kind == "every difference":
        planes[: height * width] = 128
    if kind == "every luma":
        planes[: height * width] = np.arange(256).repeat(width)
        planes[height * width :] = 128
    ours = np.asarray(jax.jit(lambda x: planes_to_rgb(x, height, width))(planes)).astype(int)
    assert ours.shape == (height, width, 3)
    assert abs(ours - ffmpeg(planes, height, width)).max() <= (0 if vectors() else 2)


def vectors() -> bool:
    """Whether FFmpeg's vector code ran: it floors each product, so that this pixel comes out one level darker."""
    return ffmpeg(np.array([100] * 64 + [90] * 16 + [90] * 16, np.uint8), 8, 8)[0, 0].tolist() == [36, 142, 20]


def test_closed_form():
    """Black, white, mid grey and BT.601's red, within two levels."""
    levels = [
        (16, 128, 128, (0, 0, 0)),
        (235, 128, 128, (255,) * 3),
        (126, 128, 128, (128,) * 3),
        (81, 90, 240, (255, 0, 0)),
    ]
    for luma, blue, red, want in levels:
        planes = np.array([luma] * 4 + [blue, red], np.uint8)
        assert abs(np.asarray(planes_to_rgb(planes, 2, 2)).astype(int) - want).max() <= 2


def test_leading_axes_and_sizes():
    planes = np.random.default_rng(0).integers(0, 256, (2, 3, 24 * 20 * 3 // 2), np.uint8)
    got = np.asarray(planes_to_rgb(planes, 24, 20))
    assert got.shape == (2, 3, 24, 20, 3) and got.dtype == np.uint8
    np.testing.assert_array_equal(got[1, 2], planes_to_rgb(planes[1, 2], 24, 20))
    for height, width in ((24, 21), (24, 22)):
        with pytest.raises(ValueError, match="no YUV"):
            planes_to_rgb(planes, height, width)
