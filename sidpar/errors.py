"""The exceptions whose message tells the user what to change."""

import traceback
from pathlib import Path

_HERE = Path(__file__).parent


class UsageError(ValueError):
    """A setting, a number of ranks, a dataset or a batch that does not fit. The message says what is wrong, with the
    numbers, and what to change.

    The command line shows it as one line without a traceback; any other exception is a bug or a failure of the machine.
    """


class RunError(RuntimeError):
    """A run that cannot go on: a loss that is NaN, a full disk. The message says what happened, and what to do.

    The command line shows it as one line; the same command resumes the run.
    """


class StorageError(RunError):
    """A file of a run cannot be written: the disk is full, a quota is used up, the folder was removed."""

    def __init__(self, path: Path, error: OSError) -> None:
        reason = error.strerror or str(error)
        super().__init__(
            f"{path} cannot be written ({reason}): free space there, or make the folder writable, and start the same "
            "command again; what the run folder holds is kept"
        )


def reason(error: Exception) -> str:
    """The message of an error in a user's module, with its place: `network.py, line 30: division by zero`."""
    text = " ".join(str(error).split()) or type(error).__name__
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(_HERE) and "site-packages" not in frame.filename
    ]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}: {text}" if own else text
