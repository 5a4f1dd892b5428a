"""The exceptions that are the user's to mend."""

from pathlib import Path


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
