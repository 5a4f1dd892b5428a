"""How far a device is with its work. The host queues work for a GPU and goes on, and messages of NCCL are such work. So
when a peer is lost, the device waits, and the host does not notice."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

APART = 0.01
"""The least number of seconds between two marks, so that they cost nothing measurable."""
MOST_AHEAD = 64
"""The most marks that the device has not passed. With more in its queue, the host could have to wait."""
HANGS_AFTER = 10.0
"""Seconds without a completed mark after which a rank that is to stop takes its device to hang."""


class Event(Protocol):
    """Of CUDA, as far as it is used."""

    def record(self) -> None: ...

    def query(self) -> bool: ...


class Mark(NamedTuple):
    """A place in the device's queue."""

    event: Event
    label: str
    queued_at: float


class Progress:
    """Marks in the queue of a device. Any thread may ask which of them the device has passed, without waiting.

    Args:
        new_event: makes an event of the current stream.
    """

    def __init__(self, new_event: Callable[[], Event]) -> None:
        self._new_event = new_event
        self._ahead: deque[Mark] = deque()
        self._spare: list[Event] = []
        self._passed: str | None = None
        self._passed_at = 0.0
        self._marked_at = 0.0
        self._lock = threading.Lock()

    def mark(self, label: Callable[[], str]) -> None:
        """What the host has queued just now."""
        now = time.monotonic()
        if now - self._marked_at < APART:
            return
        self._marked_at = now
        with self._lock:
            self._look()
            if len(self._ahead) >= MOST_AHEAD:
                return
            event = self._spare.pop() if self._spare else self._new_event()
        event.record()  # without the lock: where the queue is full, it waits
        with self._lock:
            self._ahead.append(Mark(event, label(), now))

    def passed(self) -> str | None:
        """What the device has completed last, as far as it was marked."""
        with self._lock:
            self._look()
            return self._passed

    def behind(self) -> float:
        """For how many seconds something has been queued, and nothing completed."""
        first = self._first()
        return 0.0 if first is None else time.monotonic() - max(first.queued_at, self._passed_at)

    def hangs(self, seconds: float = HANGS_AFTER) -> bool:
        """Watch so long whether something is queued, and nothing of it completed."""
        end = time.monotonic() + seconds
        first = self._first()
        while first is not None and time.monotonic() < end:
            time.sleep(min(0.1, seconds / 10))  # a device calls nobody when it comes to a mark
            if self._first() is not first:
                return False
        return first is not None

    def _first(self) -> Mark | None:
        with self._lock:
            self._look()
            return self._ahead[0] if self._ahead else None

    def _look(self) -> None:
        while self._ahead and self._ahead[0].event.query():
            mark = self._ahead.popleft()
            self._passed, self._passed_at = mark.label, time.monotonic()
            self._spare.append(mark.event)


def end_when_late(progress: Progress, limit: float, end: Callable[[float], None]) -> None:
    """From now on, in a thread of its own, call `end(seconds)` once something has been queued, and nothing completed,
    for more than `limit` seconds."""

    def watch() -> None:
        while (late := progress.behind()) <= limit:
            time.sleep(min(1.0, limit / 10))
        end(late)

    threading.Thread(target=watch, name="sidpar progress", daemon=True).start()
