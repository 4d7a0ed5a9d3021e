"""From a config and a work folder to a trained model; started again, it goes on where it was."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from synchformer_jax.data import pipeline
from synchformer_jax.errors import UserError
from synchformer_jax.files import write_json
from synchformer_jax.models import config as model_configs
from synchformer_jax.train import checkpoint, distributed, initial, roofline
from synchformer_jax.train import config as configs
from synchformer_jax.train import mesh as meshes
from synchformer_jax.train import state as states
from synchformer_jax.train import step as steps
from synchformer_jax.train.bad_steps import BadSteps
from synchformer_jax.train.evaluation import evaluate
from synchformer_jax.train.interrupt import Interrupted, Interrupts
from synchformer_jax.train.metrics_writer import MetricsWriter, Watcher
from synchformer_jax.train.profile import Profile


def fit(config: ConfigDict, workdir: str | Path, *, profile: bool = False) -> dict[str, float]:
    """Trains, evaluates and writes checkpoints and metrics to `workdir`.

    Args:
        config: of the run.
        workdir: its folder; what is there goes on.
        profile: also writes an XProf trace of a few steps to `workdir/profile`.

    Returns:
        The metrics of the last evaluation, empty where there was none.

    Raises:
        UserError: the config cannot be run, `workdir` holds another run, the data fail, or the loss is not finite.
        Interrupted: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    workdir = Path(workdir)
    distributed.require_same_config(config)
    configs.validate(config, jax.device_count(), jax.process_count())
    model_configs.validate(config.model)
    there = checkpoint.steps(workdir)
    if there:
        configs.require_same_run(checkpoint.saved_config(workdir, there[-1]), config, str(workdir))
        progress = checkpoint.saved_progress(workdir, there[-1])
        if not progress:
            raise UserError(
                f"{workdir} holds converted weights, which no run can go on from. Give another --workdir, and this "
                "folder as --config.init.avclip or --config.init.sync."
            )
        if there[-1] >= config.train.steps or progress.get("stopped_early"):
            why = "stopped early, its metric no longer rose" if progress.get("stopped_early") else "is finished"
            print(f"The run in {workdir} {why}: {there[-1]} of {config.train.steps} steps.")
            return progress.get("last_metrics", {})
    return Training(config, workdir, profile).run()


@dataclasses.dataclass
class Progress:
    """What the loop remembers besides parameters."""

    iterator: Any = None
    best: dict[str, float] = dataclasses.field(default_factory=dict)  # its step, and the metrics there
    evaluations_since_best: int = 0
    stopped_early: bool = False
    last_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    bad_steps: dict[str, Any] = dataclasses.field(default_factory=dict)
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)  # steps that no report has yet


