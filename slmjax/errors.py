"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence that says what, where, and what to do instead.

    The command line prints it to stderr without a traceback and exits with status 2.
    """
