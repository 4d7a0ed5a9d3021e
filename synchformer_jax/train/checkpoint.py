"""Checkpoints: parameters, optimiser, data iterator and config in one atomic step of Orbax.

`WORKDIR/checkpoints/STEP` appears under its name only when whole; what a killed run leaves half-written has another
name and goes away at the next start. Kept are the last few and the best.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import nnx
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN, PreservationPolicy

from synchformer_jax.errors import UserError
from synchformer_jax.files import require_disk, write_json
from synchformer_jax.train import config as configs
from synchformer_jax.train import state as states
from synchformer_jax.train.state import Arrays, Run, TrainState

WRITING_FAILED = (OSError, ValueError)  # TensorStore tells of a full disk by the latter
BEST_METRIC = {"segment_avclip": "precision", "sync": "accuracy", "synchronizability": "accuracy"}


class _Named(PreservationPolicy):
    """Keeps the step that `best` names."""

    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [info.step == self.best for info in checkpoints]


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, workdir: str | Path, config: ConfigDict):
        self.folder = Path(workdir).absolute() / "checkpoints"
        self._named = _Named()
        policy = AnyPreservationPolicy([LatestN(n=config.train.keep), self._named])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def save(
        self,
        run: Run,
        state: TrainState,
        frozen: Arrays,
        progress: dict[str, Any],
        best: int | None = None,
    ) -> None:
        """Starts to write a checkpoint; the arrays are copied before this returns, the rest goes on beside training.

        Args:
            run, state, frozen: of the run.
            progress: JSON values: the data iterator's state and what the loop remembers.
            best: the step to keep besides the last ones.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        arrays = _arrays(state, frozen)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            config=ocp.args.JsonSave(configs.to_dict(run.config)),
            progress=ocp.args.JsonSave(progress),
        )
        step = int(state.step)
        try:
            if step in self.manager.all_steps():
                return
            self.require_room(state, frozen)
            self._named.best = best
            self.manager.save(step, args=items, force=True)
        except WRITING_FAILED as error:
            raise _unwritable(self.folder, error) from error

    def require_room(self, state: TrainState, frozen: Arrays) -> None:
        """Checks that the disk has room for one more checkpoint.

        Raises:
            UserError: it has not.
        """
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(_arrays(state, frozen)))
        require_disk(self.folder, size // jax.process_count())

    def finish(self) -> None:
        """Waits until all is on disk.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.manager.wait_until_finished()
        except WRITING_FAILED as error:
            raise _unwritable(self.folder, error) from error

    def close(self) -> None:
        """Lets go of the folder."""
        self.manager.close()

    def latest(self) -> int | None:
        """The last finished step that is on disk."""
        return self.manager.latest_step()

    def restore(self, run: Run, step: int) -> tuple[TrainState, Arrays, dict[str, Any]]:
        """The state, the frozen parameters and the progress of a step, on the devices of this run's mesh."""
        shardings = run.state_shardings()
        abstract_opt, abstract_memory = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            (jax.eval_shape(run.optimizer.init, run.abstract_params()), run.abstract_memory()),
            (shardings.opt_state, shardings.memory),
        )
        model = {states.name_of(path): variable.get_value() for path, variable in run.blueprint.variables}
        abstract_model = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=run.sharding(name))
            for name, leaf in model.items()
        }
        abstract = {"model": abstract_model, "opt_state": abstract_opt}
        if abstract_memory:
            abstract["memory"] = abstract_memory
        restored = self.manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract),
                progress=ocp.args.JsonRestore(),
            ),
        )
        params, frozen = states.split_frozen(restored["state"]["model"], run.config.freeze)
        count = jax.device_put(np.int32(step), shardings.step)
        # Some backends hand out restored buffers that are also held elsewhere; the step donates its state.
        state = TrainState(count, params, restored["state"]["opt_state"], restored["state"].get("memory", {}))
        return jax.tree.map(lambda leaf: leaf.copy(), state), frozen, restored["progress"]


