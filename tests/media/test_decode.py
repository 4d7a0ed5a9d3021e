"""Pixels, samples and errors of decoding; time is in test_decode_time.py."""

from fractions import Fraction

import av
import numpy as np
import pytest

from synchformer_jax.media import decode as media
from synchformer_jax.media.sound import Sound, mix_down


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    before = av.logging.get_level()
    av.logging.set_level(av.logging.PANIC)
    yield
    av.logging.set_level(before)


def test_lossless_sound_at_the_wanted_rate_is_untouched(tmp_path, flash_and_click):
    path = flash_and_click.write(tmp_path / "x.mkv", audio="flac")
    wave = np.rint(flash_and_click.click(flash_and_click.events, 2.0, 16000) * 32767).astype(np.int16)
    np.testing.assert_array_equal(media.decode(path).audio, wave)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_level_and_phase(rate):
    sound, at = Sound(), 0
    t = np.arange(2 * rate) / rate
    wave = (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    for part in np.array_split(wave, 50):
        frame = av.AudioFrame.from_ndarray(part[None], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
        sound.add(frame)
        at += len(part)
    heard, start, end = sound.cut(0.5, 16000, 16000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * (0.5 + np.arange(16000) / 16000))
    assert (start, end) == (0.0, 1.0)
    np.testing.assert_allclose(heard / 32768, expected, atol=2e-4)


def test_mixing_down():
    left, right = np.float32([[1, 0], [0, 1]])
    np.testing.assert_allclose(mix_down(np.stack([left, right]), ["FL", "FR"]), [0.5, 0.5])
    names = ["FL", "FR", "FC", "LFE", "SL", "SR"]
    share = mix_down(np.eye(6, dtype=np.float32), names)
    np.testing.assert_allclose(share, np.array([1, 1, 1, 0, 0.7071, 0.7071]) / 4.4142, rtol=1e-6)


def test_of_two_tracks_the_main_one_is_taken_alone(tmp_path, flash_and_click):
    one = media.decode(flash_and_click.write(tmp_path / "1.mkv", audio="flac"))
    two = media.decode(flash_and_click.write(tmp_path / "2.mkv", audio="flac", tracks=2))
    np.testing.assert_array_equal(one.audio, two.audio)


def _corner(picture, _):
    picture[:] = 16
    picture[: len(picture) // 2, : picture.shape[1] // 2] = (235, 16, 16)  # red, at the top left


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_shows_the_picture_upright(tmp_path, flash_and_click, turns):
    flat = flash_and_click.write(tmp_path / "0.mp4", paint=_corner, sec=0.2)
    turned = flash_and_click.write(tmp_path / "1.mp4", paint=_corner, sec=0.2, rotation=90 * turns)
    expected = np.rot90(media.decode(flat).frames, turns, axes=(1, 2))
    np.testing.assert_array_equal(media.decode(turned).frames, expected)
    info = media.probe(turned)
    assert (info.height, info.width) == expected.shape[1:3]


def test_scaling_keeps_shape_and_colour(tmp_path, flash_and_click):
    path = flash_and_click.write(tmp_path / "x.mp4", size=(160, 90), paint=_corner, sec=0.2, rotation=90)
    frames = media.decode(path, short_side=64).frames
    assert frames.shape[1:] == (114, 64, 3)  # 160 * 64 / 90 is 113.8
    # Turned counter-clockwise the red corner is at the bottom left.
    np.testing.assert_allclose(frames[0, 80:105, 5:25].mean((0, 1)), [235, 16, 16], atol=8)
    np.testing.assert_allclose(frames[0, 5:40].mean((0, 1)), [16, 16, 16], atol=4)


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((480, 360), 256, (342, 256)),
        ((1280, 720), 256, (456, 256)),
        ((64, 64), 74, (74, 74)),
        ((50, 900), 64, (64, 1152)),
    ],
)
def test_scaled_size(size, short, expected):
    assert media.scaled_size(*size, short) == expected


def test_scaled_size_none_keeps_odd_sides():
    assert media.scaled_size(63, 49, None) == (63, 49)


def test_bytes_serve_as_a_file_does(tmp_path, flash_and_click):
    path = flash_and_click.write(tmp_path / "x.mp4")
    of_file, of_bytes = media.decode(path), media.decode(path.read_bytes())
    np.testing.assert_array_equal(of_file.frames, of_bytes.frames)
    np.testing.assert_array_equal(of_file.audio, of_bytes.audio)


def test_probe(tmp_path, flash_and_click):
    path = flash_and_click.write(tmp_path / "x.mkv", frame_rate=30, rate=48000, layout="stereo", size=(66, 48))
    info = media.probe(path)
    assert (info.width, info.height, info.sample_rate, info.channels) == (66, 48, 48000, 2)
    assert (info.has_video, info.has_audio, info.video_codec, info.audio_codec) == (True, True, "h264", "aac")
    assert info.frame_rate == pytest.approx(30) and info.duration_sec == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("missing", ["audio", "video"])
def test_a_missing_stream_is_named(tmp_path, flash_and_click, missing):
    path = flash_and_click.write(tmp_path / "x.mkv", **{missing: None})
    info = media.probe(path)
    assert (info.has_video, info.has_audio) == (missing != "video", missing != "audio")
    with pytest.raises(media.MediaError, match=r"x.mkv: no (picture|sound)") as caught:
        media.decode(path)
    assert caught.value.reason == {"audio": "no sound", "video": "no picture"}[missing]


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(media.MediaError, match=r"none.mp4: no such file"):
        media.decode(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(media.MediaError, match=r"empty.mp4: the file is empty"):
        media.decode(tmp_path / "empty.mp4")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    with pytest.raises(media.MediaError, match=r"noise.mp4: .*cannot be read"):
        media.decode(tmp_path / "noise.mp4")
    with pytest.raises(media.MediaError, match=r"6 bytes of video"):
        media.probe(b"nought")


def test_a_start_after_the_end_is_refused(tmp_path, flash_and_click):
    path = flash_and_click.write(tmp_path / "x.mp4")
    for start in (3.0, 20.0):
        with pytest.raises(media.MediaError, match=r"the picture ends before"):
            media.decode(path, start_sec=start)


def test_odd_characters_in_a_name(tmp_path, flash_and_click):
    plain = flash_and_click.write(tmp_path / "plain.mp4")
    odd = plain.rename(tmp_path / "concat:a|b %d 'ü' [#1].mp4")
    assert len(media.decode(odd).frames) == 50


def test_a_truncated_file_gives_what_it_has(tmp_path, flash_and_click):
    path = flash_and_click.write(tmp_path / "x.ts", video_options={"g": "12"})
    data = path.read_bytes()
    path.write_bytes(data[: int(0.6 * len(data))])
    clip = media.decode(path)
    assert 10 < len(clip.frames) < 50 and len(clip.audio) == 640 * len(clip.frames)


def test_flipped_bytes_neither_crash_nor_shift(tmp_path, flash_and_click):
    path = flash_and_click.write(tmp_path / "x.mkv", audio="pcm_s16le", video_options={"g": "5"})
    data = bytearray(path.read_bytes())
    for at in np.random.default_rng(1).integers(2000, len(data) - 2000, 20):
        data[at] ^= 0xFF
    path.write_bytes(data)
    clip = media.decode(path)
    np.testing.assert_allclose(flash_and_click.clicks(clip.audio)[-1], flash_and_click.events[-1], atol=1e-3)


def test_real_clips(shared_media):
    before = media.decode(shared_media / "vggsound_original_ZYc410CE4Rg_0_10000.mp4", short_side=256)
    after = media.decode(shared_media / "vggsound_25fps_ZYc410CE4Rg_0_10000.mp4", short_side=256)
    assert before.frames.shape == (250, 256, 342, 3) and after.frames.shape == (250, 256, 340, 3)
    # Both are the same recording: once prepared by others, once by us. Its sound must lie at the same time.
    spectra = [np.fft.rfft(clip.audio.astype(float), 2**19) for clip in (before, after)]
    lag = np.fft.irfft(spectra[0] * np.conj(spectra[1])).argmax()
    assert min(lag, 2**19 - lag) <= 16
    # And so must its pictures: of the frames at most half a frame away, the same one is most alike.
    small = [clip.frames[::10, 64:192:4, 64:192:4].astype(float) for clip in (before, after)]
    distance = np.abs(small[0][:, None] - small[1][None]).mean((2, 3, 4))
    assert (distance.argmin(1) == np.arange(25)).mean() > 0.8
