"""Errors that a person can mend."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Something outside the program is wrong; the message names it and says what to do.

    Command lines print the message alone and exit with status 2; a traceback would tell its reader nothing.
    """


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into its message on stderr and exit status 2; for the outermost layer of a command.

    Serves as a context manager and as a decorator: `with exit_on_user_error(): main()` or
    `@exit_on_user_error()` above a function. Anything else passes through untouched.

    Raises:
        SystemExit: with code 2, in place of the `UserError`.
    """
    try:
        yield
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
