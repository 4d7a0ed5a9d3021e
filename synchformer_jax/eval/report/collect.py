"""From the files of a run to what the page shows. Whatever a run lacks is left out of the page."""

import base64
import math
import os
import tempfile
from pathlib import Path

import numpy as np

from synchformer_jax.errors import UserError
from synchformer_jax.eval import metrics
from synchformer_jax.eval.report import figures, similarities
from synchformer_jax.eval.run import parameter_count, read_json, read_metrics, series

LEVELS = {
    "dense": "Cues all through the clip",
    "sparse": "One to four events in ten seconds, small on screen",
    "none": "Nothing to synchronize by: only a leak could help",
}


def page(run: str | os.PathLike) -> dict:
    """Everything the template needs.

    Args:
        run: a folder with any of `stage1/`, `sync/`, `eval.json`, `control/eval.json`, `prediction.json`.

    Raises:
        UserError: it holds none of them.
    """
    run = Path(run)
    result, control = read_json(run / "eval.json"), read_json(run / "control" / "eval.json")
    stages = {name: run / name for name in ("stage1", "sync") if (run / name / "config.json").is_file()}
    if result is None and not stages:
        raise UserError(f"{run} holds neither eval.json nor stage1/ or sync/. Give the folder of a finished run.")
    prediction = read_json(run / "prediction.json")
    found = similarities.read(run / "stage1")
    context = {
        "name": run.absolute().name,
        "command": f"python -m synchformer_jax.eval.report --run {run}",
        "lead": lead(result),
        "cards": cards(result, control),
        "has_control": control is not None,
        "tables": tables(result, control),
        "setup": setup(stages, result),
        "clip": clip(prediction, run) if prediction else None,
        "similarities": None,
    }
    if result:
        context |= confusion(result)
    if found:
        order = sorted(range(len(found["level"])), key=lambda i: rank(str(found["level"][i])))
        titles = [_join(str(found["level"][i]), str(found["clip"][i])) for i in order]
        context["similarities"] = figures.similarities([found["similarity"][i] for i in order], titles)
        context["similarity_precision"] = float(found["precision"].mean())
    for name, draw in (("stage1", stage1_curves), ("sync", sync_curves)):
        context[f"{name}_curves"] = draw(stages[name]) if name in stages else None
    return context


def rank(level: str) -> tuple[int, str]:
    """The order in which levels are shown: known ones from easy to hard, then others by name."""
    return (list(LEVELS).index(level) if level in LEVELS else len(LEVELS), level)


def _join(level: str, clip: str) -> str:
    return clip if not level or clip.startswith(level) else f"{level}: {clip}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _groups(result: dict) -> dict[str, dict]:
    return {name: result["groups"][name] for name in sorted(result.get("groups") or {}, key=rank)}


def _step(result: dict) -> float:
    return float(result["grid"][1] - result["grid"][0])


def lead(result: dict | None) -> str:
    """The outcome in two sentences."""
    if result is None:
        return "This run has not been evaluated yet: below is what its training has written so far."
    groups = _groups(result)
    told = [
        f"{100 * g['accuracy_1_tol1']['value']:.0f}% of the {name} ones" for name, g in groups.items() if name != "none"
    ]
    if not told or (len(told) == 1 and "other" in groups):
        told = [f"{100 * result['overall']['accuracy_1_tol1']['value']:.0f}% of them"]
    chance = result["overall"]["accuracy_1_tol1"]["chance"]
    clips = result["overall"]["clips"]
    text = (
        f"{clips} held-out clips, the sound of each moved by up to {max(result['grid']):g} s: the model finds the "
        f"offset to within one class ({_step(result):.1f} s) in {' and '.join(told)}. "
        f"Guessing gives {100 * chance:.0f}%."
    )
    if none := groups.get("none"):
        reached = none["accuracy_1_tol1"]
        if reached["low"] <= chance <= reached["high"]:
            text += (
                " Where a clip has nothing to go by, it stays at chance: nothing but the events gives the answer away."
            )
        else:
            text += (
                f" Where a clip has nothing to go by, it reaches {100 * reached['value']:.0f}%, which is off chance: "
                "look for a leak."
            )
    return text


