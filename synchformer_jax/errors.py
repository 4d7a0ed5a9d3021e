"""Errors that a person can mend."""


class UserError(Exception):
    """Something outside the program is wrong; the message names it and says what to do.

    Command lines print the message alone and exit with status 2; a traceback would tell its reader nothing.
    """
