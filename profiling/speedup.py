"""Measures SID against backpropagation on the same ranks: step times, memory, traffic, and what the models predict.

    torchrun --standalone --nproc_per_node=4 profiling/speedup.py --workload emulated --out DIR

writes DIR/report.json and DIR/timelines.json, from which `profiling/report.py` makes the tables and pictures.

All methods run in one process group, in turn (A B C A B C ...), so that drift of the machine hits all alike. A step is
everything from a barrier to the end of the optimizer step on the slowest rank; the barrier itself is not counted. The
steps of `streaming` overlap, so there it is a whole stream of --stream steps, from a barrier to the end of the drain,
divided by their number. A first pass has each method alone in memory and measures that; a second pass measures time.
Nothing is recorded in the steps that are timed: phases and timelines are those of --traced further steps.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from harness import workloads
from harness.conditions import conditions
from harness.contenders import Contender, chosen_by_plan, contenders
from harness.measuring import Entry, Measured, memory_pass, window
from harness.rows import describe_costs, describe_link, rows, timelines_of
from harness.workloads import Workload
from report import remake

from sidpar import Runtime, UsageError
from sidpar.calibration.all_ranks import calibrate, halvings
from sidpar.calibration.links import measure_links
from sidpar.profiler.clock_offset import clock_offset
from sidpar.simulation.cost_model import Prediction
from sidpar.simulation.costs import Costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    workloads.add_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--microbatches", type=int, nargs="+", help="M to try; by default 1, K and 4 K")
    parser.add_argument("--extractors", nargs="+", default=["replicated", "sharded"], help="placements for SID")
    parser.add_argument("--steps", type=int, default=7, help="measured steps of each method")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each method before them that are not counted")
    parser.add_argument("--traced", type=int, default=3, help="further steps of each method, whose phases are recorded")
    parser.add_argument("--stream", type=int, default=12, help="steps of a stream, from its filling to its drain")
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
    batch = len(workload.x)
    sizes = {-(-batch // part) for m in microbatches for part in (1, ranks, m, m * ranks)} | halvings(batch)
    costs = {
        name: calibrate(runtime, build, workload.x, workload.y, workload.compute, sizes, links, what=name)
        for name, build in workload.networks.items()
    }
    plan = chosen_by_plan(costs["cascade"], batch, ranks, arguments.stream)
    compared = [*contenders(workload, ranks, microbatches, arguments.extractors, arguments.stream), plan]
    chosen, left_out = feasible(runtime, workload, costs, compared, arguments.only)
    measured: dict[Contender, Measured] = {}
    for contender in chosen:
        say(runtime, f"memory: {contender.key}")
        measured[contender] = memory_pass(contender, runtime, workload, costs[contender.network])
    entries = [Entry(c, runtime, workload, costs[c.network]) for c in chosen]
    offset = clock_offset(runtime)
    for kind, turns in (("warm-up", arguments.warmup), ("timed", arguments.steps), ("traced", arguments.traced)):
        for turn in range(turns):
            say(runtime, f"{kind}: step {turn + 1} of {turns}")
            for entry in entries:
                one, seen = window(entry, runtime, offset, traced=kind == "traced"), measured[entry.contender]
                if one is not None and kind != "warm-up":
                    (seen.traced if kind == "traced" else seen.timed).append(one)
    predictions = {e.contender: predict(e, runtime, workload, costs[e.contender.network]) for e in entries}
    everyone = {c: [Measured.read(values) for values in runtime.exchange(c.key, asdict(measured[c]))] for c in chosen}
    if runtime.rank == 0:
        given = " ".join(sys.argv[1:])
        report = {
            "environment": conditions(runtime.device)
            | {
                "backend": runtime.backend,
                "command": f"torchrun --standalone --nproc_per_node={ranks} profiling/speedup.py {given}",
                "warmup_steps": arguments.warmup,
                "steps": arguments.steps,
                "stream": arguments.stream,
            },
            "workload": {"name": workload.name, **workload.conditions},
            "link": {name: describe_link(link) for name, link in asdict(links).items()},
            "costs_ms": describe_costs(costs["cascade"], len(workload.x)),
            "rows": rows(everyone, predictions, workload, ranks),
            "left_out": left_out,
        }
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        timelines = {c.key: timelines_of(c, everyone[c], predictions[c][0]) for c in chosen}
        (arguments.out / "timelines.json").write_text(json.dumps(timelines, separators=(",", ":")) + "\n")
        remake(arguments.out)
        print(f"report: {arguments.out / 'report.md'}")


def feasible(
    runtime: Runtime,
    workload: Workload,
    costs: dict[str, Costs],
    compared: Iterable[Contender],
    only: Sequence[str] | None,
) -> tuple[list[Contender], list[dict[str, str]]]:
    """Contenders that can run here, and why the others cannot: refused by the engine itself, before any message."""
    chosen, left_out = [], []
    for contender in compared:
        if only and not any(word in contender.key for word in only):
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


def predict(entry: Entry, runtime: Runtime, workload: Workload, costs: Costs) -> tuple[Prediction | None, float | None]:
    """The model's step and the paper's projected speed-up."""
    contender = entry.contender
    prediction = contender.predict(entry.engine, runtime.world_size, workload, costs)
    return prediction, contender.paper(entry.engine, workload, costs)


def say(runtime: Runtime, text: str) -> None:
    if runtime.rank == 0:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
