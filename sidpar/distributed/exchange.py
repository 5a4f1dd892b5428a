"""Data that ranks exchange through the store, where no message is sent between them."""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

from torch.distributed.distributed_c10d import PrefixStore, Store

from sidpar.errors import UsageError

T = TypeVar("T")


class Notes:
    """Bytes by name. Every name is written by one rank."""

    def __init__(self, store: Store, topic: str, timeout: float) -> None:
        self._store = PrefixStore(topic, store)
        self._timeout = timeout
        self._left: list[str] = []

    def leave(self, name: str, note: bytes) -> None:
        """Write a note for all ranks that read it."""
        self._store.set(name, note)  # type: ignore[arg-type]
        self._left.append(name)

    def read(self, name: str) -> bytes:
        """Wait for a note and return it. Raises RuntimeError after the timeout."""
        try:
            self._store.wait([name], timedelta(seconds=self._timeout))
        except RuntimeError as error:  # DistError, or what a file store raises
            raise RuntimeError(f"waited {self._timeout:g} s for another rank's {name} and gave up") from error
        return self._store.get(name)

    def remove(self) -> None:
        """Remove what this rank has written. Call it once all ranks have read it."""
        for name in self._left:
            self._store.delete_key(name)
        self._left = []


@dataclass(frozen=True)
class Exchange:
    """One rank among others that tell each other plain data through the store, from before the first message on."""

    rank: int
    """Of the whole world."""
    world_size: int
    """R x K."""
    store: Store | None = field(default=None, kw_only=True)
    """Where ranks leave plain data for each other; None in a world of one process."""
    init_timeout: float = field(default=300.0, kw_only=True)
    """Seconds for all ranks to appear and agree."""
    _sequence: "count[int]" = field(default_factory=count, kw_only=True, repr=False)

    def agree(self, what: str, mine: Mapping[str, Any], timeout: float | None = None) -> None:
        """Fail on every rank, with the same error, unless all ranks call this with the same values.

        Goes through the store, so it works before the first message.

        Raises:
            UsageError: the values differ; the text says which.
        """
        everyone = self.exchange(what, dict(mine), timeout)
        differences = [
            f"{key}: " + ", ".join(f"rank {rank} has {values.get(key)!r}" for rank, values in enumerate(everyone))
            for key in sorted(set().union(*everyone))
            if any(values.get(key) != everyone[0].get(key) for values in everyone)
        ]
        if differences:
            raise UsageError(f"the ranks disagree on the {what}; start them all alike. " + "; ".join(differences))

    def exchange(self, what: str, mine: Any, timeout: float | None = None) -> list[Any]:
        """Every rank's value (plain data), in rank order, through the store; all ranks call it in the same order.

        Waits `timeout` seconds for each rank, by default the initial timeout: another rank may be reading a dataset.

        Raises:
            RuntimeError: a rank has not told its value in this time.
        """
        plain = json.loads(json.dumps(mine))
        if self.store is None:
            return [plain]
        key = f"{next(self._sequence)}/{what}"
        self.store.set(f"{key}/{self.rank}", json.dumps(plain))
        patience = self.init_timeout if timeout is None else timeout
        values = []
        for rank in range(self.world_size):
            try:
                self.store.wait([f"{key}/{rank}"], timedelta(seconds=patience))
            except RuntimeError as error:  # DistError, or what a file store raises
                raise RuntimeError(
                    f"rank {self.rank} waited up to {patience:g} s for rank {rank}'s {what} and gave up"
                ) from error
            values.append(json.loads(self.store.get(f"{key}/{rank}")))
        return values

    def notes(self, topic: str) -> Notes | None:
        """Where the ranks leave something for each other in the store; all of them call it in the same order. None in a
        world of one."""
        number = next(self._sequence)
        return None if self.store is None else Notes(self.store, f"{number}/{topic}", self.init_timeout)

    def raise_together(self, what: str, problem: str | None) -> None:
        """Fail on every rank, with the same error, if one of them has a problem; all ranks call it.

        Raises:
            UsageError: the problem.
        """
        problems = [found for found in self.exchange(what, problem) if found is not None]
        if problems:
            raise UsageError(problems[0])

    def from_root(self, what: str, mine: Any) -> Any:
        """Rank 0's value on every rank."""
        return self.exchange(what, mine if self.rank == 0 else None)[0]


def within(seconds: float, question: Callable[[], T]) -> T | None:
    """The store's answer to a question, or None if there is none within that time: where the network is cut, some
    questions never return. Raises RuntimeError if the connection is closed."""
    answers: list[T] = []
    errors: list[RuntimeError] = []

    def ask() -> None:
        try:
            answers.append(question())
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=ask, name="sidpar store", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    return answers[0] if answers else None
