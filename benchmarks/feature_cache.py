"""How much faster the sync stage trains from cached visual features than from frames.

`python -m benchmarks.feature_cache --run runs/quickstart` takes turns between both on the clips and the stage 1 that
`make quickstart` has left there, in one process, and prints clips a second, bytes on disk, and the operations of the
full-size model for a clip either way.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np

from configs.quickstart import get_config as quickstart
from configs.sync import get_config as published
from synchformer_jax.data import features, pipeline
from synchformer_jax.train import cache, initial, mesh, state, step


class Way:
    """One of the two ways to train: from frames, or from features where there is a folder of them."""

    def __init__(self, run: Path, folder: str, batch_size: int):
        config = quickstart("sync")
        config.init.avclip = str(run / "stage1")
        config.data.update({"train": str(run / "records"), "visual_features": folder, "batch_size": batch_size})
        blueprint, arrays = initial.make_initial(config)
        self.setup = state.prepare(config, mesh.make_mesh(config), blueprint)
        self.state, self.frozen = state.start(self.setup, arrays)
        self.call = step.make_train_step(self.setup)
        self.batches = pipeline.batches(config, "train", train=True)

    def steps(self, count: int) -> tuple[float, float]:
        """Seconds for a step with its batch, and for the step alone."""
        whole, alone = time.monotonic(), 0.0
        for _ in range(count):
            batch = next(self.batches)
            began = time.monotonic()
            inputs = mesh.put_batch(self.setup.mesh, step.device_fields(batch))
            self.state, metrics = self.call(self.state, self.frozen, inputs)
            jax.block_until_ready(metrics)
            alone += time.monotonic() - began
        return (time.monotonic() - whole) / count, alone / count


def main() -> None:
    """Runs what the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, required=True, help="what make quickstart has left, such as runs/quickstart"
    )
    parser.add_argument("--features", help="a cache of its stage 1; made in the run's folder where there is none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each way in a round")
    parser.add_argument("--batch_size", type=int, default=32)
    given = parser.parse_args()
    folder = given.features
    if not folder:
        folder = str(given.run / "features")
        began = time.monotonic()
        cache.write_features(given.run / "stage1", str(given.run / "records"), ["train"], folder)
        print(f"looked for what is missing and wrote it in {time.monotonic() - began:.0f} s")
    header = features.read_header(folder, "train")
    size = sum(map(header.bytes, range(header.shards)))
    ways = {"frames": Way(given.run, "", given.batch_size), "features": Way(given.run, folder, given.batch_size)}
    seconds = {name: [] for name in ways}
    for way in ways.values():
        way.steps(2)
    for _ in range(given.rounds):
        for name, way in ways.items():
            seconds[name].append(way.steps(given.steps))
    for way in ways.values():
        way.batches.close()
    print(f"{jax.devices()[0].device_kind}, batches of {given.batch_size}; medians of {given.rounds} rounds in turn")
    print(f"{header.records} clips, {size / header.records / 1e3:.1f} kB a clip and view")
    for name, pairs in seconds.items():
        whole, alone = np.median(pairs, axis=0)
        print(f"from {name}: {given.batch_size / whole:.1f} clips/s, the step alone {given.batch_size / alone:.1f}")
    ratios = np.array(seconds["frames"]) / np.array(seconds["features"])
    print(f"ratio {np.median(ratios[:, 0]):.1f} ({ratios[:, 0].min():.1f} to {ratios[:, 0].max():.1f}), the step alone "
          f"{np.median(ratios[:, 1]):.1f}")  # fmt: skip
    full = published()
    both = []
    for folder in ("", "features"):
        full.data.visual_features = folder
        trained = tuple(name for name in state.hollow_model(full).shapes() if name.startswith("head"))
        both.append(step.flops_per_clip(full, trained) / 1e12)
    print(
        f"full size: {both[0]:.2f} TFLOP a clip from frames, {both[1]:.3f} from features, ratio {both[0] / both[1]:.1f}"
    )


if __name__ == "__main__":
    main()
