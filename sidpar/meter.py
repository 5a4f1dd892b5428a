"""Turns what each rank's refiners showed into one table for the whole cascade."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sidpar import device
from sidpar.engines import Engine, StepResult
from sidpar.runtime import Runtime
from sidpar.theory import MEASURES, error_bound, initial_divergence


class Meter:
    """Sums `theory.MEASURES` over batches on each rank; `read` adds them over ranks, the only message it sends."""

    def __init__(self, engine: Engine) -> None:
        stage = engine.stage
        self._runtime = stage.runtime
        self._alphas = engine.objective.alphas(stage.placement.num_refiners)
        self._rows = torch.tensor(list(stage.own_refiners), dtype=torch.int64, device=self._runtime.device)
        self._initial = initial_divergence(engine.objective, stage.num_classes)
        self._reset()

    def _reset(self) -> None:
        self._table = torch.zeros(len(self._alphas), len(MEASURES), dtype=torch.float64, device=self._runtime.device)
        self._samples = 0

    def add(self, result: StepResult) -> None:
        """One batch. Does not wait for the device."""
        self._table.index_add_(0, self._rows, result.measures())
        self._samples += result.samples

    def read(self) -> dict[str, Any]:
        """Means over the samples added since the last reading, per refiner; the same on every rank.

        `premise_failures` and `descent_failures` are shares of samples (Proposition 2); `epsilon` and `bound_slack`
        belong to Proposition 4: KL[p_L, p_y] is `bound_slack` below its bound.
        """
        return self.start_reading()()

    def start_reading(self) -> Callable[[], dict[str, Any]]:
        """The same without waiting for ranks that are behind; what is returned waits and gives the means."""
        total, samples = self._runtime.start_sum("metrics", self._table), self._samples
        self._reset()
        return lambda: self._means(total(), samples)

    def _means(self, total: Tensor, samples: int) -> dict[str, Any]:
        columns = dict(zip(MEASURES, (total / samples).T.tolist(), strict=True))
        excess = columns.pop("excess")
        columns["accuracy"] = columns.pop("correct")
        columns["epsilon"] = [max(0.0, value) for value in excess]
        bound = error_bound(self._initial, excess, self._alphas)
        return {**columns, "bound_slack": bound - columns["kl"][-1]}


class Stopwatch:
    """Seconds and images of training alone; stopped during evaluations."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.seconds = 0.0
        self.images = 0
        self.peak_memory = 0
        self._started: float | None = None
        self._lap = (0.0, 0)

    def start(self) -> None:
        device.reset_peak_memory(self._runtime.device)
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Bank the time since `start`; waits for the device."""
        self._bank()
        self._started = None
        self.peak_memory = max(self.peak_memory, device.peak_memory(self._runtime.device))

    def lap(self) -> float:
        """Images per second since the last lap; waits for the device."""
        self._bank()
        seconds, images = self._lap
        self._lap = (self.seconds, self.images)
        return (self.images - images) / max(self.seconds - seconds, 1e-9)

    def _bank(self) -> None:
        device.synchronize(self._runtime.device)
        now = time.perf_counter()
        if self._started is not None:
            self.seconds += now - self._started
            self._started = now


def per_rank(runtime: Runtime, value: int) -> list[int]:
    """Every rank's number, on every rank."""
    return start_per_rank(runtime, value)()


def start_per_rank(runtime: Runtime, value: int) -> Callable[[], list[int]]:
    """The same without waiting for ranks that are behind; what is returned waits and gives the numbers."""
    table = torch.zeros(runtime.world_size, dtype=torch.int64, device=runtime.device)
    table[runtime.rank] = value
    total = runtime.start_sum("one number per rank", table)
    return lambda: [int(number) for number in total()]
