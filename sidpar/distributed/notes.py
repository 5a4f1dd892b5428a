"""Data that ranks exchange through the store, where no message is sent between them."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from torch.distributed.distributed_c10d import PrefixStore, Store

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
