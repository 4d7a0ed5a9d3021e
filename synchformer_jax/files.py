"""Whole files or none: write beside the target, then rename."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synchformer_jax.errors import UserError


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `target` that becomes `target` if the block ends well, and is removed if not.

    The temporary file is hidden and keeps the suffix of `target`, by which writers choose their format.

    Raises:
        UserError: the folder of `target` cannot be made or written, or the disk is full.
    """
    target = Path(target)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.{secrets.token_hex(4)}.tmp{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}. Give a folder on a disk with room for it.") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write_json(target: str | os.PathLike, value: Any, **options: Any) -> None:
    """Writes a value as JSON, whole or not at all.

    Args:
        options: of `json.dumps`.

    Raises:
        UserError: as `atomic_path`.
    """
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(value, **options) + "\n")


def require_disk(folder: str | os.PathLike, needed_bytes: int) -> None:
    """Checks that `folder`'s disk has `needed_bytes` free.

    Raises:
        UserError: it has less.
    """
    there = Path(folder).absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise UserError(
            f"The disk of {folder} has {free / 1e6:,.0f} MB free and about {needed_bytes / 1e6:,.0f} MB are needed. "
            "Free some space or choose a folder on another disk."
        )
