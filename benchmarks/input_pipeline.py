"""How many clips a second one core prepares for a training step, beside what the published code does for one.

    python -m benchmarks.input_pipeline [--videos DIR] [--out FILE]

Ours reads a record, chooses a crop and decodes just that, as planes or RGB and whole sound; the rest happens on the
device. The reference decodes the whole mp4 to RGB, crops it, cuts and copies the segments, turns them into normalised
half precision and computes a log-mel for each, one PyTorch thread, as the published data set and transforms do. Its
random colours and effects are left out, which flatters it: ours makes them on the device.

Both sides get the same clips at 25 fps, 256 pixels and 16 kHz: the reference as mp4 files of x264's default quality,
ours as records. They run in turn in one process; what counts is processor time, so that neighbours disturb little.
"""

import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import av
import jax
import numpy as np
import typer

from data_prep.clips import ClipOptions, make_record
from data_prep.sources import VIDEO_SUFFIXES, Source
from synchformer_jax import clock
from synchformer_jax.data import pipeline, records
from synchformer_jax.errors import UserError, exit_on_user_error
from synchformer_jax.files import atomic_path
from synchformer_jax.media import decode
from synchformer_jax.media.encode import write_mp4
from synchformer_jax.ops.colour import planes_to_rgb
from synchformer_jax.ops.log_mel import mel_filters
from synchformer_jax.train.config import base_config

STAGES = {"stage 1": "segment_avclip", "stage 2": "sync"}
SEGMENTS, SIZE = 14, 224
PASSES = 5  # over the clips, of ours, for one of the reference


# ---------------------------------------------------------------------------------------------------------- reference


