"""Measures SID against backpropagation on the same ranks: step times, memory, traffic, and what the models predict.

    torchrun --standalone --nproc_per_node=4 profiling/speedup.py --workload emulated --out DIR

writes DIR/report.json and DIR/timelines.json, from which `profiling/report.py` makes the tables and pictures.

All methods run in one process group, in turn (A B C A B C ...), so that drift of the machine hits all alike. A step is
everything from a barrier to the end of the optimizer step on the slowest rank; the barrier itself is not counted. The
steps of `streaming` overlap, so there it is a whole stream of --stream steps, from a barrier to the end of the drain,
divided by their number. A first pass has each method alone in memory and measures that; a second pass measures time.
Nothing is recorded in the steps that are timed: phases and timelines are those of --traced further steps.

Where not all methods fit into memory together, on a GPU or by --memory, they are timed in groups that do. The first
method is in every group, so that the report can tell how far the machine has drifted from one to the next.

Memory and traffic are counts, which no load on the machine changes. With --keep-times, only these are measured, and
written into the report that is in --out already.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from harness import workloads
from harness.alone import Alone, memory_pass, room_for_contenders
from harness.conditions import conditions
from harness.contenders import Contender, chosen_by_plan, contenders
from harness.groups import groups_that_fit
from harness.measuring import Entry, Measured, release, window
from harness.rows import describe_costs, describe_link, memory_and_traffic, rows, timelines_of
from harness.workloads import Workload
from report import remake

from sidpar import Runtime, UsageError
from sidpar.calibration.all_ranks import calibrate, halvings
from sidpar.calibration.links import measure_links
from sidpar.config.units import human
from sidpar.profiler.clock_offset import clock_offset
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
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="what the methods of a group may occupy on a rank together; by default what is usable of a GPU, and all "
        "there is on CPU",
    )
    parser.add_argument("--keep-times", action="store_true", help="measure memory and traffic alone, see above")
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
    alone, left_out = measure_alone(runtime, workload, costs, wanted(compared, arguments.only), arguments.memory)
    if arguments.keep_times:
        rewrite_memory(runtime, alone, arguments.out)
        return
    room = room_for_contenders(runtime, arguments.memory)
    groups = groups_that_fit({contender.key: found.need for contender, found in alone.items()}, room)
    left_out |= groups.left_out
    offset = clock_offset(runtime)
    for number, keys in enumerate(groups.groups, 1):
        say(runtime, f"group {number} of {len(groups.groups)}: {len(keys)} methods")
        members = {contender: alone[contender] for contender in alone if contender.key in keys}
        left_out |= time_group(runtime, workload, costs, members, offset, arguments)
    chosen = [contender for contender in alone if contender.key not in left_out]
    everyone = {
        c: [Measured.read(values) for values in runtime.exchange(c.key, asdict(alone[c].measured))] for c in chosen
    }
    if runtime.rank == 0:
        report = {
            "environment": conditions(runtime.device)
            | {
                "backend": runtime.backend,
                "command": command(runtime),
                "warmup_steps": arguments.warmup,
                "steps": arguments.steps,
                "stream": arguments.stream,
                "memory for methods": "no limit" if room is None else human(room),
            },
            "workload": {"name": workload.name, **workload.conditions},
            "link": {name: describe_link(link) for name, link in asdict(links).items()},
            "costs_ms": describe_costs(costs["cascade"], len(workload.x)),
            "rows": rows(everyone, alone, groups.groups, workload, ranks),
            "left_out": [{"key": key, "reason": reason} for key, reason in left_out.items()],
        }
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        timelines = {c.key: timelines_of(c, everyone[c], alone[c].prediction) for c in chosen}
        (arguments.out / "timelines.json").write_text(json.dumps(timelines, separators=(",", ":")) + "\n")
        remake(arguments.out)
        print(f"report: {arguments.out / 'report.md'}")


def rewrite_memory(runtime: Runtime, alone: Mapping[Contender, Alone], folder: Path) -> None:
    """Memory and traffic of each method, in place of those in the folder's report; rank 0 writes. What was not measured
    now stays as it is."""
    everyone = {
        c: [Measured.read(values) for values in runtime.exchange(c.key, asdict(found.measured))]
        for c, found in alone.items()
    }
    if runtime.rank == 0:
        report = json.loads((folder / "report.json").read_text())
        now = conditions(runtime.device)
        report["environment"]["memory and traffic"] = f"commit {now['commit']}, {now['date']}: {command(runtime)}"
        found = {
            c.key: memory_and_traffic([m for m in ranks if m.memory], alone[c].prediction)
            for c, ranks in everyone.items()
        }
        report["rows"] = [row | found.get(row["key"], {}) for row in report["rows"]]
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        remake(folder)


def command(runtime: Runtime) -> str:
    """What was called."""
    return f"torchrun --standalone --nproc_per_node={runtime.world_size} profiling/speedup.py {' '.join(sys.argv[1:])}"


def wanted(compared: Iterable[Contender], only: Sequence[str] | None) -> list[Contender]:
    """Those that --only names."""
    return [contender for contender in compared if not only or any(word in contender.key for word in only)]


def measure_alone(
    runtime: Runtime,
    workload: Workload,
    costs: Mapping[str, Costs],
    compared: Iterable[Contender],
    gib: float | None,
) -> tuple[dict[Contender, Alone], dict[str, str]]:
    """The memory pass over all contenders that can run here, and why the others cannot."""
    room = room_for_contenders(runtime, gib)
    found: dict[Contender, Alone] = {}
    left_out: dict[str, str] = {}
    for contender in compared:
        say(runtime, f"memory: {contender.key}")
        try:
            found[contender] = memory_pass(contender, runtime, workload, costs[contender.network], room)
        except UsageError as error:
            left_out[contender.key] = str(error)
    return found, left_out


def time_group(
    runtime: Runtime,
    workload: Workload,
    costs: Mapping[str, Costs],
    group: Mapping[Contender, Alone],
    offset: float,
    arguments: argparse.Namespace,
) -> dict[str, str]:
    """Windows of contenders that are in memory at the same time, in turn, added to what was measured of each. Returns
    the reasons of those that do not fit beside the others after all."""
    release(runtime.device)
    entries: list[Entry] = []
    left_out: dict[str, str] = {}
    for contender in group:
        try:
            entries.append(Entry(contender, runtime, workload, costs[contender.network]))
        except UsageError as error:
            left_out[contender.key] = str(error)
    for kind, turns in (("warm-up", arguments.warmup), ("timed", arguments.steps), ("traced", arguments.traced)):
        for turn in range(turns):
            say(runtime, f"{kind}: step {turn + 1} of {turns}")
            for entry in entries:
                one, seen = window(entry, runtime, offset, traced=kind == "traced"), group[entry.contender].measured
                if one is not None and kind != "warm-up":
                    (seen.traced if kind == "traced" else seen.timed).append(one)
    return left_out


def say(runtime: Runtime, text: str) -> None:
    if runtime.rank == 0:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
