"""What ranks leave for each other in the store, where no message is sent between them."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from torch.distributed.distributed_c10d import PrefixStore, Store

T = TypeVar("T")


class Notes:
    """Bytes by name. Every name is left by one rank."""

    def __init__(self, store: Store, topic: str, timeout: float) -> None:
        self._store = PrefixStore(topic, store)
        self._timeout = timeout
        self._left: list[str] = []

    def leave(self, name: str, note: bytes) -> None:
        """For all who read it."""
        self._store.set(name, note)  # type: ignore[arg-type]
        self._left.append(name)

    def read(self, name: str) -> bytes:
        """Waits for it. Raises RuntimeError after the timeout."""
        try:
            self._store.wait([name], timedelta(seconds=self._timeout))
        except RuntimeError as error:  # DistError, or what a file store raises
            raise RuntimeError(f"waited {self._timeout:g} s for another rank's {name}, in vain") from error
        return self._store.get(name)

    def remove(self) -> None:
        """What this rank has left, once all have read it."""
        for name in self._left:
            self._store.delete_key(name)
        self._left = []


def within(seconds: float, question: Callable[[], T]) -> T | None:
    """What the store answers to a question, None if nothing within that time: where the network is cut, it never does,
    and has no timeout for some. Raises RuntimeError if it has gone with its host, and says so."""
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
