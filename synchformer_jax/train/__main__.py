"""`python -m synchformer_jax.train --config configs/X.py [--config.field=value] --workdir DIR`."""

import os
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from synchformer_jax.errors import UserError, exit_on_user_error
from synchformer_jax.train import distributed
from synchformer_jax.train.interrupt import Interrupted
from synchformer_jax.train.loop import fit

CONFIG = config_flags.DEFINE_config_file("config", None, "What to train; fields follow as --config.FIELD=VALUE.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go; an existing one goes on.")
PROFILE = flags.DEFINE_bool("profile", False, "Also write an XProf trace of a few steps to WORKDIR/profile.")
distributed.define_flags()

_KEPT = "Configuration is not available because of an earlier failure to load: Failed loading config file"


def main(arguments: list[str]) -> None:
    """Runs the training that the flags describe."""
    if len(arguments) > 1:
        raise UserError(f"{arguments[1]!r} is not a flag. Fields are given as --config.FIELD=VALUE, after --config.")
    config = CONFIG.value
    if config is None:
        raise UserError("There is no --config. Give one of the files in configs/, such as --config configs/sync.py.")
    try:
        config.stage  # noqa: B018 config_flags keeps a file's failure until someone looks
    except (OSError, AttributeError) as error:
        reason = " ".join(str(error).split()).removeprefix(_KEPT).strip(": ")
        raise UserError(f"The config cannot be read: {reason}. Give a file like those in configs/.") from error
    if not WORKDIR.value:
        raise UserError("There is no --workdir. Give a folder for checkpoints and metrics.")
    distributed.join_by_flags()
    try:
        fit(config, WORKDIR.value, profile=PROFILE.value)
    except Interrupted as stop:
        command = " ".join(["python -m synchformer_jax.train", *sys.argv[1:]])
        print(f"Stopped after step {stop.step}; it is saved. To go on, give the same command again:\n  {command}")
        sys.stdout.flush()
        raise SystemExit(stop.code) from None
    except Exception as error:
        distributed.end_all(error)
        raise


def _parse(arguments: list[str]) -> list[str]:
    """Flags, with every mistake in them told as an error for people."""
    try:
        return flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        raise UserError(
            f"{error}. The flags are --config, --config.FIELD, --workdir, --distributed and --profile; see --help."
        ) from error
    except flags.Error as error:
        raise UserError(
            f"{error}. Put --config FILE before its fields, and give values of the field's kind."
        ) from error
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_field(arguments, error)) from error


def _unknown_field(arguments: list[str], error: Exception) -> str:
    """`error` is config_flags' own, whose text begins with the quoted name of the part that is not there."""
    text = error
    while isinstance(text, Exception):
        text = text.args[0] if text.args else ""
    name, _, hint = str(text).partition("\n")
    name = name.strip("\"'")
    given = [word.lstrip("-").partition("=")[0] for word in arguments if word.lstrip("-").startswith("config.")]
    field = next((path for path in given if name in path.split(".")), f"config.{name}")
    return f"The config has no field {field}. {hint or 'See the file that --config names for its fields.'}"


@exit_on_user_error()
def _command_line() -> None:
    absl_logging.set_verbosity(absl_logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    _command_line()
