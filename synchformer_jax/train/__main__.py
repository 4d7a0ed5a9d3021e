"""`python -m synchformer_jax.train --config configs/X.py [--config.field=value] --workdir DIR`."""

import difflib
import os
import sys

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from synchformer_jax.errors import UserError, exit_on_user_error
from synchformer_jax.train.interrupt import Interrupted
from synchformer_jax.train.loop import fit

CONFIG = config_flags.DEFINE_config_file("config", None, "What to train; fields follow as --config.FIELD=VALUE.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go; an existing one goes on.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes: finds the others by jax.distributed (TPU, Slurm, Open MPI)."
)


def main(arguments: list[str]) -> None:
    """Runs the training that the flags describe."""
    if len(arguments) > 1:
        raise UserError(f"{arguments[1]!r} is not a flag. Fields are given as --config.FIELD=VALUE, after --config.")
    config = CONFIG.value
    if config is None:
        raise UserError("There is no --config. Give one of the files in configs/, such as --config configs/sync.py.")
    if not hasattr(config, "stage"):
        raise UserError(
            f"The config {CONFIG.name} cannot be read: {_reason(config)}. "
            "Give --config the path of a file like those in configs/."
        )
    if not WORKDIR.value:
        raise UserError("There is no --workdir. Give a folder for checkpoints and metrics.")
    if DISTRIBUTED.value:
        jax.distributed.initialize()
    try:
        fit(config, WORKDIR.value)
    except Interrupted as stop:
        command = " ".join(["python -m synchformer_jax.train", *sys.argv[1:]])
        print(f"Stopped after step {stop.step}; it is saved. To go on, give the same command again:\n  {command}")
        sys.stdout.flush()
        raise SystemExit(stop.code) from None


def _reason(broken: object) -> str:
    """What config_flags hides in the object that it gives for a file that it cannot load."""
    try:
        broken.stage  # noqa: B018
    except Exception as error:
        return str(error).strip().splitlines()[0]
    return "unknown"


def _parse(arguments: list[str]) -> list[str]:
    """Flags, with every mistake in them told as an error for people."""
    try:
        return flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"{error}. The flags are --config, --config.FIELD, --workdir and --distributed.") from error
    except flags.Error as error:
        raise UserError(
            f"{error}. Put --config FILE before its fields, and give values of the field's kind."
        ) from error
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_field(arguments)) from error


def _unknown_field(arguments: list[str]) -> str:
    config = flags.FLAGS["config"].value
    for argument in arguments:
        if not argument.lstrip("-").startswith("config."):
            continue
        path = argument.lstrip("-").partition("=")[0].split(".")[1:]
        inner, names = config, []
        for depth, name in enumerate(path):
            names = list(inner.keys()) if hasattr(inner, "keys") else []
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                place = ".".join(["config", *path[:depth]])
                hint = f"Did you mean {place}.{near[0]}?" if near else f"{place} has: {', '.join(names)}."
                return f"The config has no field config.{'.'.join(path)}. {hint}"
            inner = inner[name]
    return "The config has no such field. See the file that --config names for its fields."


@exit_on_user_error()
def _command_line() -> None:
    absl_logging.set_verbosity(absl_logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    _command_line()
