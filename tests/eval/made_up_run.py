"""A run folder with made-up numbers, for the page: nothing is trained."""

import json
from pathlib import Path

import numpy as np

from synchformer_jax import clock
from synchformer_jax.eval.summary import summarise
from synchformer_jax.train.config import base_config, to_dict


def predictions(random: np.random.Generator, clips: int, skill: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[clips, 21]` around a class near the target, and targets."""
    targets = np.arange(clips) % clock.OFFSET_CLASSES
    centre = np.where(
        random.random(clips) < skill, targets + random.integers(-1, 2, clips), random.integers(0, 21, clips)
    )
    logits = 4 * np.exp(-0.5 * (np.arange(21) - centre[:, None]) ** 2) + 0.7 * random.normal(size=(clips, 21))
    return logits.astype(np.float32), targets


def evaluation(seed: int, skills: dict[str, float], clips: int = 84) -> dict:
    """An eval.json."""
    random = np.random.default_rng(seed)
    parts = [predictions(random, clips, skill) for skill in skills.values()]
    groups = [name for name in skills for _ in range(clips)] if len(skills) > 1 else None
    names = [f"{name}_{i:05d}" for name in skills for i in range(clips)]
    logits, targets = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    by = "level" if groups else None
    return summarise(logits, targets, names, groups, by) | {"seconds": 61.2, "device": "cpu x 1", "split": "test"}


def write_stage(folder: Path, stage: str, steps: int = 400) -> None:
    """The config and the metrics of a stage, as the trainer leaves them."""
    folder.mkdir(parents=True)
    config = base_config(stage, "Ti")
    config.data.batch_size, config.train.steps = 16, steps
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    random, lines = np.random.default_rng(3), []
    start = np.log(28) if stage == "segment_avclip" else np.log(21)
    for step in range(10, steps + 1, 10):
        loss = 0.5 + (start - 0.5) * np.exp(-step / 150) + 0.08 * random.normal()
        lines.append({"step": step, "split": "train", "loss": loss, "clips_per_sec": 12.5, "accuracy": 1 - loss / 4})
        if step % 100 == 0:
            share = 0.95 - 0.8 * np.exp(-step / 150)
            lines.append(
                {"step": step, "split": "valid", "loss": loss + 0.1, "precision": share, "accuracy": 0.7 * share,
                 "accuracy_within_one": share}
            )  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(run: Path, video: Path | None = None) -> None:
    """A whole run; `video` is the held-out clip."""
    write_stage(run / "stage1", "segment_avclip")
    write_stage(run / "sync", "sync")
    (run / "eval.json").write_text(json.dumps(evaluation(0, {"dense": 0.9, "sparse": 0.75, "none": 0.0})))
    (run / "control").mkdir()
    (run / "control" / "eval.json").write_text(json.dumps(evaluation(1, {"dense": 0.1, "sparse": 0.03, "none": 0.0})))
    random = np.random.default_rng(5)
    similarity = 0.2 * random.normal(size=(4, 14, 14)) + 0.8 * np.eye(14) + 0.3 * np.eye(14, k=1)
    np.savez_compressed(
        run / "stage1" / "similarities.npz", similarity=similarity.astype(np.float32),
        clip=np.array(["dense_00000", "dense_00001", "sparse_00000", "sparse_00001"]),
        level=np.array(["dense", "dense", "sparse", "sparse"]), precision=np.array([1.0, 0.93, 0.71, 0.86]),
    )  # fmt: skip
    logits = 5 * np.exp(-0.5 * ((np.arange(21) - 12) / 0.6) ** 2) + 0.3 * random.normal(size=21)
    probability = float(np.exp(logits[12]) / np.exp(logits).sum())
    prediction = {
        "video": str(video or "gone.mp4"), "offset_sec": 0.4, "probability": probability,
        "start_sec": 2.4, "audio_shift_sec": 0.4, "grid": [round(float(x), 6) for x in clock.offset_grid()],
        "logits": logits.tolist(),
    }  # fmt: skip
    (run / "prediction.json").write_text(json.dumps(prediction))