class Training:
    """One process's part of a run, from its first step in this process to its last."""

    def __init__(self, config: ConfigDict, workdir: Path, profile: bool = False):
        self.config, self.workdir, self.main = config, workdir, jax.process_index() == 0
        self.batches = pipeline.batches(config, "train", train=True)
        if config.train.eval_every:
            pipeline.batches(config, "valid", train=False)  # says now what is wrong with the held-out clips
        self.checkpoints = checkpoint.Checkpoints(workdir, config)
        self.mesh = meshes.make_mesh(config)
        self.progress = Progress()
        latest = self.checkpoints.latest()
        if latest is None:
            blueprint, arrays = initial.make_initial(config)
            self.setup = states.prepare(config, self.mesh, blueprint)
            self.state, self.frozen = states.start(self.setup, arrays)
        else:
            self.setup = states.prepare(config, self.mesh, states.hollow_model(config))
            self.state, self.frozen, progress = self.checkpoints.restore(self.setup, latest)
            self.progress = Progress(**progress)
        self.step = latest or 0
        self.checkpoints.require_room(self.state, self.frozen)
        initial.check_features(config, {**self.frozen, **self.state.params})
        if latest is not None:
            self.batches.set_state(self.progress.iterator)
        settings = config.train
        self.bad_steps = BadSteps(workdir, settings.on_bad_step, settings.spike_factor, jax.process_index())
        self.bad_steps.set_state(self.progress.bad_steps)
        self.profile = Profile(workdir / "profile") if profile else None
        self.train_step, self.eval_step = steps.make_train_step(self.setup), steps.make_eval_step(self.setup)
        self.clip_flops = steps.flops_per_clip(config, self.setup.trained)
        self.writer = self.watcher = None
        if self.main:
            write_json(workdir / "config.json", configs.to_dict(config), indent=1)
            self.writer = MetricsWriter(workdir, self.step, config)
            if self.progress.best:  # a killed run may have named a step that it did not come to save
                checkpoint.write_best(workdir, self.progress.best)

    def run(self) -> dict[str, float]:
        """All steps that are left."""
        settings = self.config.train
        if self.main:
            self.watcher = Watcher(self.config.stage, settings.steps, self.step)
            trained = sum(array.size for array in self.state.params.values())
            kept = sum(array.size for array in self.frozen.values())
            begin = f"continues after step {self.step}" if self.step else "starts"
            self.say(
                f"{self.config.stage} {begin}: {trained:,} parameters learn, {kept:,} are frozen; "
                f"{jax.device_count()} {jax.devices()[0].platform} device(s), work folder {self.workdir}"
            )
        window = Window(self.step, self.progress.window)
        try:
            with Interrupts(self.say) as interrupts:
                while self.step < settings.steps and not self.progress.stopped_early:
                    batch = self.next_batch(window, interrupts)
                    if batch is not None:
                        self.one_step(batch, window)
                    if interrupts.after(self.step):
                        self.check(window.pop())
                        self.save(window)
                        self.checkpoints.finish()
                        raise Interrupted(interrupts.number, self.step)
        finally:
            self.close()
        return self.progress.last_metrics

    def next_batch(self, window: "Window", interrupts: Interrupts) -> dict[str, np.ndarray] | None:
        """The next batch; None where a signal has ended the loader's processes before us."""
        before, began = self.batches.get_state(), time.monotonic()
        try:
            batch = next(self.batches)
        except UserError:
            raise
        except Exception:
            if not (interrupts.number or interrupts.several):
                raise
            self.progress.iterator = before
            if not interrupts.several:
                return None
            # The other processes wait for this one's part of the steps up to the one they agree to stop after.
            self.batches.set_state(before)
            batch = next(self.batches)
        window.waited(time.monotonic() - began)
        self.progress.iterator = self.batches.get_state()
        return batch

    def one_step(self, batch: dict[str, np.ndarray], window: "Window") -> None:
        """Starts a step on the device, then looks at the result of the one before while this one runs."""
        settings = self.config.train
        inputs = meshes.put_batch(self.mesh, steps.device_fields(batch))
        spikes = (np.float32(self.bad_steps.limit(self.step + 1)),) if settings.spike_factor else ()
        if self.profile:
            self.profile.before(self.step + 1)
        self.state, metrics = self.train_step(self.state, self.frozen, inputs, *spikes)
        if self.profile:
            self.profile.after(metrics, self.say)
        self.step += 1
        self.check(window.push(self.step, metrics, batch.get("record")))
        last = self.step == settings.steps
        log = self.step % settings.log_every == 0 or last
        test = (settings.eval_every > 0 and self.step % settings.eval_every == 0) or (settings.eval_every and last)
        save = (settings.checkpoint_every and self.step % settings.checkpoint_every == 0) or last
        if log or test or save:
            self.check(window.pop())
        if log and self.main:
            self.report(window)
        elif self.watcher:
            self.watcher.update(self.step)
        if test:
            began = time.monotonic()
            self.test()
            window.began += time.monotonic() - began  # not the time of these steps
        if save or test:
            self.save(window)
        if last or self.progress.stopped_early:
            self.checkpoints.finish()

    def check(self, results: list[tuple[int, dict[str, float], Any]]) -> None:
        """Stops at a bad step before it gets into a checkpoint, or tells that it was skipped."""
        for step, values, records in results:
            told = self.bad_steps.check(step, values, records)
            if told:
                self.say(told)
        self.progress.bad_steps = self.bad_steps.get_state()

    def report(self, window: "Window") -> None:
        """Means since the last report, on disk and before the eyes."""
        values = window.means(self.config.data.batch_size)
        a_chip = values["clips_per_sec"] * self.clip_flops / jax.device_count()
        values["model_tflops_per_sec"] = a_chip / 1e12
        share = roofline.mfu(a_chip, jax.devices()[0].device_kind)
        values |= {} if share is None else {"mfu": share}
        values |= roofline.memory_in_use()
        self.writer.write(self.step, "train", values)
        shown = ("loss", "accuracy", "grad_norm", "skipped", "clips_per_sec", "mfu", "data_wait")
        self.watcher.line(self.step, {name: values[name] for name in shown if name in values})

    def test(self) -> None:
        """One pass over held-out clips; remembers whether it is the best."""
        limit = self.config.train.eval_batches
        with contextlib.closing(pipeline.batches(self.config, "valid", train=False)) as batches:
            some = itertools.islice(batches, limit or None)
            values, pictures = evaluate(self.setup, self.eval_step, {**self.frozen, **self.state.params}, some)
        self.progress.last_metrics = values
        metric = checkpoint.BEST_METRIC[self.config.stage]
        if values[metric] > self.progress.best.get(metric, -math.inf):
            self.progress.best, self.progress.evaluations_since_best = {"step": self.step, **values}, 0
            if self.main:
                checkpoint.write_best(self.workdir, self.progress.best)
        else:
            self.progress.evaluations_since_best += 1
        patience = self.config.train.patience
        self.progress.stopped_early = bool(patience and self.progress.evaluations_since_best >= patience)
        if self.main:
            self.writer.write(self.step, "valid", values)
            for name, picture in pictures.items():
                self.writer.picture(self.step, f"valid/{name}", picture)
            self.say(f"step {self.step} on held-out clips: " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))
            if self.progress.stopped_early:
                self.say(f"Stopping early: {patience} evaluations without a better {metric}.")

    def save(self, window: "Window") -> None:
        """Starts to write a checkpoint of this step."""
        self.progress.window = window.results
        progress = dataclasses.asdict(self.progress)
        self.checkpoints.save(self.setup, self.state, self.frozen, progress, self.progress.best.get("step"))

    def say(self, text: str) -> None:
        """One line for whoever watches."""
        if self.watcher:
            self.watcher.say(text)

    def close(self) -> None:
        """Leaves folder, files and terminal in order."""
        self.checkpoints.close()
        if self.profile:
            self.profile.close()
        if self.main:
            self.writer.close()
            if self.watcher:
                self.watcher.close()
        close = getattr(self.batches, "close", None)
        if close:
            close()
        logging.flush()