def published_item(path: Path, stage: str, rng: np.random.Generator) -> tuple:
    """A batch of one item of the published data set: 14 segments in half precision, and their log-mels."""
    import torch

    with av.open(str(path), metadata_errors="ignore") as container:
        frames = [frame.to_rgb().to_ndarray() for frame in container.decode(video=0)]
        container.seek(0)
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    video = torch.as_tensor(np.stack(frames)).permute(0, 3, 1, 2)
    audio = torch.as_tensor(sound).mean(dim=0)
    frames_kept = min(len(video), len(audio) // clock.SAMPLES_PER_FRAME, 250)
    video, audio = video[:frames_kept], audio[: frames_kept * clock.SAMPLES_PER_FRAME]
    top, left = (int(rng.integers(side - SIZE + 1)) for side in video.shape[-2:])
    video = video[..., top : top + SIZE, left : left + SIZE]
    step = clock.SEGMENT_FRAMES
    if stage == "sync":
        start, step = int(rng.integers(50, 76)), clock.SEGMENT_FRAMES // 2
        video, audio = video[start : start + 125], audio[start * clock.SAMPLES_PER_FRAME :][: clock.SAMPLE_RATE * 5]
    starts = step * np.arange(SEGMENTS)
    starts += int(rng.integers(len(video) - starts[-1] - clock.SEGMENT_FRAMES + 1))
    segments = torch.stack([video[at : at + clock.SEGMENT_FRAMES] for at in starts])
    if rng.random() < 0.5:
        segments = segments.flip(-1)
    segments = segments.half().div(255.0).sub(0.5).div(0.5)
    first = starts * clock.SAMPLES_PER_FRAME
    sounds = torch.stack([audio[at : at + clock.SEGMENT_SAMPLES] for at in first])
    mels = published_log_mel(sounds)
    if stage == "segment_avclip":
        segments = segments.permute(0, 2, 1, 3, 4).contiguous()
    return torch.stack([segments]), torch.stack([mels])  # a batch of one, as the other side makes


def published_log_mel(audio):
    """`ops.log_mel` in PyTorch's own operators."""
    import torch

    window = torch.hann_window(400)
    spectrum = torch.stft(audio, 1024, hop_length=160, win_length=400, window=window, return_complex=True)
    power = spectrum.abs().pow(2)
    mel = torch.log(torch.matmul(torch.as_tensor(mel_filters()).T, power) + 1e-6)
    return (torch.nn.functional.pad(mel, (0, 66 - mel.shape[-1])) + 4.2677393) / (2 * 4.5689974)


# ------------------------------------------------------------------------------------------------------------ clips


def make_clips(videos: Path, folder: Path) -> tuple[list[Path], str]:
    """Each video in both forms: published mp4 files, and a data set of records."""
    sources = sorted(path for path in videos.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    if not sources:
        raise UserError(f"{videos} holds no video. Give --videos a folder of some clips of 10 s.")
    files, made = [], []
    for source in sources:
        clip = decode.decode(source, short_side=256, duration_sec=10.0)
        files.append(folder / "mp4" / f"{source.stem}.mp4")
        write_mp4(files[-1], clip.frames, clip.audio, crf=23, preset="medium")
        made.append(make_record(Source(source.stem, source), ClipOptions()))
    version = folder / "records" / "clips" / records.VERSION
    for split in ("train", "valid"):
        with records.ShardWriter(records.shard_path(version, split, 0, 1)) as writer:
            for record in made:
                writer.write(record)
    records.write_metadata(version)
    return files, str(version)


def our_batches(folder: str, stage: str, pixels: str, workers: int = 0) -> pipeline.Batches:
    """Training batches of one clip, as a trainer gets them."""
    config = base_config(stage)
    config.data.update({"train": folder, "batch_size": 1, "pixels": pixels, "workers": workers})
    return pipeline.batches(config, "train", train=True, process=0, processes=1)


# ------------------------------------------------------------------------------------------------------ measurements


def in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Processor and wall seconds of each call, the median over rounds in which all run in turn."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            before = time.process_time(), time.perf_counter()
            call()
            if number:  # the first round warms up
                spent[name].append((time.process_time() - before[0], time.perf_counter() - before[1]))
    return {
        name: dict(zip(("cpu_sec", "wall_sec"), (float(x) for x in np.median(times, axis=0)), strict=True))
        for name, times in spent.items()
    }


def measure_stage(files: list[Path], folder: str, stage: str, rounds: int) -> dict:
    """Clips a core-second of ours (planes and RGB) and of the reference; bytes to the device."""
    rng, clips = np.random.default_rng(0), len(files)
    loaders = {pixels: our_batches(folder, stage, pixels) for pixels in ("yuv420", "rgb")}
    item_bytes: dict[str, int] = {}

    def ours(pixels: str) -> None:
        for _ in range(PASSES * clips):
            item_bytes[pixels] = sum(value.nbytes for value in next(loaders[pixels]).values())
        loaders[pixels].close()  # what it has made ahead counts as its own time, not the next one's

    passes = {"yuv420": PASSES, "rgb": PASSES, "reference": 1}

    def reference() -> None:
        for path in files:
            segments, mel = published_item(path, stage, rng)
            item_bytes["reference"] = segments.nbytes + mel.nbytes

    calls = {"yuv420": lambda: ours("yuv420"), "rgb": lambda: ours("rgb"), "reference": reference}
    times = in_turn(calls, rounds)
    result = {
        name: {
            "clips_per_core_sec": passes[name] * clips / spent["cpu_sec"],
            "cpu_ms_per_clip": 1000 * spent["cpu_sec"] / (passes[name] * clips),
            "device_bytes_per_clip": item_bytes[name],
        }
        for name, spent in times.items()
    }
    for name in ("yuv420", "rgb"):
        result[name]["times_reference"] = result[name]["clips_per_core_sec"] / result["reference"]["clips_per_core_sec"]
    return result


def measure_workers(folder: str, stage: str, workers: int, clips: int) -> dict[str, float]:
    """Clips a second of wall time through worker processes, after they have started."""
    batches = our_batches(folder, stage, "yuv420", workers)
    for _ in range(4 * workers):
        next(batches)
    began = time.perf_counter()
    for _ in range(clips):
        next(batches)
    seconds = time.perf_counter() - began
    batches.close()
    return {"workers": workers, "clips_per_sec": clips / seconds}


def measure_device(frames: int) -> float:
    """Milliseconds in which this machine's own device turns the planes of a clip into RGB."""
    planes = jax.numpy.asarray(np.random.default_rng(0).integers(0, 256, (frames, SIZE * SIZE * 3 // 2), np.uint8))
    convert = jax.jit(lambda x: planes_to_rgb(x, SIZE, SIZE))
    times = in_turn({"convert": lambda: convert(planes).block_until_ready()}, 5)
    return 1000 * times["convert"]["wall_sec"]


def measure(videos: Path, rounds: int, machine: str, workers: list[int]) -> dict:
    """All of it."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        files, folder = make_clips(videos, Path(scratch))
        shard = records.Shards(folder, "train").paths[0]
        result = {
            "machine": machine or f"{platform.machine()}, {jax.devices()[0].device_kind} x {jax.device_count()}",
            "versions": {"av": av.__version__, "jax": jax.__version__, "torch": torch.__version__},
            "clips": [path.stem for path in files],
            "bytes_on_disk_per_clip": {
                "record": shard.stat().st_size // len(files),
                "mp4": sum(path.stat().st_size for path in files) // len(files),
            },
            "stages": {name: measure_stage(files, folder, stage, rounds) for name, stage in STAGES.items()},
            "device_ms_planes_to_rgb": {name: measure_device(224 if name == "stage 1" else 120) for name in STAGES},
            "workers": [measure_workers(folder, "segment_avclip", number, 40) for number in workers],
        }
    return result


def table(result: dict) -> str:
    """The result as Markdown."""
    lines = [
        "# Input pipeline\n",
        f"Machine: {result['machine']}. {len(result['clips'])} clips of 10 s. "
        "`python -m benchmarks.input_pipeline` measures what this page says.\n",
        "| | clips a core-second | times the reference | host ms a clip | MB to the device a clip |",
        "| --- | --- | --- | --- | --- |",
    ]
    for stage, sides in result["stages"].items():
        for name, label in (("yuv420", "planes"), ("rgb", "RGB"), ("reference", "reference")):
            side = sides[name]
            times = f"{side['times_reference']:.1f}" if "times_reference" in side else ""
            lines.append(
                f"| {stage}, {label} | {side['clips_per_core_sec']:.1f} | {times} | {side['cpu_ms_per_clip']:.1f} "
                f"| {side['device_bytes_per_clip'] / 1e6:.1f} |"
            )
    disk, device = result["bytes_on_disk_per_clip"], result["device_ms_planes_to_rgb"]
    lines += [
        f"\nOn disk: {disk['record'] / 1e6:.2f} MB a record (sound without loss), {disk['mp4'] / 1e6:.2f} MB an mp4 of "
        "the published kind.\n",
        "Through worker processes (stage 1, planes, wall time): "
        + ", ".join(f"{row['workers']} {row['clips_per_sec']:.1f} clips/s" for row in result["workers"])
        + ".\n",
        "Turning planes into RGB on this machine's own device takes "
        + " and ".join(f"{ms:.0f} ms a clip in {stage}" for stage, ms in device.items())
        + ": where the device is a CPU, send RGB (`config.data.pixels`); an accelerator is sent planes.",
    ]
    return "\n".join(lines) + "\n"


@exit_on_user_error()
def main(
    videos: Annotated[Path, typer.Option(help="A folder of clips of 10 s.")] = Path("../shared/media"),
    rounds: Annotated[int, typer.Option(help="Both sides are measured so many times, in turn.")] = 5,
    workers: Annotated[str, typer.Option(help="Numbers of worker processes to try, with commas between.")] = "1,2",
    machine: Annotated[str, typer.Option(help="How the results call this machine.")] = "",
    out: Annotated[Path | None, typer.Option(help="FILE.json for the results; FILE.md is written beside it.")] = None,
) -> None:
    """Measures our input pipeline beside the published one."""
    if not videos.is_dir():
        raise UserError(f"There is no folder {videos}. Give --videos, such as clips of python -m data_prep.procedural.")
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError("The reference side needs PyTorch: pip install torch.") from None
    result = measure(videos, rounds, machine, [int(number) for number in workers.split(",") if number])
    page = table(result)
    print(page)
    if out:
        for path, text in ((out, json.dumps(result, indent=1) + "\n"), (out.with_suffix(".md"), page)):
            with atomic_path(path) as temporary:
                temporary.write_text(text)


if __name__ == "__main__":
    typer.run(main)
