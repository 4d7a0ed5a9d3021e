"""Flash and click: whatever the codec, container and oddity, picture and sound keep their time."""

import av
import numpy as np
import pytest

from synchformer_jax.media import decode as media

QUIET_265 = {"x265-params": "log-level=none"}
FAST_VP9 = {"deadline": "realtime", "cpu-used": "8"}
# Container, then what differs from H.264 at 25 fps and AAC at 16 kHz.
FORMATS = [
    ("mp4", {}),
    ("mov", {}),
    ("mkv", {}),
    ("ts", {}),
    ("mp4", {"video": "libx265", "video_options": QUIET_265}),
    ("mkv", {"video": "libx265", "video_options": QUIET_265, "audio": "flac"}),
    ("ts", {"video": "libx265", "video_options": QUIET_265, "audio": "libmp3lame"}),
    ("mp4", {"video": "libsvtav1", "video_options": {"preset": "12"}, "audio": "libopus", "rate": 48000}),
    ("webm", {"video": "libvpx-vp9", "video_options": FAST_VP9, "audio": "libopus", "rate": 48000}),
    ("mp4", {"video": "mpeg4", "audio": "libmp3lame", "rate": 44100}),
    ("avi", {"video": "mpeg4", "video_options": {"bf": "2"}, "audio": "pcm_s16le"}),
    ("avi", {"audio": "pcm_s16le", "rate": 44100}),
    ("avi", {"video": "mjpeg", "audio": "pcm_s16le"}),
    ("mov", {"video": "mjpeg", "audio": "pcm_s16le"}),
    ("mkv", {"video": "ffv1", "audio": "flac", "size": (63, 49)}),
    ("mkv", {"audio": "libmp3lame", "rate": 48000, "layout": "stereo"}),
    ("ts", {"audio": "ac3", "rate": 48000, "layout": "5.1"}),
    ("mp4", {"rate": 8000}),
    ("mp4", {"rate": 44100, "layout": "stereo"}),
    ("mp4", {"rate": 48000, "layout": "5.1"}),
    ("mkv", {"audio": "pcm_s16le", "rate": 192000, "layout": "7.1"}),
    ("mkv", {"audio": "flac", "rate": 11025}),
    ("mp4", {"frame_rate": 30}),
    ("mkv", {"frame_rate": 50}),
    ("mp4", {"tracks": 2}),
    ("mp4", {"rotation": 90}),
    ("mp4", {"sound_from": 0.4}),
    ("mkv", {"sound_from": 0.4}),
    ("ts", {"sound_from": 0.4}),
    ("mp4", {"sound_from": -0.2}),
    ("mkv", {"sound_from": -0.2}),
    ("mp4", {"picture_from": 0.32}),
    ("mkv", {"picture_from": 0.32}),
    ("ts", {"picture_from": 0.32}),
    ("mp4", {"variable": True}),
    ("mkv", {"variable": True}),
    ("mp4", {"lost": True}),
    ("mkv", {"lost": True}),
    ("avi", {"lost": True, "video": "mjpeg", "audio": "pcm_s16le"}),
    ("mkv", {"pixel_format": "yuv444p", "size": (63, 49)}),
]


