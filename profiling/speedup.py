"""Measures SID against backpropagation on the same ranks: step times, memory, traffic, and what the models predict.

    torchrun --standalone --nproc_per_node=4 profiling/speedup.py --workload emulated --out DIR

writes DIR/report.json and DIR/timelines.json, from which `profiling/report.py` makes the tables and pictures.

All methods run in one process group, in turn (A B C A B C ...), so that drift of the machine hits all alike. A step is
everything from a barrier to the end of the optimizer step on the slowest rank; the barrier itself is not counted. A
first pass has each method alone in memory and measures that; a second pass measures time.
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workloads
from contenders import Contender, contenders
from report import remake
from workloads import Workload

from sidpar import Objective, Runtime, SIDEngine, Stage, UsageError
from sidpar.balance import measure_costs
from sidpar.clock import Clock, Span, clock_offset
from sidpar.cost_model import Costs, Curve, Links, Piece, Prediction
from sidpar.device import describe, peak_memory, reset_peak_memory
from sidpar.engines import Engine
from sidpar.links import measure_links
from sidpar.memory import Memory, SavedTensors, measure_memory
from sidpar.optim import at_least_one
from sidpar.phases import COMPUTE, PHASE
from sidpar.run_folder import source_commit


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    workloads.add_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--microbatches", type=int, nargs="+", help="M to try; by default 1, K and 4 K")
    parser.add_argument("--extractors", nargs="+", default=["replicated", "sharded"], help="placements for SID")
    parser.add_argument("--steps", type=int, default=7, help="measured steps of each method")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each method before them that are not counted")
    parser.add_argument("--only", nargs="+", help="methods whose key contains one of these words")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    # Where work is a sleep of the host, a message must hold up the host, not a stream of a GPU.
    where: dict[str, Any] = {"device": "cpu", "backend": "gloo"} if arguments.workload == "emulated" else {}
    with Runtime.start(**where) as runtime:
        profile(runtime, arguments)


def profile(runtime: Runtime, arguments: argparse.Namespace) -> None:
    """All of it; rank 0 writes."""
    ranks = runtime.world_size
    microbatches = arguments.microbatches or sorted({1, ranks, 4 * ranks})
    workload = workloads.make(arguments, ranks)
    # On the device beforehand, so that no step copies the batch there.
    workload = replace(workload, x=workload.x.to(runtime.device), y=workload.y.to(runtime.device))
    say(runtime, f"{workload.name} on {ranks} ranks: links")
    links = measure_links(runtime)
    say(runtime, "cost of each piece")
    costs = {name: calibrate(runtime, workload, name, microbatches, links) for name in workload.networks}
    chosen, left_out = feasible(runtime, workload, costs, microbatches, arguments)
    measured: dict[Contender, Measured] = {}
    for contender in chosen:
        say(runtime, f"memory: {contender.key}")
        measured[contender] = memory_pass(contender, runtime, workload, costs[contender.network])
    entries = [Entry(c, runtime, workload, costs[c.network]) for c in chosen]
    offset = clock_offset(runtime)
    for k in range(arguments.warmup + arguments.steps):
        say(runtime, f"time: step {k + 1} of {arguments.warmup + arguments.steps}")
        for entry in entries:
            timed_step(entry, runtime, offset, measured[entry.contender] if k >= arguments.warmup else None)
    predictions = {e.contender: predict(e, runtime, workload, costs[e.contender.network]) for e in entries}
    everyone = {c: [Measured(**values) for values in runtime.exchange(c.key, asdict(measured[c]))] for c in chosen}
    if runtime.rank == 0:
        report = {
            "environment": environment(runtime, arguments),
            "workload": {"name": workload.name, **workload.conditions},
            "link": {name: describe_link(link) for name, link in asdict(links).items()},
            "costs_ms": describe_costs(costs["cascade"], len(workload.x)),
            "rows": rows(everyone, predictions, workload, ranks),
            "left_out": left_out,
        }
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        timelines = {c.key: timelines_of(everyone[c], predictions[c][0]) for c in chosen}
        (arguments.out / "timelines.json").write_text(json.dumps(timelines) + "\n")
        remake(arguments.out)
        print(f"report: {arguments.out / 'report.md'}")


def calibrate(runtime: Runtime, workload: Workload, network: str, microbatches: list[int], links: Links) -> Costs:
    """The cost of each piece for every size that some method uses, measured on all ranks at once, as they will run;
    the median over ranks."""
    batch, ranks = len(workload.x), runtime.world_size
    sizes = {-(-batch // part) for m in microbatches for part in (1, ranks, m, m * ranks)}
    mine = measure_costs(workload.networks[network](), workload.x, workload.compute, sorted(sizes), apart=True)
    plain = asdict(mine) | {"links": None}
    others = runtime.exchange(f"costs of {network}", plain)

    def middle(kind: str, k: int, way: str) -> Curve:
        curves = [other[kind][k][way]["seconds"] for other in others]
        seconds = tuple(statistics.median(values) for values in zip(*curves, strict=True))
        return Curve(tuple(plain[kind][k][way]["rows"]), seconds)

    pieces = {
        kind: [
            Piece(middle(kind, k, "forward"), middle(kind, k, "backward"), piece["saved_bytes"])
            for k, piece in enumerate(plain[kind])
        ]
        for kind in ("layers", "refiners")
    }
    costs = Costs(**(plain | pieces | {"links": links}))
    overhead = runtime.exchange("overhead", engine_overhead(runtime, workload, network, costs, min(sizes)))
    return replace(costs, overhead=statistics.median(overhead))


def engine_overhead(runtime: Runtime, workload: Workload, network: str, costs: Costs, rows: int) -> float:
    """Seconds per piece of work by which a step of the SID engine in one process exceeds the pieces themselves."""
    alone = Runtime(rank=0, world_size=1, device=runtime.device, backend="none")
    parts = max(1, min(4, len(workload.x) // rows))
    x, y = workload.x[: parts * rows], workload.y[: parts * rows]
    stage = Stage(workload.networks[network](), alone, extractor="replicated", compute=workload.compute)
    engine = SIDEngine(stage, Objective(), microbatches=parts)
    seconds = []
    for _ in range(4):
        clock = Clock(runtime.device)
        clock.start()
        engine.step(x, y)
        seconds.append(clock.read()[0])
    pieces = [*costs.layers, *costs.refiners]
    work = sum(piece.forward(rows) + piece.backward(rows) for piece in pieces)
    actions = 2 * (len(costs.refiners) + 1)
    return max(0.0, statistics.median(seconds[1:]) / parts - work) / actions


def feasible(
    runtime: Runtime,
    workload: Workload,
    costs: dict[str, Costs],
    microbatches: list[int],
    arguments: argparse.Namespace,
) -> tuple[list[Contender], list[dict[str, str]]]:
    """Contenders that can run here, and why the others cannot: refused by the engine itself, before any message."""
    chosen, left_out = [], []
    for contender in contenders(workload, runtime.world_size, microbatches, arguments.extractors):
        if arguments.only and not any(word in contender.key for word in arguments.only):
            continue
        reason = None
        try:
            contender.build(runtime, workload, costs[contender.network])
        except UsageError as error:
            reason = str(error)
        reasons = [found for found in runtime.exchange(f"feasible: {contender.key}", reason) if found is not None]
        if reasons:
            left_out.append({"key": contender.key, "reason": reasons[0]})
        else:
            chosen.append(contender)
    return chosen, left_out


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


def predict(entry: Entry, runtime: Runtime, workload: Workload, costs: Costs) -> tuple[Prediction | None, float | None]:
    """The model's step and the paper's projected speed-up."""
    contender = entry.contender
    prediction = contender.predict(entry.engine, runtime.world_size, workload, costs)
    return prediction, contender.paper(entry.engine, workload, costs)


def rows(
    everyone: dict[Contender, list[Measured]],
    predictions: dict[Contender, tuple[Prediction | None, float | None]],
    workload: Workload,
    num_ranks: int,
) -> list[dict[str, Any]]:
    """The rows of the report."""
    medians = {contender: statistics.median(step_seconds(ranks)) for contender, ranks in everyone.items()}
    naive = [seconds for c, seconds in medians.items() if c.schedule == "naive"]
    backpropagation = [seconds for c, seconds in medians.items() if c.method != "sid"]
    found = []
    for contender, measured in everyone.items():
        ranks = [m for m in measured if m.seconds]
        p10, p90 = (1000 * float(q) for q in np.quantile(step_seconds(measured), [0.1, 0.9]))
        median = medians[contender]
        prediction, paper = predictions[contender]
        found.append(
            {
                "key": contender.key,
                **{name: getattr(contender, name) for name in ("method", "schedule", "network", "extractor")},
                "microbatches": contender.microbatches,
                "world_size": 1 if contender.single else num_ranks,
                "step_ms": {"median": 1000 * median, "p10": p10, "p90": p90},
                "samples_per_second": len(workload.x) / median,
                "speedup_vs_naive_bp": naive[0] / median if naive else None,
                "speedup_vs_best_bp": min(backpropagation) / median if backpropagation else None,
                "law_speedup": contender.law(num_ranks),
                "paper_speedup": paper,
                "model_step_ms": None if prediction is None else 1000 * prediction.seconds,
                # DDP waits for other ranks inside its backward, where no clock of ours sees it.
                "bubble_fraction": None if contender.method == "ddp" else statistics.median(bubbles(ranks)),
                "model_bubble_fraction": None if prediction is None else prediction.bubble,
                "saved_activation_bytes": [m.memory["saved_activations"] for m in ranks],
                "model_saved_activation_bytes": None if prediction is None else prediction.saved_bytes,
                "peak_memory_bytes": [m.peak_memory for m in ranks],
                "bytes_sent": [sum(count["bytes"] for count in m.traffic.values()) for m in ranks],
                "messages_sent": [sum(count["messages"] for count in m.traffic.values()) for m in ranks],
                "memory": [m.memory for m in ranks],
                "traffic": [m.traffic for m in ranks],
                "phases_ms": [phases(m) for m in ranks],
            }
        )
    return found


def step_seconds(ranks: list[Measured]) -> list[float]:
    """Of each step, from the first rank's begin to the last rank's end."""
    running = [m for m in ranks if m.seconds]
    steps = range(len(running[0].seconds))
    return [max(m.begins[k] + m.seconds[k] for m in running) - min(m.begins[k] for m in running) for k in steps]


def bubbles(ranks: list[Measured]) -> list[float]:
    """Of each step, the share in which a rank, on average, does not compute."""
    steps = step_seconds(ranks)
    return [
        1 - sum(s[3] - s[2] for m in ranks for s in m.spans[k] if s[0] in COMPUTE) / (len(ranks) * steps[k])
        for k in range(len(steps))
    ]


def phases(measured: Measured) -> dict[str, float]:
    """Median milliseconds per step of each phase."""
    per_step: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(measured.spans))
    for k, spans in enumerate(measured.spans):
        for phase, _, start, end in spans:
            per_step[phase][k] += 1000 * (end - start)
    return {phase: statistics.median(values) for phase, values in per_step.items()}


def timelines_of(ranks: list[Measured], prediction: Prediction | None) -> dict[str, Any]:
    """The measured step whose length is the median, on a clock common to all ranks, and the modelled one."""
    running = [m for m in ranks if m.seconds]
    steps = step_seconds(running)
    k = sorted(range(len(steps)), key=steps.__getitem__)[len(steps) // 2]
    zero = min(m.begins[k] for m in running)
    measured = [[shifted(span, m.begins[k] - zero) for span in m.spans[k]] for m in running]
    modelled = None
    if prediction is not None and prediction.timeline is not None:
        modelled = [
            [shifted((PHASE[action.do], str(action), start, end), 0.0) for start, end, action in spans]
            for spans in prediction.timeline.spans
        ]
    return {"measured": measured, "modelled": modelled}


def shifted(span: Sequence[Any], seconds: float) -> list[Any]:
    """A span on the common clock, to the microsecond: a clock tells no more, and the file is half as long."""
    phase, label, start, end = span
    return [phase, label, round(start + seconds, 6), round(end + seconds, 6)]


def describe_link(link: dict[str, float]) -> dict[str, float | None]:
    slope = link["seconds_per_byte"]
    return {"latency_us": 1e6 * link["latency"], "gigabytes_per_s": 1e-9 / slope if slope else None}


def describe_costs(costs: Costs, batch: int) -> dict[str, Any]:
    forward, backward = costs.extractor(batch)
    return {
        "extractor forward": 1000 * forward,
        "extractor backward": 1000 * backward,
        "refiner forward": [1000 * piece.forward(batch) for piece in costs.refiners],
        "refiner backward": [1000 * piece.backward(batch) for piece in costs.refiners],
    }


def environment(runtime: Runtime, arguments: argparse.Namespace) -> dict[str, Any]:
    """The conditions of every figure."""
    given = " ".join(sys.argv[1:])
    return {
        "device": describe(runtime.device),
        "backend": runtime.backend,
        "gpus": torch.cuda.device_count() if runtime.device.type == "cuda" else 0,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": source_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "command": f"torchrun --standalone --nproc_per_node={runtime.world_size} profiling/speedup.py {given}",
        "warmup_steps": arguments.warmup,
        "steps": arguments.steps,
    }


def say(runtime: Runtime, text: str) -> None:
    if runtime.rank == 0:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
