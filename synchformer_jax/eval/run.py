"""What a training run has left in its work folder."""

import json
import math
import os
from pathlib import Path

from synchformer_jax.errors import UserError


def read_json(path: str | os.PathLike) -> dict | None:
    """A JSON file, or None if it is not there.

    Raises:
        UserError: it is no JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}). Delete it and make it again.") from error


def read_config(workdir: str | os.PathLike) -> dict:
    """The configuration of a run.

    Raises:
        UserError: the folder holds none.
    """
    config = read_json(Path(workdir) / "config.json")
    if config is None:
        raise UserError(f"{workdir} holds no config.json, so it is no run. Give the --workdir of a training.")
    return config


def read_metrics(workdir: str | os.PathLike) -> list[dict]:
    """The lines of metrics.jsonl in the order of their steps; a line that a resumed run wrote again counts once.

    A last line that was cut off is left out.
    """
    path = Path(workdir) / "metrics.jsonl"
    lines: dict[tuple[str, int], dict] = {}
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines[str(line.get("split", "train")), int(line["step"])] = line
    return sorted(lines.values(), key=lambda line: line["step"])


def series(lines: list[dict], split: str, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric of one split, without those that are not finite."""
    pairs = [
        (line["step"], float(line[name]))
        for line in lines
        if line.get("split", "train") == split
        and isinstance(line.get(name), (int, float))
        and math.isfinite(line[name])
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]


def parameter_count(config: dict) -> int:
    """The number of parameters of the model that a run's configuration describes; computes no weights."""
    from synchformer_jax.train.config import from_dict
    from synchformer_jax.train.state import hollow_model

    return sum(math.prod(shape) for shape in hollow_model(from_dict(config)).shapes().values())
