"""Small records whose pixels tell the number of their frame and whose samples tell their own number."""

import io

import av
import numpy as np
import soundfile
from ml_collections import ConfigDict

from synchformer_jax.data import records

HEIGHT, WIDTH = 32, 44
FRAMES, SAMPLES = 250, 160_000
BITS = 8
COUNT = 10  # records of the data set that tests share


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Eight stripes, white or black: the bits of `number`, the lowest at the top."""
    rows = np.arange(height) * BITS // height
    return np.broadcast_to((number >> rows & 1)[:, None, None] * 255, (height, width, 3)).astype(np.uint8)


def frame_number(frame: np.ndarray) -> int:
    """The number of a picture, cropped in its width or not."""
    stripes = frame.astype(float).mean((1, 2)).reshape(BITS, -1).mean(1)
    return int(((stripes > 127) << np.arange(BITS)).sum())


def sample_number(samples: np.ndarray, near: int) -> int:
    """The number in the file of the first of `samples`, known modulo 2^16; the one closest to `near`."""
    assert (np.diff(samples.astype(np.int64)) % 65_536 == 1).all()
    return near + (int(samples[0]) - near + 32_768) % 65_536 - 32_768


def video(
    count: int = FRAMES, *, pixel_format: str = "yuv420p", gop: int = 12, b_frames: int = 2, make=picture
) -> bytes:
    """An mp4 of pictures."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        options = {"crf": "12", "g": str(gop), "bf": str(b_frames), "preset": "ultrafast", "x264-params": "threads=1"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width = make(0).shape[:2]
        stream.pix_fmt = pixel_format
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(make(number), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def audio(count: int = SAMPLES, sample_rate: int = 16_000) -> bytes:
    """A FLAC whose sample k is k modulo 2^16."""
    out = io.BytesIO()
    soundfile.write(out, np.arange(count).astype(np.uint16).view(np.int16), sample_rate, "PCM_16", format="FLAC")
    return out.getvalue()


def fields(index: int, media: tuple[bytes, bytes], **more) -> dict:
    """The features of record `index`."""
    return {
        "clip_id": f"clip {index}",
        "video": media[0],
        "audio": media[1],
        "num_frames": FRAMES,
        "num_samples": SAMPLES,
        "height": HEIGHT,
        "width": WIDTH,
        "level": ("dense", "sparse")[index % 2],
    } | more


def write(folder, clips, split: str = "train", shards: int = 2, name: str = "clips") -> str:
    """A data set of these clips; gives its folder."""
    version = folder / name / records.VERSION
    pieces = np.array_split(np.arange(len(clips)), shards)
    for shard, piece in enumerate(pieces):
        with records.ShardWriter(records.shard_path(version, split, shard, shards)) as writer:
            for index in piece:
                writer.write(records.encode_example(clips[index]))
    records.write_metadata(version)
    return str(version)


def config(folder: str, **changes) -> ConfigDict:
    """A small configuration that reads all splits from `folder`."""
    made = ConfigDict(
        {
            "stage": "sync",
            "seed": 5,
            "data": {
                "train": folder,
                "valid": folder,
                "test": folder,
                "batch_size": 4,
                "size": 32,
                "workers": 0,
                "visual_features": "",
                "pixels": "rgb",
                "weights": (),
                "fixed_offsets": "",
                "max_corrupt_share": 0.01,
                "jitter_sec": 0.05,
            },
            "augment": {"upscale": 0.0},
            "model": {"segments": 14, "visual": {"frames": 16}, "head": {"classes": 21}},
        }
    )
    made.update_from_flattened_dict(changes)
    return made


def take(batches, count):
    return [next(batches) for _ in range(count)]


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def positions(batch):
    """(first frame, first sample) of each clip, read from its pixels and samples (the likely one of 2^16)."""
    offsets = batch.get("offset_sec", np.zeros(len(batch["frames"])))
    for frames, audio, offset in zip(batch["frames"], batch["audio"], offsets, strict=True):
        numbers = [frame_number(frame) for frame in frames]
        assert numbers == list(range(numbers[0], numbers[0] + len(frames)))
        yield numbers[0], sample_number(audio, numbers[0] * 640 + round(float(offset) * 16_000))
