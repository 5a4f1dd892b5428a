"""The memory pass: each contender alone on its ranks, to learn what it needs and what it sends."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass

from harness.contenders import Contender
from harness.groups import Need
from harness.measuring import Entry, Measured, all_or_none, memory_of, release
from harness.workloads import Workload
from sidpar import Runtime
from sidpar.config.units import human
from sidpar.distributed.device import allocated_memory, peak_memory
from sidpar.profiler.memory import Memory, bytes_of
from sidpar.simulation.cost_model import Prediction
from sidpar.simulation.costs import Costs

GIB = 2**30


@dataclass(frozen=True)
class Alone:
    """What is known of a contender before its steps are timed."""

    measured: Measured
    need: Need
    prediction: Prediction | None
    """The model's step."""
    paper: float | None
    """The paper's projected speed-up."""


def room_for_contenders(runtime: Runtime, gib: float | None) -> float | None:
    """Bytes that contenders may occupy together, on the rank that has least: as given, or what is usable of the device
    besides what is there already. None for no limit, on CPU."""
    release(runtime.device)
    usable = runtime.usable_memory
    mine = None if usable is None else usable - allocated_memory(runtime.device)
    everyone = runtime.exchange("room for contenders", mine if gib is None else gib * GIB)
    return None if None in everyone else float(min(everyone))


def memory_pass(contender: Contender, runtime: Runtime, workload: Workload, costs: Costs, room: float | None) -> Alone:
    """One contender alone in memory; all ranks call it. Raises UsageError, the same on all of them, for what cannot be,
    or needs more than there is.

    A rank that runs out of memory in a step of several leaves the others waiting for its messages, and the job ends. So
    what cannot fit into `room` bytes is refused before its first step.
    """
    release(runtime.device)
    before = allocated_memory(runtime.device)
    entry = Entry(contender, runtime, workload, costs)
    prediction = contender.predict(entry.engine, runtime.world_size, workload, costs)
    _refuse_what_cannot_fit(entry, prediction, runtime, room)
    measured, held, peak = Measured(), 0, 0
    with all_or_none(runtime, f"step: {contender.key}") if contender.single else nullcontext():
        if entry.engine is not None:
            memory, traffic = memory_of(entry, runtime, workload)
            measured = Measured(asdict(memory), peak_memory(runtime.device), traffic)
            entry.drop_gradients()
            held, peak = _held_and_peak(memory, before, runtime)
    everyone = runtime.exchange(f"memory: {contender.key}", [held, peak])
    runtime.barrier()
    need = Need(*(float(max(figures)) for figures in zip(*everyone, strict=True)))
    return Alone(measured, need, prediction, contender.paper(entry.engine, workload, costs))


def _held_and_peak(memory: Memory, before: int, runtime: Runtime) -> tuple[int, int]:
    """Bytes between steps and at most: on a GPU the allocator's, beyond those `before`; else the sum of all kinds."""
    if memory.allocator_peak is not None:
        return allocated_memory(runtime.device) - before, memory.allocator_peak - before
    held = memory.parameters + memory.optimizer_state + memory.versions
    return held, held + memory.gradients + memory.saved_activations + memory.communication_buffers


def _refuse_what_cannot_fit(entry: Entry, prediction: Prediction | None, runtime: Runtime, room: float | None) -> None:
    """By the model: weights and momentum, and beside them what autograd saves or, after it, the gradients."""
    problem = None
    if room is not None and prediction is not None and entry.engine is not None:
        weights = bytes_of(entry.engine.stage.parameters())
        needed = 2 * weights + max(weights, prediction.saved_bytes[runtime.rank])
        if needed > room:
            problem = f"needs more than {human(room)}: {human(needed)} on rank {runtime.rank}, by the model"
    runtime.raise_together(f"model: {entry.contender.key}", problem)
