"""`python -m synchformer_jax.train --config configs/X.py [--config.field=value] --workdir DIR`."""

import os
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from synchformer_jax.errors import UserError, exit_on_user_error
from synchformer_jax.train import distributed
from synchformer_jax.train.command_line import parse, require_config
from synchformer_jax.train.interrupt import Interrupted
from synchformer_jax.train.loop import fit

CONFIG = config_flags.DEFINE_config_file("config", None, "What to train; fields follow as --config.FIELD=VALUE.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go; an existing one goes on.")
PROFILE = flags.DEFINE_bool("profile", False, "Also write an XProf trace of a few steps to WORKDIR/profile.")
distributed.define_flags()


def main(_: list[str]) -> None:
    """Runs the training that the flags describe."""
    config = require_config(CONFIG.value)
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


@exit_on_user_error()
def _command_line() -> None:
    absl_logging.set_verbosity(absl_logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    _command_line()