CODECS = {  # of the pictures, as options of `write`
    "h264": {"video_options": {"preset": "ultrafast", "bf": "2"}},
    "hevc": {"video": "libx265", "video_options": QUIET_265 | {"preset": "ultrafast"}},
    "vp9": {"video": "libvpx-vp9", "video_options": FAST_VP9},
    "av1": {"video": "libsvtav1", "video_options": {"preset": "12"}},
    "mpeg4": {"video": "mpeg4", "video_options": {"bf": "2"}},
    "mjpeg": {"video": "mjpeg"},
}
SOUNDS = {
    "aac": {},
    "mp3": {"audio": "libmp3lame", "rate": 44100},
    "opus": {"audio": "libopus", "rate": 48000},
    "pcm": {"audio": "pcm_s16le"},
    "flac": {"audio": "flac"},
}
HOLDS = {  # what containers hold in a way that keeps time; see `media.decode` for AAC and MP3 in AVI
    "mp4": (CODECS, SOUNDS),
    "mkv": (CODECS, SOUNDS),
    "mov": (("h264", "hevc", "mpeg4", "mjpeg"), ("aac", "mp3", "pcm")),
    "webm": (("vp9", "av1"), ("opus",)),
    "avi": (("h264", "mpeg4", "mjpeg"), ("pcm",)),
    "ts": (("h264", "hevc", "mpeg4"), ("aac", "mp3", "opus")),
}
MATRIX = [(c, v, a) for c, (videos, sounds) in HOLDS.items() for v in videos for a in sounds]


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    """Encoders speak to the terminal."""
    before = av.logging.get_level()
    av.logging.set_level(av.logging.PANIC)
    yield
    av.logging.set_level(before)


def variable_stamps(events: np.ndarray) -> np.ndarray:
    """Pictures 5 to 70 ms apart, to the millisecond, one of them at each event."""
    random = np.cumsum(np.random.default_rng(0).uniform(0.005, 0.07, 60))
    stamps = np.unique(np.concatenate([np.round(random, 3), events, [0.0]]))
    return stamps[stamps < 2]


@pytest.mark.parametrize(("container", "options"), FORMATS, ids=lambda x: x if isinstance(x, str) else str(x))
def test_flash_and_click_stay_together(tmp_path, flash_and_click, container, options):
    options = dict(options)
    start = options.pop("picture_from", 0.0)
    if start:
        options["stamps"] = np.arange(start, 2.0 - 1e-6, 0.04)
    if options.pop("variable", False):
        options["stamps"] = variable_stamps(flash_and_click.events)
    if options.pop("lost", False):
        options["stamps"] = np.delete(np.arange(50), [3, 10, 11, 12, 13, 21, 30, 31, 45]) / 25
    path = flash_and_click.write(tmp_path / f"x.{container}", **options)
    clip = media.decode(path)
    assert clip.frames.dtype == np.uint8 and clip.audio.dtype == np.int16 and clip.damaged == 0
    assert len(clip.audio) == 640 * len(clip.frames)
    assert 48 - 25 * start <= len(clip.frames) <= 50
    # Time counts from the first picture.
    np.testing.assert_allclose(flash_and_click.flashes(clip.frames), flash_and_click.events - start, atol=0.02 + 1e-6)
    np.testing.assert_allclose(flash_and_click.clicks(clip.audio), flash_and_click.events - start, atol=1e-3)


@pytest.mark.parametrize(("container", "video", "audio"), MATRIX)
def test_every_codec_in_every_container(tmp_path, flash_and_click, container, video, audio):
    path = flash_and_click.write(tmp_path / f"x.{container}", **CODECS[video], **SOUNDS[audio])
    info, clip = media.probe(path), media.decode(path)
    assert video in info.video_codec and audio.replace("pcm", "pcm_s16le") in info.audio_codec
    np.testing.assert_allclose(flash_and_click.flashes(clip.frames), flash_and_click.events, atol=0.02 + 1e-6)
    np.testing.assert_allclose(flash_and_click.clicks(clip.audio), flash_and_click.events, atol=1e-3)


@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_an_edit_list_cuts_the_picture_before_it(tmp_path, flash_and_click, container):
    # Pictures with times before zero are in the file, and its edit list has players start at zero.
    stamps = np.arange(-10, 50) / 25
    path = flash_and_click.write(tmp_path / f"x.{container}", stamps=stamps, video_options={"g": "25", "bf": "0"})
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 60
    clip = media.decode(path)
    assert len(clip.frames) == 50
    np.testing.assert_allclose(flash_and_click.flashes(clip.frames), flash_and_click.events, atol=0.02 + 1e-6)
    np.testing.assert_allclose(flash_and_click.clicks(clip.audio), flash_and_click.events, atol=1e-3)


