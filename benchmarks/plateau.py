"""What ends the plateau of the sync head: the published recipe beside other ones, on features of a trained stage 1.

`python -m benchmarks.plateau --run runs/quickstart` reads the records, the stage 1 and the cached visual features that
`make quickstart` has left there, writes `benchmarks/results/plateau.png` and `.json`, and prints the table that
`benchmarks/results/plateau.md` discusses.

A head that knows nothing has the loss ln 21 = 3.04. What is counted is how many steps pass until the loss on held-out
clips is below ln 21 - 0.1. The sound's features are computed once, at every frame, so that a step is the head alone;
therefore the jitter of the sound is whole frames (0.04 s) and the sound is not augmented. The head has the published
depth, heads and dropout, and the width of the small model.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from synchformer_jax import clock
from synchformer_jax.data import features, pipeline
from synchformer_jax.data.clips import decode_audio
from synchformer_jax.files import write_json
from synchformer_jax.models.lag_profile import LagProfile, lag_tokens, token_times
from synchformer_jax.models.synchformer import SyncHead
from synchformer_jax.ops.log_mel import log_mel
from synchformer_jax.ops.segments import segment_audio
from synchformer_jax.train import checkpoint
from synchformer_jax.train import state as states
from synchformer_jax.train.optimizer import make_optimizer

SEGMENTS, HALF = 14, clock.SEGMENT_FRAMES // 2
CROP = HALF * (SEGMENTS - 1) + clock.SEGMENT_FRAMES  # 120 frames
OFFSETS = np.arange(-50, 51, 5)  # frames
LEFT = math.log(clock.OFFSET_CLASSES) - 0.1
CLIP_FRAMES = 250


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs from the published recipe.

    Attributes:
        why: for the table.
        changes: of the config, by dotted field.
        position: the first position embeddings: "random" as published, "small" (std 0.02), or "time": one sinusoid of
            the token's time in the crop, the same for picture and sound.
        curriculum: steps in which the classes grow from the three at -2, 0 and 2 s to all; 0 for none.
        auxiliary: the lag profile has a loss of its own and does not enter the logits.
    """

    why: str
    changes: dict = dataclasses.field(default_factory=dict)
    position: str = "random"
    curriculum: int = 0
    auxiliary: bool = False


def _rate(rate: float, warmup: int = 1000, **more: object) -> dict:
    return {"optimizer.learning_rate": rate, "optimizer.per_clips": 0, "optimizer.warmup_steps": warmup, **more}


LAG = {"model.head.lag_profile": True}
RECIPES = {
    "published": Recipe("Adam, 2e-6 for 16 clips, warm-up of 1,000 steps from 1/100"),
    "rate 1e-4": Recipe("learning rate 1e-4", _rate(1e-4)),
    "rate 1e-3": Recipe("learning rate 1e-3", _rate(1e-3)),
    "rate 1e-3, warm-up 100": Recipe("published but for rate 1e-3 and a warm-up of 100 steps", _rate(1e-3, 100)),
    "small positions": Recipe("the same with positions of std 0.02", _rate(1e-3, 100), position="small"),
    "time positions": Recipe("the same with positions that tell the time", _rate(1e-3, 100), position="time"),
    "curriculum": Recipe("the same with 3 classes at first, 21 after 500 steps", _rate(1e-3, 100), curriculum=500),
    "lag profile, published rate": Recipe("the published recipe, lag profile added to the logits", LAG),
    "lag profile": Recipe("lag profile added to the logits, 1e-3, warm-up 100", _rate(1e-3, 100, **LAG)),
    "lag profile, auxiliary": Recipe(
        "the same with the lag profile as a second loss only", _rate(1e-3, 100), auxiliary=True
    ),
}


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Features of a split, on the device: visual `[N, 30, tv, D]`, audio `[N, 235, ta, D]` at every frame."""

    visual: jax.Array
    audio: jax.Array

    def crops(self, record: jax.Array, start: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Segments of crops whose picture starts at half segment `start` and whose sound at frame `first`."""
        row = jnp.arange(SEGMENTS)
        seen = self.visual[record[:, None], start[:, None] + row]
        heard = self.audio[record[:, None], first[:, None] + HALF * row]
        return seen.astype(jnp.float32), heard.astype(jnp.float32)


jax.tree_util.register_dataclass(Tokens, ["visual", "audio"], [])


