"""One method measured on this rank: its memory alone, then the time of its steps among all others."""

import gc
from dataclasses import asdict, dataclass, field

import torch
from contenders import Contender
from workloads import Workload

from sidpar import Runtime
from sidpar.clock import Clock, Span
from sidpar.cost_model import Costs
from sidpar.device import peak_memory, reset_peak_memory
from sidpar.engines import Engine
from sidpar.memory import Memory, SavedTensors, measure_memory
from sidpar.optim import at_least_one


@dataclass
class Measured:
    """What one rank saw of one contender."""

    memory: dict[str, int | None] = field(default_factory=dict)
    peak_memory: int = 0
    traffic: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)
    """When each step began, on the clock of rank 0."""
    spans: list[list[Span]] = field(default_factory=list)


class Entry:
    """A contender with its engine and optimizer on this rank; on a rank that only waits, without."""

    def __init__(self, contender: Contender, runtime: Runtime, workload: Workload, costs: Costs) -> None:
        self.contender = contender
        self.engine: Engine | None = contender.build(runtime, workload, costs)
        self._workload = workload
        if self.engine is not None:
            self.optimizer = torch.optim.SGD(at_least_one(self.engine.stage.parameters()), lr=1e-3, momentum=0.9)

    def step(self, clock: Clock) -> None:
        """One step, the optimizer's included."""
        if self.engine is None:
            return
        self.engine.clock = clock
        self.engine.step(self._workload.x, self._workload.y)
        with clock.span("optimizer"):
            self.optimizer.step()


def memory_pass(contender: Contender, runtime: Runtime, workload: Workload, costs: Costs) -> Measured:
    """Each method alone in memory."""
    measured = Measured()
    entry = Entry(contender, runtime, workload, costs)
    if entry.engine is not None:
        memory, traffic = memory_of(entry, runtime, workload)
        measured.memory, measured.traffic = asdict(memory), traffic
        measured.peak_memory = peak_memory(runtime.device)
    runtime.barrier()
    return measured


def memory_of(entry: Entry, runtime: Runtime, workload: Workload) -> tuple[Memory, dict[str, dict[str, float]]]:
    """A step that is not counted, then one whose memory and traffic are."""
    assert entry.engine is not None
    gc.collect()
    reset_peak_memory(runtime.device)
    clock = Clock(runtime.device)
    entry.step(clock)
    stage, traffic = entry.engine.stage, entry.engine.traffic
    traffic.reset()
    with SavedTensors([*stage.parameters(), *stage.buffers(), workload.x, workload.y]) as saved:
        entry.step(clock)
    memory = measure_memory(stage, entry.optimizer, saved, traffic.peak_buffers, runtime.device)
    return memory, {kind: asdict(count) for kind, count in traffic.sent.items()}


def timed_step(entry: Entry, runtime: Runtime, offset: float, measured: Measured | None) -> None:
    """One step of one contender on all ranks; recorded unless it is for warming up."""
    if not torch.cuda.is_available():
        torch.set_num_threads(entry.contender.threads)
    clock = Clock(runtime.device)
    runtime.barrier()
    clock.start()
    entry.step(clock)
    seconds, spans = clock.read()
    if measured is not None and entry.engine is not None:
        measured.seconds.append(seconds)
        measured.begins.append(clock.started + offset)
        measured.spans.append(spans)
