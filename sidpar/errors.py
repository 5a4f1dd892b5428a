"""The one exception that is the user's to mend."""


class UsageError(ValueError):
    """A setting, a topology, a dataset or a batch that does not fit. The text says what, the numbers, what to change.

    The command line shows it as one line without a traceback; any other exception is our bug, or the machine's.
    """
