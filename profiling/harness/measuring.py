"""One method measured on this rank: what a step of it occupies and sends, and how long its steps take."""

import gc
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Self

import torch

from harness.contenders import Contender
from harness.workloads import Workload
from sidpar import Runtime, UsageError
from sidpar.config.groups.optim import OptimConfig
from sidpar.config.units import human
from sidpar.distributed.device import give_back_unused, reset_peak_memory
from sidpar.engines.base import Engine
from sidpar.profiler.clock import Clock, Span
from sidpar.profiler.memory import Memory, bytes_of, measure_memory
from sidpar.profiler.saved_activations import SavedTensors
from sidpar.simulation.costs import Costs
from sidpar.training.optim import Optimizers

OPTIM = OptimConfig(name="sgd", lr=1e-3, schedule="constant")
"""A small rate, since thousands of steps may see one batch."""


@dataclass
class Window:
    """A step, or a stream of several, on one rank."""

    began: float
    """On the clock of rank 0."""
    seconds: float
    spans: list[Span]
    """Of a traced window."""


@dataclass
class Measured:
    """What one rank saw of one contender. Times are those of windows that nothing was recorded in: marks cost the host
    time, and methods differ in how many they would set. Spans are those of traced windows."""

    memory: dict[str, int | None] = field(default_factory=dict)
    peak_memory: int = 0
    traffic: dict[str, dict[str, float]] = field(default_factory=dict)
    timed: list[Window] = field(default_factory=list)
    traced: list[Window] = field(default_factory=list)

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """What another rank has sent, as plain data."""
        windows = {kind: [Window(**window) for window in values[kind]] for kind in ("timed", "traced")}
        return cls(**values | windows)


class Entry:
    """A contender with its engine and optimizer on this rank; on a rank that only waits, without. All ranks make it
    together. Raises UsageError, the same on all of them, for what cannot be or does not fit into memory."""

    def __init__(self, contender: Contender, runtime: Runtime, workload: Workload, costs: Costs) -> None:
        self.contender = contender
        self.engine: Engine | None = None
        self._workload = workload
        self.gradients: dict[str, int] = {}
        with all_or_none(runtime, f"stage: {contender.key}"):
            stage = contender.build(runtime, workload, costs)
        with all_or_none(runtime, f"engine: {contender.key}"):
            if stage is not None:
                self.engine = contender.engine(stage)
                self.optimizers = Optimizers(stage.parts(), OPTIM, steps_per_epoch=1)

    def run(self, steps: int, clock: Clock | None = None) -> None:
        """Steps with their updates, recorded on the clock, if there is one."""
        if self.engine is None:
            return
        self.engine.clock = clock
        batches = repeat((self._workload.x, self._workload.y), steps)
        for _ in self.engine.train(batches, self._update):
            pass

    def drop_gradients(self) -> None:
        """Between its turns a contender holds its weights and the optimizer's state alone."""
        if self.engine is not None:
            self.engine.stage.zero_grad()

    def _update(self, parts: Collection[str]) -> None:
        assert self.engine is not None
        modules = self.engine.stage.parts()
        for name in parts if not self.engine.versions else set(parts) - {"extractor"}:  # counted with its versions
            self.gradients[name] = bytes_of(p.grad for p in modules[name].parameters() if p.grad is not None)
        self.optimizers.update(parts)


@contextmanager
def all_or_none(runtime: Runtime, what: str) -> Iterator[None]:
    """All ranks do what is within, or none goes on: raises the same UsageError on all of them where it was refused, or
    where memory did not suffice. Within, no rank may wait for a message of another."""
    problem = None
    try:
        yield
    except UsageError as error:
        problem = str(error)
    except torch.OutOfMemoryError:
        limit = runtime.usable_memory
        more = "memory" if limit is None else f"than {human(limit)}"
        problem = f"needs more {more}: rank {runtime.rank} had none left"
    runtime.raise_together(what, problem)


def release(device: torch.device) -> None:
    """Give back to the device what contenders have left behind, which may refer to each other."""
    gc.collect()
    give_back_unused(device)


def memory_of(entry: Entry, runtime: Runtime, workload: Workload) -> tuple[Memory, dict[str, dict[str, float]]]:
    """A step that is not counted, then one whose memory and traffic are."""
    assert entry.engine is not None
    release(runtime.device)
    reset_peak_memory(runtime.device)
    steps = entry.contender.stream
    entry.run(1)
    engine = entry.engine
    stage, traffic = engine.stage, engine.traffic
    traffic.reset()
    known = [*stage.parameters(), *stage.buffers(), *engine.versions, workload.x, workload.y]
    with SavedTensors(known) as saved:
        entry.run(steps)
    memory = measure_memory(
        stage,
        entry.optimizers.all,
        saved,
        runtime.device,
        gradients=sum(entry.gradients.values()),
        versions=2 * bytes_of(engine.versions),
        communication_buffers=traffic.peak_buffers,
    )
    counts = traffic.sent.items()
    per_step = {kind: {"messages": one.messages // steps, "bytes": one.bytes / steps} for kind, one in counts}
    return memory, per_step


def window(entry: Entry, runtime: Runtime, offset: float, *, traced: bool = False) -> Window | None:
    """One step of one contender on all ranks, or one stream; None on a rank that only waits."""
    if not torch.cuda.is_available():
        torch.set_num_threads(entry.contender.threads)
    clock = Clock(runtime.device)
    runtime.barrier()
    clock.start()
    entry.run(entry.contender.stream, clock if traced else None)
    seconds, spans = clock.read()
    entry.drop_gradients()
    return None if entry.engine is None else Window(clock.started + offset, seconds, spans)
