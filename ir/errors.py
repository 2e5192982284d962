"""The base of every error that Planish raises on purpose."""


class PlanishError(Exception):
    """A failure with a cause the user can act on.

    The message is one paragraph: what was found, where, and what would work. The command line
    prints it without a traceback and exits with `exit_code`. Subclasses stand beside the code
    that raises them.
    """

    exit_code = 2