def load(run: Path, split: str, scratch: Path, clips: int = 0) -> tuple[Tokens, ConfigDict]:
    """The tokens of a split, or its first `clips`; those of the sound are read if an earlier start has left them."""
    model, config = checkpoint.load_model(run / "stage1")
    records = pipeline.Records(str(run / "records"), split)
    visual = features.Features(run / "features", split, records.fingerprint)
    count = min(clips or len(records), len(records))
    rows = np.stack([visual.window(record, 0, visual.header.starts) for record in range(count)])
    path = scratch / f"plateau_audio_{split}_{count}.npy"
    if not path.is_file():
        blueprint, arrays = states.take_apart(model)
        starts = CLIP_FRAMES - clock.SEGMENT_FRAMES + 1

        @jax.jit
        def extract(arrays: states.Arrays, audio: jax.Array) -> jax.Array:
            segments = segment_audio(audio, 0, starts, 1).astype(jnp.float32) / 32768
            return blueprint.build(arrays).audio(log_mel(segments))

        samples = CLIP_FRAMES * clock.SAMPLES_PER_FRAME
        heard = [
            np.asarray(extract(arrays, decode_audio(records[record]["audio"], 0, samples)[None]))[0].astype(np.float16)
            for record in range(count)
        ]
        np.save(path, np.stack(heard))
    return Tokens(jnp.asarray(rows), jnp.asarray(np.load(path))), config


def recipe_config(recipe: Recipe, stage1: ConfigDict, batch_size: int, steps: int) -> ConfigDict:
    """The published config of stage 2 at the width of the small model, with the recipe's changes."""
    from configs.sync import get_config  # the published recipe

    config = get_config()
    config.model = stage1.model.copy_and_resolve_references()
    config.model.head.update({"depth": 3, "heads": 8, "dropout": 0.1, "lag_profile": False})
    config.data.batch_size = batch_size
    config.train.steps = steps
    config.update_from_flattened_dict(recipe.changes)
    return config


def first_positions(kind: str, config: ConfigDict, position: jax.Array) -> jax.Array:
    """The position embeddings `[places, width]` before the first step."""
    if kind == "random":
        return position
    if kind == "small":
        return 0.02 * position
    times = [np.zeros(1), *token_times(SEGMENTS, *lag_tokens(config), HALF / clock.FRAME_RATE)]
    times.insert(2, np.zeros(1))  # [OFF] picture [MOD] sound
    width = position.shape[1]
    wavelength = np.geomspace(0.16, 20, width // 2)  # seconds
    angle = 2 * np.pi * np.concatenate(times)[:, None] / wavelength
    return jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], axis=1), jnp.float32)


