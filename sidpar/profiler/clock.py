"""When each phase of a step begins and ends on this rank: CUDA events on GPUs, a monotonic clock on CPUs.

Nothing here waits for the device while a window is open. On a GPU a span is what the current stream did between its
two events, so a `receive wait` there is the time for which computing stood still, not the message itself.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch

from sidpar.distributed.device import Mark, mark, seconds_between, synchronize
from sidpar.schedules.phases import Phase


class Span(NamedTuple):
    """One phase of a step, in seconds since `Clock.start`."""

    phase: Phase
    label: str
    start: float
    end: float


class Clock:
    """Records the spans between `start` and `read`. An engine without a clock records nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[Phase, object, Mark, Mark]] = []
        self._zero = mark(device)
        self.started = 0.0
        """Host time of the last `start`, by `time.perf_counter`, which all processes of a host share."""

    def start(self) -> None:
        """Open a window. Waits for the device, so that the host's clock and the device's agree at its edge."""
        synchronize(self._device)
        self._marks = []
        self.started = time.perf_counter()
        self._zero = mark(self._device)

    @contextmanager
    def span(self, phase: Phase, label: object = "") -> Iterator[None]:
        """Record what happens within; `label` is kept as text."""
        begin = mark(self._device)
        try:
            yield
        finally:
            self._marks.append((phase, label, begin, mark(self._device)))

    def waited(self, phase: Phase, label: object = "") -> None:
        """Record the time since the last span as one: for a wait inside code that is not ours."""
        begin = self._marks[-1][3] if self._marks else self._zero
        self._marks.append((phase, label, begin, mark(self._device)))

    def read(self) -> tuple[float, list[Span]]:
        """Close the window: its length in seconds, and its spans. Waits for the device."""
        end = mark(self._device)
        synchronize(self._device)
        spans = [
            Span(phase, str(label), seconds_between(self._zero, begin), seconds_between(self._zero, finish))
            for phase, label, begin, finish in self._marks
        ]
        return seconds_between(self._zero, end), spans


def span(clock: Clock | None, phase: Phase, label: object = "") -> AbstractContextManager[None]:
    """`clock.span`, where there is a clock."""
    return nullcontext() if clock is None else clock.span(phase, label)