def cards(result: dict | None, control: dict | None) -> list[dict]:
    """The big numbers: one a level, or three kinds of accuracy where the clips have no levels."""
    if result is None:
        return []
    groups = _groups(result)
    if len(groups) < 2:
        names = {
            "accuracy_1_tol1": "Within one class",
            "accuracy_1": "Exact class",
            "accuracy_5": "Among the best five",
        }
        whats = {
            "accuracy_1_tol1": f"At most {_step(result):.1f} s from the truth",
            "accuracy_1": f"Of {result['classes']} classes, {_step(result):.1f} s apart",
            "accuracy_5": "The true class is one of the five most probable",
        }
        return [
            {
                "title": names[name],
                "what": whats[name],
                "main": result["overall"][name],
                "unit": f"of {result['overall']['clips']} clips",
                "control": control["overall"][name] if control else None,
                "facts": [],
            }
            for name in names
        ]
    controls = control["groups"] if control else {}
    return [
        {
            "title": name.capitalize(),
            "what": LEVELS.get(name, ""),
            "main": group["accuracy_1_tol1"],
            "unit": f"of {group['clips']} clips within one class ({_step(result):.1f} s)",
            "control": controls[name]["accuracy_1_tol1"] if name in controls else None,
            "facts": [("exact class", _percent(group["accuracy_1"]["value"]))],
        }
        for name, group in groups.items()
    ]


def confusion(result: dict) -> dict:
    """The confusion matrix over all clips that hold something to synchronize by."""
    groups = _groups(result)
    informative = [group["confusion"] for name, group in groups.items() if name != "none" and "confusion" in group]
    without = "none" in groups and bool(informative)
    counts = np.sum(informative, axis=0) if without else np.array(result["confusion"])
    return {
        "confusion": figures.confusion(counts, result["grid"]),
        "confusion_of": "Clips without any cue are left out." if without else "",
        "step_sec": _step(result),
    }


def tables(result: dict | None, control: dict | None) -> list[dict]:
    """All accuracies with their intervals, of the run and of the control."""
    if result is None:
        return []
    rows = []
    for source, suffix in ((result, ""), (control, ", random extractors")):
        if source is None:
            continue
        for name, group in [*_groups(source).items(), ("all", source["overall"])]:
            row = [name + suffix, group["clips"]]
            for kind in ("accuracy_1", "accuracy_1_tol1", "accuracy_5"):
                value = group[kind]
                row.append(f"{_percent(value['value'])}  ({100 * value['low']:.0f} – {100 * value['high']:.0f})")
            rows.append([*row, f"{group['loss']:.3f}"])
    chances = [_percent(result["overall"][kind]["chance"]) for kind in ("accuracy_1", "accuracy_1_tol1", "accuracy_5")]
    rows.append(["chance", "", *chances, f"{math.log(result['classes']):.3f}"])
    published = result.get("published", {})
    names = {"mAP": "mean average precision", "mROCAUC": "mean ROC AUC", "dprime": "d′"}
    more = [f"{text} {published[name]:.3f}" for name, text in names.items() if published.get(name) is not None]
    head = ["clips", "number", "exact", "within one class", "best five", "loss (nats)"]
    note = "In brackets the 95% Wilson interval, in percent."
    return [{"head": head, "rows": rows, "note": note + (f" Over all clips: {', '.join(more)}." if more else "")}]


def stage1_curves(workdir: Path) -> str | None:
    """Loss and retrieval precision of stage 1."""
    lines, config = read_metrics(workdir), read_json(workdir / "config.json") or {}
    segments = config.get("model", {}).get("segments", 14)
    clips = config.get("contrastive", {}).get("group_clips") or config.get("data", {}).get("batch_size", 1)
    panels = [_panel(lines, "Contrastive loss (nats)", "loss", (math.log(clips * segments), "guessing"))]
    windows = max(1, segments - similarities.WINDOW + 1)
    panels.append(_panel(lines, "Windows matched to their sound", "precision", (1 / windows, "chance"), percent=True))
    return _draw(panels)


def sync_curves(workdir: Path) -> str | None:
    """Loss and accuracies of stage 2."""
    lines, config = read_metrics(workdir), read_json(workdir / "config.json") or {}
    classes = config.get("model", {}).get("head", {}).get("classes", 21)
    return _draw(
        [
            _panel(lines, "Cross-entropy (nats)", "loss", (math.log(classes), "guessing")),
            _panel(lines, "Exact class", "accuracy", (metrics.chance(classes), "chance"), percent=True),
            _panel(
                lines, "Within one class", "accuracy_within_one", (metrics.chance(classes, 1), "chance"), percent=True
            ),
        ]
    )


def _panel(
    lines: list[dict], title: str, name: str, reference: tuple[float, str], percent: bool = False
) -> dict | None:
    drawn = []
    for split, label in (("train", "training"), ("valid", "validation")):
        steps, values = series(lines, split, name)
        if steps:
            drawn.append({"label": label, "steps": steps, "values": values, "kind": split})
    return {"title": title, "lines": drawn, "reference": reference, "percent": percent} if drawn else None


def _draw(panels: list[dict | None]) -> str | None:
    panels = [panel for panel in panels if panel]
    return figures.curves(panels) if panels else None


