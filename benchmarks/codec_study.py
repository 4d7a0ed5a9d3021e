"""python -m benchmarks.codec_study [VIDEOS]: what the pictures of records cost and keep, by codec setting.

One setting at a time is changed from the default of `data_prep.clips`. Of each: bytes of a ten-second clip, CPU time to
encode it and to decode a random 5 s crop of 224 x 224 as training does, and luma PSNR and SSIM against the pictures
before encoding. CPU time of the one thread is counted, so other work on the machine disturbs little; settings take
turns in random order, so that they share what disturbance there is.
"""

import dataclasses
import io
import os
import platform
import time
from pathlib import Path
from typing import Annotated

import av
import numpy as np
import typer

from data_prep.clips import CODEC, PictureCodec, encode_picture
from synchformer_jax.data.clips import PLANES, decode_frames
from synchformer_jax.errors import UserError, exit_on_user_error
from synchformer_jax.files import write_json
from synchformer_jax.media import decode

SHORT_SIDE, CROP, CROP_FRAMES = 256, 224, 125
VARIATIONS = {
    "crf": (15, 17, 21, 23, 26),
    "preset": ("ultrafast", "superfast", "faster", "medium"),
    "tune": ("",),
    "gop_frames": (8, 16, 32, 50, 250),
    "b_frames": (2,),
}


def settings() -> list[tuple[str, PictureCodec]]:
    """(name, codec): the default, every variation of it, and x264's own default."""
    varied = [
        (f"{field} {value or 'none'}", dataclasses.replace(CODEC, **{field: value}))
        for field, values in VARIATIONS.items()
        for value in values
    ]
    usual = PictureCodec(crf=CODEC.crf, preset="medium", tune="", gop_frames=250, b_frames=3)
    return [("default", CODEC), *varied, ("medium, no tune, GOP 250, 3 B", usual)]


def luma(frame: av.VideoFrame) -> np.ndarray:
    """The brightness of a picture, float64 `[H, W]`."""
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].astype(float)


def box(image: np.ndarray, size: int = 8) -> np.ndarray:
    """Means over all windows of `size` x `size`."""
    total = np.pad(image, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return (total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]) / size**2


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two pictures of 0 to 255, over all windows of 8 x 8."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = box(a), box(b)
    covariance = box(a * b) - mean_a * mean_b
    spread = box(a * a) - mean_a**2 + box(b * b) - mean_b**2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))
    return float(score.mean())


def quality(video: bytes, originals: list[av.VideoFrame], every: int = 10) -> tuple[float, float]:
    """(PSNR in dB, SSIM) of the luma of every tenth picture."""
    errors, similar = [], []
    with av.open(io.BytesIO(video)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % every == 0:
                before, after = luma(originals[number]), luma(frame)
                errors.append(np.mean((before - after) ** 2))
                similar.append(ssim(before, after))
    return 10 * np.log10(255**2 / np.mean(errors)), float(np.mean(similar))


def cpu_ms(function, *args) -> tuple[float, object]:
    """(CPU time of this thread in milliseconds, result) of a call."""
    start = time.thread_time()
    result = function(*args)
    return 1000 * (time.thread_time() - start), result


def measure(videos: list[Path], crops: int) -> dict[str, dict]:
    """The figures of every setting, means over the clips."""
    rows = {name: {"bytes": [], "encode": [], "decode": [], "psnr": [], "ssim": []} for name, _ in settings()}
    for number, path in enumerate(videos):
        frames: list[av.VideoFrame] = []
        decode.read(path, frames.append, pixel_format="yuv420p", short_side=SHORT_SIDE, duration_sec=10.0)
        encoded = {}
        for name, codec in settings():
            took, video = cpu_ms(encode_picture, frames, codec)
            encoded[name] = video
            row = rows[name]
            row["encode"].append(took)
            row["bytes"].append(len(video) * 250 / len(frames))
            for key, value in zip(("psnr", "ssim"), quality(video, frames), strict=True):
                row[key].append(value)
        random = np.random.default_rng(number)
        for _ in range(crops):
            first = int(random.integers(0, len(frames) - CROP_FRAMES + 1))
            top, left = (2 * int(random.integers(0, (side - CROP) // 2 + 1)) for side in (SHORT_SIDE, frames[0].width))
            for name in random.permutation(list(encoded)):
                took, _ = cpu_ms(decode_frames, encoded[name], first, CROP_FRAMES, (top, left, CROP), PLANES)
                rows[name]["decode"].append(took)
    return {name: {key: float(np.mean(values)) for key, values in row.items()} for name, row in rows.items()}


def table(rows: dict[str, dict]) -> str:
    """The figures as Markdown."""
    lines = [
        "| setting | kB a clip | encode, ms a clip | decode, ms a crop | PSNR, dB | SSIM |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        kb, encode, crop = row["bytes"] / 1000, row["encode"], row["decode"]
        lines.append(f"| {name} | {kb:.0f} | {encode:.0f} | {crop:.0f} | {row['psnr']:.2f} | {row['ssim']:.4f} |")
    return "\n".join(lines)


@exit_on_user_error()
def main(
    videos: Annotated[Path, typer.Argument(help="A folder of videos of ten seconds or more.")] = Path(
        "../shared/media"
    ),
    crops: Annotated[int, typer.Option(help="Random crops of each clip and setting.")] = 12,
    out: Annotated[Path | None, typer.Option(help="Also write the figures here, as JSON.")] = None,
) -> None:
    """Measures bytes, decoding time and quality over settings of H.264."""
    paths = sorted(videos.glob("*.mp4"))
    if not paths:
        raise UserError(
            f"{videos} holds no mp4. Render some: python -m data_prep.procedural FOLDER --size 256 --test 3"
        )
    rows = measure(paths, crops)
    print(f"{len(paths)} clips, default {CODEC}\n\n{table(rows)}")
    if out:
        result = {
            "machine": f"{os.cpu_count()} cores, no accelerator",
            "versions": {"python": platform.python_version(), "av": av.__version__},
            "load_average": round(os.getloadavg()[1], 1),
            "clips": len(paths),
            "default": dataclasses.asdict(CODEC),
            "settings": rows,
        }
        write_json(out, result, indent=2)


if __name__ == "__main__":
    typer.run(main)
