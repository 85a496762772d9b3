"""The one error a user is meant to read."""


class InputError(Exception):
    """What the user gave cannot be used.

    The message names the file or key, what is wrong with it and the remedy, in one line; several faults are
    listed one a line. Scripts print it and exit with status 2, without a traceback.
    """
