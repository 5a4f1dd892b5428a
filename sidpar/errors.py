"""The one exception that is the user's to mend, and the one that is the disk's."""

from pathlib import Path


class UsageError(ValueError):
    """A setting, a topology, a dataset or a batch that does not fit. The text says what, the numbers, what to change.

    The command line shows it as one line without a traceback; any other exception is our bug, or the machine's.
    """


class StorageError(OSError):
    """A file of a run could not be written: the disk is full, a quota is used up, the folder has gone."""

    def __init__(self, path: Path, error: OSError) -> None:
        reason = error.strerror or str(error)
        super().__init__(
            f"{path} cannot be written ({reason}): free space there, or mend the folder, and start the same command "
            "again; what the run folder holds is kept"
        )
