"""Flags and config files of the commands that take `--config`; every mistake in them is told for people."""

from absl import flags
from ml_collections import ConfigDict

from synchformer_jax.errors import UserError

_KEPT = "Configuration is not available because of an earlier failure to load: Failed loading config file"


def require_config(config: ConfigDict | None) -> ConfigDict:
    """The value of a `--config` flag.

    Raises:
        UserError: the flag is not given, or its file cannot be read.
    """
    if config is None:
        raise UserError("There is no --config. Give one of the files in configs/, such as --config configs/sync.py.")
    try:
        config.stage  # noqa: B018 config_flags keeps a file's failure until someone looks
    except (OSError, AttributeError) as error:
        reason = " ".join(str(error).split()).removeprefix(_KEPT).strip(": ")
        raise UserError(f"The config cannot be read: {reason}. Give a file like those in configs/.") from error
    return config


def parse(arguments: list[str]) -> list[str]:
    """Reads the flags; for `flags_parser` of `absl.app.run`.

    Raises:
        UserError: a flag or a field does not exist, or has no such value.
    """
    try:
        rest = flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"{error}. --help names the flags; fields of the config are --config.FIELD=VALUE.") from error
    except flags.Error as error:
        raise UserError(
            f"{error}. Put --config FILE before its fields, and give values of the field's kind."
        ) from error
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_field(arguments, error)) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag. Fields are given as --config.FIELD=VALUE, after --config.")
    return rest


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
