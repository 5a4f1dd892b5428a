"""The exceptions that are the user's to mend."""

import traceback
from pathlib import Path

_HERE = Path(__file__).parent


class UsageError(ValueError):
    """A setting, a topology, a dataset or a batch that does not fit. The text says what, the numbers, what to change.

    The command line shows it as one line without a traceback; any other exception is our bug, or the machine's.
    """


class RunError(RuntimeError):
    """A run that cannot go on: a loss that is no number, a disk that is full. The text says what, and what to do.

    The command line shows it as one line; the same command resumes the run.
    """


class StorageError(RunError):
    """A file of a run could not be written: the disk is full, a quota is used up, the folder has gone."""

    def __init__(self, path: Path, error: OSError) -> None:
        reason = error.strerror or str(error)
        super().__init__(
            f"{path} cannot be written ({reason}): free space there, or mend the folder, and start the same command "
            "again; what the run folder holds is kept"
        )


def reason(error: Exception) -> str:
    """What an error in a user's module says, with the line of it: `network.py, line 30: division by zero`."""
    text = " ".join(str(error).split()) or type(error).__name__
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(_HERE) and "site-packages" not in frame.filename
    ]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}: {text}" if own else text
