"""Stretches of picture and sound against PyAV frame by frame and against numbers written into the pixels."""

import io

import av
import numpy as np
import pytest

from synchformer_jax.data.clips import ClipError, decode_audio, decode_frames
from tests.data.make_records import audio, frame_number, picture, video


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number // 5).integers(0, 255, (6, 8, 3), np.uint8).repeat(9, 0).repeat(9, 1)[:, :70]


@pytest.fixture(scope="module")
def numbered():
    return video()


def one_by_one(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("first, count", [(0, 250), (1, 3), (11, 2), (12, 13), (107, 120), (249, 1)])
def test_frames_are_those_asked_for(numbered, first, count):
    frames = decode_frames(numbered, first, count)
    assert frames.shape == (count, 32, 44, 3) and frames.dtype == np.uint8
    assert [frame_number(frame) for frame in frames] == list(range(first, first + count))


@pytest.mark.parametrize("square", [None, (0, 0, 32), (4, 6, 48), (22, 38, 32)])
def test_pixels_are_pyavs(square):
    """54x70 colour pictures: stacking planes changes no pixel, also over several stacks (24 of 54x70 fill none)."""
    data = video(130, make=noise)
    want = one_by_one(data)[5:125]
    if square:
        top, left, size = square
        want = want[:, top : top + size, left : left + size]
    np.testing.assert_array_equal(decode_frames(data, 5, 120, square), want)


def test_stacks_are_emptied_in_order(monkeypatch, numbered):
    monkeypatch.setattr("synchformer_jax.data.clips._STACK_PIXELS", 7 * 32 * 32)
    frames = decode_frames(numbered, 20, 101, (0, 4, 32))
    assert [frame_number(frame) for frame in frames] == list(range(20, 121))


@pytest.mark.parametrize(
    "pixel_format, square", [("yuv444p", (3, 5, 21)), ("yuv420p", (3, 5, 21)), ("yuv420p", (0, 0, 31))]
)
def test_other_formats_and_odd_crops(pixel_format, square):
    data = video(20, pixel_format=pixel_format, make=noise)
    top, left, size = square
    want = one_by_one(data)[4:14, top : top + size, left : left + size]
    np.testing.assert_array_equal(decode_frames(data, 4, 10, square), want)


def test_picture_that_is_not_there(numbered):
    for first, count in ((240, 11), (250, 1), (400, 1), (-1, 2)):
        with pytest.raises(ClipError):
            decode_frames(numbered, first, count)
    with pytest.raises(ClipError, match="a square of 40"):
        decode_frames(numbered, 0, 1, (0, 0, 40))
    with pytest.raises(ClipError, match="before frame 2"):
        decode_frames(video(1), 0, 2)


@pytest.mark.parametrize("damage", [b"", b"not a film", "cut", "holed"])
def test_broken_picture(numbered, damage):
    data = {"cut": numbered[: len(numbered) // 2], "holed": numbered[:400] + bytes(3000) + numbered[3400:]}.get(
        damage, damage
    )
    with pytest.raises(ClipError):
        decode_frames(data, 0, 250)


def test_lying_frame_rate():
    """A film at 12.5 fps has no frame where 25 fps promise one."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 44, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts = 2 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ClipError, match="is missing"):
        decode_frames(out.getvalue(), 0, 10)


def test_samples_are_those_asked_for():
    sound = audio()
    for first, count in ((0, 160_000), (12_345, 76_800), (159_999, 1)):
        np.testing.assert_array_equal(
            decode_audio(sound, first, count).view(np.uint16), np.arange(first, first + count) % 65_536
        )


def test_sound_that_is_not_there():
    for first, count in ((-1, 10), (159_000, 1001)):
        with pytest.raises(ClipError, match="no samples"):
            decode_audio(audio(), first, count)
    with pytest.raises(ClipError, match="44100 Hz"):
        decode_audio(audio(1000, 44_100), 0, 10)
    for data in (b"", b"no sound", audio()[:20_000]):
        with pytest.raises(ClipError):
            decode_audio(data, 0, 160_000)
