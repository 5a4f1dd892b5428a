"""Batches of image files, decoded by the workers of a DataLoader while the network trains."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sidpar.data.decoding import Paths, read_images
from sidpar.errors import UsageError

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that the main process handles; a launcher or a terminal sends them to its workers as well."""


class Reader:
    """Reads images by row.

    Args:
        size: height and width that images are resized to.
        workers: processes that read batches in advance, one batch each at a time; 0 for none. They start at the first
            batch and stay.
    """

    def __init__(self, paths: list[str], size: int, workers: int) -> None:
        self.size = size
        self._files = _Batches(Paths(paths), size)
        self._order = _Order()
        self._turn = 0
        self._loader: DataLoader[Tensor | str] = DataLoader(
            self._files,
            batch_size=None,  # an item is a whole batch
            sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            # A fork, not a new interpreter: it starts in milliseconds, and needs nothing of the user's script.
            multiprocessing_context="fork" if workers > 0 else None,
            worker_init_fn=partial(_follow, os.getpid()) if workers > 0 else None,
            generator=torch.Generator(),  # or each epoch would take a number from torch's own
        )

    def read(self, rows: list[int]) -> Tensor:
        """These images [B, 3, size, size] in uint8, read in the caller's process."""
        return _checked(self._files[rows])

    def batches(self, batches: list[list[int]]) -> Iterator[Tensor]:
        """The same for each list of rows. Ends an earlier iteration that was not finished."""
        self._turn += 1
        turn = self._turn
        self._order.batches = batches
        # Workers are born with these signals blocked: no moment is left in which one could be ended by them.
        with _blocked():
            iterator = iter(self._loader)
        for _ in batches:
            if turn != self._turn:
                raise RuntimeError(
                    "another iteration over the same files has begun before this one ended: finish it first"
                )
            yield _checked(next(iterator))


def _checked(images: Tensor | str) -> Tensor:
    if isinstance(images, str):
        raise UsageError(images)
    return images


@dataclass(frozen=True)
class _Batches(Dataset[Tensor | str]):
    """Items are batches, by a list of rows. For a batch that cannot be read, the item is the error message: an
    exception from a worker would arrive with the worker's traceback."""

    paths: Paths
    size: int

    def __getitem__(self, rows: list[int]) -> Tensor | str:
        try:
            return read_images([self.paths[row] for row in rows], self.size)
        except UsageError as error:
            return str(error)


@dataclass
class _Order:
    """A sampler whose batches are set before every iteration."""

    batches: list[list[int]] = field(default_factory=list)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@contextmanager
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(main: int, _worker: int) -> None:
    """In a worker: end when the process `main` sends SIGTERM, as multiprocessing does at its exit, or has ended.
    SIGTERM from other processes is ignored: `main` handles it.

    torch looks for a lost main process every 5 seconds only; until then a worker would hold its connections and its
    GPU memory.
    """

    def watch() -> None:
        while os.getppid() == main:
            received = signal.sigtimedwait([signal.SIGTERM], 0.5)
            if received is not None and received.si_pid == main:
                break
        os._exit(0)

    threading.Thread(target=watch, name="sidpar data worker", daemon=True).start()