def _arrays(state: TrainState, frozen: Arrays) -> dict[str, Any]:
    """All arrays of a checkpoint."""
    arrays = {"model": {**frozen, **state.params}, "opt_state": state.opt_state}
    return arrays | ({"memory": state.memory} if state.memory else {})


def _unwritable(folder: Path, error: Exception) -> UserError:
    return UserError(f"No checkpoint can be written to {folder}: {error}. Free some space, then start again to go on.")


def write_best(workdir: str | Path, best: dict[str, float]) -> None:
    """Notes in `WORKDIR/best.json` the best step so far and its metrics."""
    write_json(Path(workdir) / "best.json", best, indent=1)


def steps(workdir: str | Path) -> list[int]:
    """The steps whose checkpoints are on disk and whole, ascending."""
    folder = Path(workdir) / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []


def saved_config(workdir: str | Path, step: int) -> ConfigDict:
    """The config a checkpoint was written with."""
    return configs.from_dict(_json_item(workdir, step, "config"))


def saved_progress(workdir: str | Path, step: int) -> dict[str, Any]:
    """What the loop remembered at a checkpoint."""
    return _json_item(workdir, step, "progress")


def _json_item(workdir: str | Path, step: int, name: str) -> dict[str, Any]:
    path = Path(workdir) / "checkpoints" / str(step) / name / "metadata"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"The checkpoint {path.parent.parent} cannot be read: {error}. Take another step.") from error


def choose_step(workdir: str | Path, step: int | None = None) -> int:
    """The step asked for, else the best, else the last.

    Raises:
        UserError: there is none.
    """
    there = steps(workdir)
    if not there:
        raise UserError(
            f"{workdir} holds no checkpoints. Give the --workdir of a run of python -m synchformer_jax.train."
        )
    if step is None:
        best = Path(workdir) / "best.json"
        step = json.loads(best.read_text())["step"] if best.is_file() else there[-1]
        return step if step in there else there[-1]
    if step not in there:
        raise UserError(f"{workdir} has no checkpoint of step {step}. It has: {', '.join(map(str, there))}.")
    return step


def load_arrays(workdir: str | Path, step: int | None = None) -> tuple[dict[str, np.ndarray], ConfigDict, int]:
    """The parameters of a run by name, in host memory, with its config and the step they are from.

    Raises:
        UserError: there is no such checkpoint.
    """
    step = choose_step(workdir, step)
    config = saved_config(workdir, step)
    path = Path(workdir).absolute() / "checkpoints" / str(step) / "state"
    # The handler itself, since a checkpointer around it warns of metadata that a manager keeps one level up.
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        shapes = handler.metadata(path).tree["model"]
        restored = handler.restore(
            path,
            args=ocp.args.PyTreeRestore(
                item={"model": dict.fromkeys(shapes, 0)},
                restore_args={"model": {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in shapes}},
                partial_restore=True,
            ),
        )
    return restored["model"], config, step


def save_arrays(workdir: str | Path, arrays: Arrays, config: ConfigDict) -> None:
    """Writes parameters by name as step 0 of a run of this config, for `load_arrays` and all that go by it.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(workdir).absolute()
    items = ocp.args.Composite(
        state=ocp.args.StandardSave({"model": arrays}),
        config=ocp.args.JsonSave(configs.to_dict(config)),
        progress=ocp.args.JsonSave({}),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(configs.to_dict(config), indent=1))
        with ocp.CheckpointManager(folder / "checkpoints") as manager:
            manager.save(0, args=items, force=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def load_model(workdir: str | Path, step: int | None = None) -> tuple[nnx.Module, ConfigDict]:
    """The model of a run and its config.

    Args:
        workdir: of `python -m synchformer_jax.train`.
        step: None takes the best, or the last where none was evaluated.

    Raises:
        UserError: there is no such checkpoint, or it does not fit the model's code.
    """
    arrays, config, step = load_arrays(workdir, step)
    blueprint = states.hollow_model(config)
    fresh = {name: np.empty(shape, np.float32) for name, shape in blueprint.shapes().items()}
    logging.info("%s: step %d", workdir, step)
    return blueprint.build(states.take_over(fresh, arrays, f"{workdir} at step {step}", tuple(fresh))), config