def clip(prediction: dict, run: Path) -> dict:
    """The predicted distribution of one clip; with the crop the model got, sound moved, where the file is at hand."""
    from synchformer_jax.eval.clip import describe

    grid, shift = prediction["grid"], prediction.get("audio_shift_sec", 0.0)
    probabilities = metrics.softmax(np.array(prediction["logits"]))
    verdict, described = describe(prediction["offset_sec"]), describe(shift).removeprefix("the audio is ")
    shown = {
        "distribution": figures.distribution(probabilities, grid, shift),
        "verdict": verdict[0].upper() + verdict[1:] + ".",
        "aside": f"Predicted with probability {100 * prediction['probability']:.0f}%; in truth {describe(shift)}.",
        "note": "The file itself is in sync. "
        + (f"Before the model got it, its sound was made {described}. " if shift else "")
        + "The bars are the probability that the model gives to each offset.",
    }
    for path in (Path(prediction["video"]), run / prediction["video"]):
        if path.is_file():
            return shown | _crop(path, shift, prediction["start_sec"])
    return shown


def _crop(path: Path, shift: float, start_sec: float) -> dict:
    """The crop as an mp4 in a data address, a picture to show before it plays, and the film strip."""
    from matplotlib.image import imsave

    from synchformer_jax import clock
    from synchformer_jax.eval.clip import read_crop
    from synchformer_jax.media.encode import write_mp4

    crop = read_crop(path, offset_sec=shift, start_sec=start_sec)
    even = crop.frames[:, : crop.frames.shape[1] // 2 * 2, : crop.frames.shape[2] // 2 * 2]
    with tempfile.TemporaryDirectory() as folder:
        movie, still = Path(folder) / "crop.mp4", Path(folder) / "still.png"
        write_mp4(movie, even, crop.audio)
        imsave(still, even[len(even) // 2])
        video, poster = (base64.b64encode(file.read_bytes()).decode() for file in (movie, still))
    return {
        "video": f"data:video/mp4;base64,{video}",
        "poster": f"data:image/png;base64,{poster}",
        "filmstrip": figures.filmstrip(crop.frames, crop.audio, clock.SYNC_CROP_SEC),
    }


def setup(stages: dict[str, Path], result: dict | None) -> dict | None:
    """The training set-up and timings, a column a stage."""
    if not stages:
        return None
    titles = {"stage1": "Stage 1: segment AVCLIP", "sync": "Stage 2: sync head"}
    columns = {name: _stage(workdir) for name, workdir in stages.items()}
    rows = [[label, *(column[label] for column in columns.values())] for label in next(iter(columns.values()))]
    if result and "seconds" in result:
        speed = f"{result['overall']['clips']} clips in {_clock(result['seconds'])} on {result.get('device', 'CPU')}"
        rows.append(["evaluation", *[""] * (len(columns) - 1), speed])
    return {"head": ["", *(titles[name] for name in columns)], "rows": rows}


def _stage(workdir: Path) -> dict[str, str]:
    config, lines = read_json(workdir / "config.json"), read_metrics(workdir)
    model, data, optimizer = config["model"], config["data"], config["optimizer"]
    visual, audio, head = model["visual"], model["audio"], model["head"]
    train = [line for line in lines if line.get("split", "train") == "train"]
    speeds = [line["clips_per_sec"] for line in train if line.get("clips_per_sec")]
    gaps = np.diff([0, *(line["step"] for line in train if line.get("clips_per_sec"))])
    seconds = float(np.sum(gaps * data["batch_size"] / np.array(speeds))) if speeds else None
    is_first = config["stage"] == "segment_avclip"
    return {
        "picture": f"{visual['frames']} frames of {visual['image_size']} px in patches of {visual['tubelet']} × "
        f"{visual['patch_size']} × {visual['patch_size']}; width {visual['width']}, depth {visual['depth']}, "
        f"{visual['heads']} heads, {visual['attention']} attention",
        "sound": f"{audio['mel_bins']} × {audio['frames']} log-mel; width {audio['width']}, depth {audio['depth']}, "
        f"{audio['heads']} heads",
        "on top": f"InfoNCE over {config['contrastive']['group_clips'] or data['batch_size']} clips of "
        f"{model['segments']} segments"
        if is_first
        else f"width {head['width']}, depth {head['depth']}, {head['heads']} heads, {head['classes']} classes"
        + (", lag profile" if head.get("lag_profile") else ""),
        "parameters": f"{parameter_count(config):,}",
        "frozen": ", ".join(config.get("freeze", ())) or "nothing",
        "optimiser": f"{optimizer['name']}, learning rate {optimizer['learning_rate']:g}, {optimizer['schedule']}, "
        f"{optimizer['warmup_steps']} steps of warm-up",
        "steps": f"{max((line['step'] for line in train), default=0):,} of {config['train']['steps']:,}, "
        f"{data['batch_size']} clips each",
        "training time": "–"
        if seconds is None
        else f"{_clock(seconds)}, {data['batch_size'] * gaps.sum() / seconds:.1f} clips a second",
        "seed": str(config["seed"]),
    }


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
