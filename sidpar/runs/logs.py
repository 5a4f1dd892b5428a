"""The logs of a run: rank 0 on the console, every rank in `RUN/logs/rank_N.log` with level and step."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

FOLDER = "logs"
_root = logging.getLogger("sidpar")
_LOGGERS = (_root, logging.getLogger("py.warnings"))


def log_to_console(rank: int) -> None:
    """Rank 0's words on the standard output, beside the progress bar; of the others nothing."""
    _close()
    _root.setLevel(logging.DEBUG)
    for logger in _LOGGERS:
        logger.propagate = False
        logger.addHandler(_Console() if rank == 0 else logging.NullHandler())


def log_to_file(folder: Path, rank: int, step: Callable[[], int]) -> str | None:
    """And this rank's words in a file of its own, with warnings of every library; `step` tells the steps done. What is
    wrong with the file, if anything, is for all ranks to know."""
    path = folder / FOLDER / f"rank_{rank}.log"
    try:
        path.parent.mkdir(exist_ok=True)
        handler = logging.FileHandler(path)
    except OSError as error:
        return f"{path} cannot be written ({error.strerror}): make the folder writable, or choose another run.dir"
    _root.setLevel(logging.DEBUG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s step %(step)d  %(message)s"))
    handler.addFilter(_with_step(step))
    logging.captureWarnings(True)
    for logger in _LOGGERS:
        logger.addHandler(handler)
    return None


@contextmanager
def closing_logs() -> Iterator[None]:
    """Nothing more is said afterwards."""
    try:
        yield
    finally:
        _close()


def _close() -> None:
    logging.captureWarnings(False)
    for logger in _LOGGERS:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()


def _with_step(step: Callable[[], int]) -> Callable[[logging.LogRecord], bool]:
    def add(record: logging.LogRecord) -> bool:
        record.step = step()
        return True

    return add


class _Console(logging.Handler):
    """What ends a run is said on the standard error, by whoever shows the exception. What libraries say to those who
    call them, that something will change, is in the files alone."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        of_libraries = record.name == "py.warnings" and ("FutureWarning" in message or "DeprecationWarning" in message)
        if record.levelno < logging.ERROR and not of_libraries:
            tqdm.write(self.format(record))