@pytest.mark.parametrize(("sound", "delay_sec"), [("aac", 1024 / 16000), ("mp3", 1105 / 44100)])
def test_avi_cannot_state_the_delay_of_an_encoder(tmp_path, flash_and_click, sound, delay_sec):
    # The documented limit.
    clip = media.decode(flash_and_click.write(tmp_path / "x.avi", **SOUNDS[sound]))
    late = flash_and_click.clicks(clip.audio) - flash_and_click.flashes(clip.frames)
    np.testing.assert_allclose(late, delay_sec, atol=1e-3)


@pytest.mark.parametrize("frame_rate", [10.0, 25.0, 29.97])
def test_pictures_are_the_nearest_in_time(tmp_path, flash_and_click, frame_rate):
    stamps = variable_stamps(flash_and_click.events)
    order = {round(stamp, 3): i for i, stamp in enumerate(stamps)}

    def paint(picture, stamp):
        picture[:] = 2 * order[round(stamp, 3)]

    path = tmp_path / "x.mkv"
    flash_and_click.write(path, video="ffv1", audio="pcm_s16le", stamps=stamps, paint=paint, pixel_format="bgr0")
    clip = media.decode(path, frame_rate=frame_rate)
    ticks = np.arange(len(clip.frames)) / frame_rate
    distance = np.abs(stamps[None] - ticks[:, None])
    shown = clip.frames[:, 0, 0, 0] // 2
    np.testing.assert_allclose(distance[np.arange(len(ticks)), shown], distance.min(1), atol=1e-6)


def test_where_the_sound_is_and_silence_elsewhere(tmp_path, flash_and_click):
    path = flash_and_click.write(tmp_path / "x.mkv", audio="pcm_s16le", sound_from=0.5)
    clip = media.decode(path)
    assert clip.sound_start_sec == pytest.approx(0.5, abs=1e-3)
    assert clip.sound_end_sec == pytest.approx(2.0, abs=1e-3)
    assert not clip.audio[:7900].any()


def test_lost_packets_leave_a_gap_of_their_length(tmp_path, flash_and_click):
    whole = flash_and_click.write(tmp_path / "whole.mp4", sec=2.0)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "holes.mkv"), "w") as out:
        copies = {s.index: out.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            sec = float(packet.pts * packet.time_base)
            if packet.stream.type == "audio" and 0.9 < sec < 1.2:
                continue
            packet.stream = copies[packet.stream.index]
            out.mux(packet)
    clip = media.decode(tmp_path / "holes.mkv")
    np.testing.assert_allclose(flash_and_click.clicks(clip.audio), flash_and_click.events, atol=1e-3)
    assert not clip.audio[round(1.0 * 16000) : round(1.15 * 16000)].any()


@pytest.mark.parametrize(("container", "audio"), [("mp4", "aac"), ("mkv", "flac"), ("ts", "aac"), ("avi", "pcm_s16le")])
def test_a_piece_is_the_same_as_that_piece_of_the_whole(tmp_path, flash_and_click, container, audio):
    level = {}

    def paint(picture, stamp):
        picture[:] = level.setdefault(round(stamp, 3), 16 + len(level) % 200)

    path = tmp_path / f"x.{container}"
    options = {"g": "25", "preset": "ultrafast"}
    flash_and_click.write(path, audio=audio, sec=10.0, paint=paint, video_options=options)
    with av.open(str(path)) as opened:
        assert opened.streams.video[0].codec_context.name == "h264"
    whole = media.decode(path)
    for start in (1.0, 7.2):
        piece = media.decode(path, start_sec=start, duration_sec=1.5)
        at = round(start * 25)
        np.testing.assert_array_equal(piece.frames, whole.frames[at : at + 37 + 1][: len(piece.frames)])
        assert len(piece.frames) in (37, 38)
        there = whole.audio[at * 640 : at * 640 + len(piece.audio)]
        assert np.abs(piece.audio.astype(int) - there).max() <= 1