class Window:
    """The steps since the last report: what they gave, and how long they took.

    Args:
        step: the last one done.
        results: of steps since the last report that an earlier process did; their time is not counted.
    """

    def __init__(self, step: int, results: Sequence[dict[str, float]] = ()):
        self.pending: list[tuple[int, dict[str, jax.Array], Any]] = []
        self.results, self.untimed = list(results), len(results)
        self.step, self.wait, self.began = step, 0.0, time.monotonic()

    def push(self, step: int, metrics: dict[str, jax.Array], records: Any) -> list[tuple[int, dict[str, float], Any]]:
        """Takes a step that has just been started; gives the ones before it, which are done or nearly so."""
        done = self.pop()
        self.pending.append((step, metrics, records))
        self.step = step
        return done

    def pop(self) -> list[tuple[int, dict[str, float], Any]]:
        """Waits for all steps and gives their results."""
        done = [
            (step, {k: float(v) for k, v in jax.device_get(metrics).items()}, ids)
            for step, metrics, ids in self.pending
        ]
        self.pending.clear()
        self.results += [values for _, values, _ in done]
        return done

    def waited(self, seconds: float) -> None:
        """Counts time spent on a batch, unless the device was still busy at its end."""
        if not self.pending or self.pending[-1][1]["loss"].is_ready():
            self.wait += seconds

    def means(self, batch_size: int) -> dict[str, float]:
        """Mean metrics, speed and the share of time in which the device waited for data (at most so much); begins anew.

        Of skipped steps only their number counts.
        """
        spent = time.monotonic() - self.began
        good = [result for result in self.results if not result.get("skipped")] or self.results
        values = {name: float(np.mean([result[name] for result in good])) for name in good[0]}
        if "skipped" in values:
            values["skipped"] = sum(result["skipped"] for result in self.results)
        values["learning_rate"] = self.results[-1]["learning_rate"]
        clips = (len(self.results) - self.untimed) * batch_size
        values |= {"clips_per_sec": clips / spent, "data_wait": min(1.0, self.wait / spent)}
        self.results, self.untimed, self.wait, self.began = [], 0, 0.0, time.monotonic()
        return values