def draw(key: jax.Array, records: int, batch: int, classes: jax.Array) -> tuple[jax.Array, ...]:
    """Records, picture and sound starts and targets of a batch, evenly over `classes` (a mask) and valid starts."""
    keys = jax.random.split(key, 4)
    record = jax.random.randint(keys[0], (batch,), 0, records)
    target = jax.random.categorical(keys[1], jnp.where(classes, 0.0, -jnp.inf), shape=(batch,))
    offset = jnp.asarray(OFFSETS)[target]
    last = CLIP_FRAMES - CROP
    low = jnp.maximum(0, -(offset // HALF))
    high = (jnp.minimum(features.covered_frames() - CROP, last - offset)) // HALF
    start = low + jnp.floor(jax.random.uniform(keys[2], (batch,)) * (high - low + 1)).astype(jnp.int32)
    jitter = jax.random.randint(keys[3], (batch,), -1, 2)
    return record, start, jnp.clip(HALF * start + offset + jitter, 0, last), target


def train(
    recipe: Recipe, data: Tokens, held_out: Tokens, stage1: ConfigDict, *, seed: int, steps: int, batch: int, every: int
) -> list[tuple[int, float, float]]:
    """Steps, held-out loss and accuracy; ends early some steps after the plateau."""
    config = recipe_config(recipe, stage1, batch, steps)
    parts = [SyncHead]
    if recipe.auxiliary:
        parts.append(LagProfile)
    from flax import nnx

    built = [states.take_apart(part(config.model, nnx.Rngs(seed + i))) for i, part in enumerate(parts)]
    params = {f"{i}.{name}": array for i, (_, arrays) in enumerate(built) for name, array in arrays.items()}
    axes = {f"{i}.{name}": axis for i, (plan, _) in enumerate(built) for name, axis in plan.axes().items()}
    params["0.position"] = first_positions(recipe.position, config.model, params["0.position"])
    optimizer, _ = make_optimizer(config, axes)

    def logits(params: dict, i: int, seen: jax.Array, heard: jax.Array, **how: object) -> jax.Array:
        own = {name.partition(".")[2]: array for name, array in params.items() if name.startswith(f"{i}.")}
        return built[i][0].build(own)(seen, heard, **how)

    def loss(params: dict, seen: jax.Array, heard: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
        given = [logits(params, 0, seen, heard, key=key)]
        given += [logits(params, 1, seen, heard)] if recipe.auxiliary else []
        return sum(optax.softmax_cross_entropy_with_integer_labels(part, target).mean() for part in given)

    @jax.jit
    def several(params: dict, opt_state: object, data: Tokens, first: jax.Array) -> tuple:
        def one(carry: tuple, step: jax.Array) -> tuple:
            params, opt_state = carry
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
            far = jnp.abs(jnp.arange(len(OFFSETS)) - len(OFFSETS) // 2) % 10 == 0
            # Every class joins at its own step, from the coarsest grid to the finest.
            joins = jnp.where(far, 0, recipe.curriculum * jnp.asarray(_order()))
            record, start, sound, target = draw(keys[0], len(data.visual), batch, step >= joins)
            grads = jax.grad(loss)(params, *data.crops(record, start, sound), target, keys[1])
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(one, (params, opt_state), first + jnp.arange(every))[0]

    questions = draw(jax.random.key(2401), len(held_out.visual), 300, jnp.ones(len(OFFSETS), bool))

    @jax.jit
    def test(params: dict, held_out: Tokens) -> tuple[jax.Array, jax.Array]:
        record, start, sound, target = questions
        given = logits(params, 0, *held_out.crops(record, start, sound))
        loss = optax.softmax_cross_entropy_with_integer_labels(given, target).mean()
        return loss, (jnp.abs(given.argmax(-1) - target) <= 1).mean()

    curve, opt_state, left = [], optimizer.init(params), None
    for step in range(0, steps + 1, every):
        value, near = map(float, test(params, held_out))
        curve.append((step, value, near))
        left = step if left is None and value < LEFT else left
        if left is not None and step >= left + 4 * every:
            break
        params, opt_state = several(params, opt_state, data, step)
    return curve


def _order() -> np.ndarray:
    """When each class joins the curriculum, a share of its length: the half points first, then the rest."""
    middle = np.abs(np.arange(len(OFFSETS)) - len(OFFSETS) // 2)
    return np.select([middle % 10 == 0, middle % 5 == 0], [0.0, 0.5], 1.0)


def left_at(curve: list[tuple[int, float, float]]) -> int | None:
    """The first step whose held-out loss is below ln 21 - 0.1."""
    return next((step for step, loss, _ in curve if loss < LEFT), None)


def report(results: dict, out: Path, settings: dict) -> None:
    """Curves and numbers on disk."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5), dpi=100)
    for name, entry in results.items():
        for number, curve in enumerate(entry["curves"]):
            steps, losses, _ = zip(*curve, strict=True)
            color = f"C{list(results).index(name)}"
            axis.plot(steps, losses, color=color, lw=1.2, label=None if number else name)
    axis.axhline(LEFT, color="black", lw=0.8, ls=":")
    axis.set(xlabel="step", ylabel="held-out loss", ylim=(1, 5))
    axis.legend(fontsize=7, ncol=2)
    figure.tight_layout()
    figure.savefig(out / "plateau.png")
    write_json(out / "plateau.json", {"settings": settings, "results": results})


def table(results: dict) -> str:
    """The recipes with the steps until they left, as Markdown."""
    lines = ["| recipe | what | steps to leave, a seed each | lowest loss seen |", "| --- | --- | --- | --- |"]
    for name, entry in results.items():
        ends = [left_at(curve) or f"> {curve[-1][0]}" for curve in entry["curves"]]
        best = min(loss for curve in entry["curves"] for _, loss, _ in curve)
        lines.append(f"| {name} | {entry['why']} | {', '.join(map(str, ends))} | {best:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, required=True, help="what make quickstart has left, such as runs/quickstart"
    )
    parser.add_argument("--scratch", type=Path, help="for the features of the sound; the run's folder by default")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--clips", type=int, default=0, help="of the training clips; 0 takes all")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--every", type=int, default=25, help="steps between two looks at the held-out clips")
    given = parser.parse_args()
    scratch = given.scratch or given.run
    jax.config.update("jax_default_prng_impl", "rbg")  # dropout draws as many numbers as the head computes
    data, stage1 = load(given.run, "train", scratch, given.clips)
    held_out, _ = load(given.run, "valid", scratch)
    results, path = {}, given.out / "plateau.json"
    given.out.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        results = json.loads(path.read_text())["results"]
    settings = {"batch_size": given.batch_size, "steps": given.steps, "device": jax.devices()[0].device_kind,
                "clips": len(data.visual), "held_out": len(held_out.visual)}  # fmt: skip
    for name in given.recipes:
        entry = results.setdefault(name, {"why": RECIPES[name].why, "curves": []})
        for seed in range(len(entry["curves"]), given.seeds):
            began = time.monotonic()
            curve = train(RECIPES[name], data, held_out, stage1, seed=seed, steps=given.steps, batch=given.batch_size,
                          every=given.every)  # fmt: skip
            entry["curves"].append(curve)
            seconds = time.monotonic() - began
            print(f"{name}, seed {seed}: left at {left_at(curve)} of {curve[-1][0]} steps, {seconds:.0f} s", flush=True)
            report(results, given.out, settings)
    print(table(results))


if __name__ == "__main__":
    main()
