"""The two ways in which a run ends badly on purpose."""


class InputError(ValueError):
    """Bad input from the user: one line that says what was expected, what came and what to do. Exit code 2."""


class CheckFailed(Exception):
    """A check that ran to its end and found something wrong. Exit code 1."""
