"""Averages the measures of all refiners over batches and ranks."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sidpar.distributed import device
from sidpar.distributed.runtime import Runtime
from sidpar.engines.base import Engine
from sidpar.engines.result import StepResult

_NEVER = 2**40
"""A step that no run reaches."""
DIVERGED = "diverged"


class Meter:
    """Sums the rule's measures over batches on each rank. `read` averages them over all ranks, with one message.

    Args:
        engine: the engine whose results are added.
    """

    def __init__(self, engine: Engine) -> None:
        stage = engine.stage
        self._runtime = stage.runtime
        self._rule = engine.rule
        self._loss = self._rule.measures.index("loss")
        self._num_refiners, self._num_classes = stage.placement.num_refiners, stage.num_classes
        self._rows = torch.tensor(list(stage.own_refiners), dtype=torch.int64, device=self._runtime.device)
        self._reset()

    def _reset(self) -> None:
        size = self._num_refiners, len(self._rule.measures)
        self._table = torch.zeros(size, dtype=torch.float64, device=self._runtime.device)
        self._samples = 0
        self._first_bad = torch.full((self._num_refiners,), _NEVER, device=self._runtime.device)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added since the last `read`."""
        return self._samples == 0

    def add(self, result: StepResult, step: int = 0) -> None:
        """Add the result of one batch. Does not wait for the device."""
        self._samples += result.samples
        self._sum(result.measures(), step)

    def _sum(self, measures: Tensor, step: int) -> None:
        self._table.index_add_(0, self._rows, measures)
        bad = torch.where(measures[:, self._loss].isfinite(), _NEVER, step)
        self._first_bad[self._rows] = torch.minimum(self._first_bad[self._rows], bad)

    def rehearse(self) -> None:
        """Use every kernel of this rank's once, with nothing to add: for `Optimizers.rehearse`'s reason."""
        columns = len(self._rule.measures)
        self._sum(torch.zeros(len(self._rows), columns, dtype=torch.float64, device=self._runtime.device), 0)
        _one_of_all(self._runtime, self._first())
        self._reset()

    def read(self) -> dict[str, Any]:
        """Means over the samples that were added since the last `read`, the same on every rank. All ranks call it.

        Returns:
            By name, such as `loss` and `accuracy`, a list of L numbers, one for each refiner of the cascade. `diverged`
                tells the step, refiner and rank of the first loss that was not finite, or is None.
        """
        return self.start_reading()()

    def start_reading(self) -> Callable[[], dict[str, Any]]:
        """The same without waiting for ranks that are behind; what is returned waits and gives the means."""
        total, samples = self._runtime.start_sum("metrics", self._table), self._samples
        first = start_per_rank(self._runtime, self._first())
        self._reset()
        return lambda: self._means(total(), samples) | {DIVERGED: self._earliest(first())}

    def _first(self) -> Tensor:
        """Step and refiner in one number, so that the least is the first."""
        refiners = torch.arange(self._num_refiners, device=self._runtime.device)
        return (self._first_bad * self._num_refiners + refiners).min()

    def _earliest(self, first: list[int]) -> dict[str, int] | None:
        """Where and when a loss was first not finite; None if all are."""
        rank = first.index(min(first))
        step, refiner = divmod(first[rank], self._num_refiners)
        return None if step == _NEVER else {"step": step, "refiner": refiner, "rank": rank}

    def _means(self, total: Tensor, samples: int) -> dict[str, Any]:
        columns = dict(zip(self._rule.measures, (total / samples).T.tolist(), strict=True))
        return self._rule.row(columns, self._num_classes)


class Stopwatch:
    """Seconds and images of training alone; stopped during evaluations."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.seconds = 0.0
        self.images = 0
        self.peak_memory = 0
        self._started: float | None = None
        self._lap = (0.0, 0)

    def resume(self, seconds: float, images: int) -> None:
        """Go on counting from there."""
        self.seconds, self.images = seconds, images
        self._lap = (seconds, images)

    def start(self) -> None:
        device.reset_peak_memory(self._runtime.device)
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Bank the time since `start`; waits for what is queued on the device, not for messages under way."""
        self._bank()
        self._started = None
        self.peak_memory = max(self.peak_memory, device.peak_memory(self._runtime.device))

    def now(self) -> float:
        """Seconds so far; does not wait for the device."""
        return self.seconds if self._started is None else self.seconds + time.perf_counter() - self._started

    def lap(self) -> float:
        """Images per second since the last lap; waits as `stop` does."""
        self._bank()
        seconds, images = self._lap
        self._lap = (self.seconds, self.images)
        return (self.images - images) / max(self.seconds - seconds, 1e-9)

    def _bank(self) -> None:
        device.wait_for_queued(self._runtime.device)
        now = time.perf_counter()
        if self._started is not None:
            self.seconds += now - self._started
            self._started = now


def per_rank(runtime: Runtime, value: int | Tensor) -> list[int]:
    """Every rank's number, on every rank."""
    return start_per_rank(runtime, value)()


def start_per_rank(runtime: Runtime, value: int | Tensor) -> Callable[[], list[int]]:
    """The same without waiting for ranks that are behind; what is returned waits and gives the numbers."""
    total = runtime.start_sum("one number per rank", _one_of_all(runtime, value))
    return lambda: [int(number) for number in total()]


def _one_of_all(runtime: Runtime, value: int | Tensor) -> Tensor:
    """A number for each rank, 0 for the others."""
    table = torch.zeros(runtime.world_size, dtype=torch.int64, device=runtime.device)
    table[runtime.rank] = value
    return table
