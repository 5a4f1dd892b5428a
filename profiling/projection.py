"""Times each piece of a network on one device, and projects from that what K devices would do. No other rank is needed.

    python profiling/projection.py --out DIR

writes DIR/projection.json and DIR/projection.md: for SimpleCNN and wide_mlp, or other workloads, at several L and batch
sizes, the time of each piece (CUDA events on a GPU, a monotonic clock on a CPU), the memory that one process takes by
method, and for each K the cost model's speed-up over naive backpropagation beside the paper's own projection (appendix
B.3), which knows no messages. Messages are modelled from --latency-us and --gigabytes-per-s; nothing here was sent.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from harness import workloads
from harness.conditions import conditions
from harness.contenders import SINGLE, Local, Whole
from harness.measuring import Entry, memory_of
from harness.rows import describe_costs

from sidpar import Runtime
from sidpar.calibration.all_ranks import halvings
from sidpar.calibration.pieces import measure_costs
from sidpar.engines.backpropagation.order import torch_order
from sidpar.planner.candidates import LocalCandidate
from sidpar.planner.job import Job
from sidpar.planner.search import Freedom, backpropagation, local_candidates, search
from sidpar.schedules.placement import Placement, place_by_count
from sidpar.simulation.cost_model import naive_seconds, paper_seconds
from sidpar.simulation.costs import Costs, ring_links

SINGLES = (
    Whole("bp", SINGLE, "whole"),
    Whole("bp", f"{SINGLE}, accumulation", "whole", 8),
    Whole("bp", f"{SINGLE}, checkpointing", "whole"),
    Whole("bp", f"{SINGLE}, deep supervision", "whole"),
    Local("sid", SINGLE, "whole"),
    Local("sid", f"{SINGLE}, accumulation", "whole", 8),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["simple_cnn", "wide_mlp"])
    parser.add_argument("--refiners", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512, 4096])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    workloads.add_details(parser)
    parser.add_argument("--latency-us", type=float, default=10.0)
    parser.add_argument("--gigabytes-per-s", type=float, default=100.0)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    rows = []
    for name, num_refiners, batch in product(arguments.networks, arguments.refiners, arguments.batches):
        print(f"{name}, L = {num_refiners}, B = {batch}", file=sys.stderr, flush=True)
        rows.append(measure(name, num_refiners, batch, arguments))
    environment = conditions(Runtime.single().device) | {
        "command": f"python profiling/projection.py {' '.join(sys.argv[1:])}",
        "autocast": arguments.autocast,
        "modelled latency": f"{arguments.latency_us:g} us",
        "modelled bandwidth": f"{arguments.gigabytes_per_s:g} GB/s",
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {"environment": environment, "rows": rows}
    (arguments.out / "projection.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / "projection.md").write_text(markdown(report))


def measure(name: str, num_refiners: int, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One network at one batch size: its pieces, its memory, and what they let expect on K ranks."""
    runtime = Runtime.single()
    given = argparse.Namespace(**vars(arguments), workload=name, batch=batch)
    given.refiners = num_refiners
    workload = workloads.make(given, 1)
    workload = replace(workload, x=workload.x.to(runtime.device), y=workload.y.to(runtime.device))
    sizes = sorted(halvings(batch))
    costs = measure_costs(workload.networks["cascade"](), workload.x, workload.compute, sizes, apart=True)
    memory = {c.key: asdict(memory_of(Entry(c, runtime, workload, costs), runtime, workload)[0]) for c in SINGLES}
    return {
        "network": name,
        "num_refiners": num_refiners,
        "batch_size": batch,
        "costs_ms": describe_costs(costs, batch),
        "memory": memory,
        "projections": [p for ranks in arguments.ranks for p in project(costs, batch, ranks, arguments)],
    }


def project(costs: Costs, batch: int, ranks: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What K ranks would do, each way to train at the M that suits it best, the fastest first."""
    num_refiners = len(costs.refiners)
    if num_refiners < ranks:
        return
    links = ring_links(1e-6 * arguments.latency_us, 1e9 * arguments.gigabytes_per_s, ranks)
    job = Job(replace(costs, links=links), batch, ranks)
    naive, placement = naive_seconds(costs, batch), Placement(place_by_count(num_refiners, ranks))
    paper = naive / paper_seconds(costs, batch, [placement.refiners(rank) for rank in range(ranks)])
    ways = [*local_candidates(job, Freedom()), *backpropagation(job, torch_order, {})]
    for option in search(job, [way for way in ways if way.holding.num_ranks == ranks]):
        yield {
            "ranks": ranks,
            "method": option.candidate.row,
            "microbatches": option.candidate.microbatches,
            "step_ms": 1000 * option.seconds,
            "speedup_vs_naive_bp": naive / option.seconds,
            "bubble_fraction": option.bubble,
            "saved_activation_bytes": option.largest.saved_activations if option.largest else None,
            "paper_speedup": paper if isinstance(option.candidate, LocalCandidate) else None,
        }


def markdown(report: dict[str, Any]) -> str:
    """The tables."""
    lines = ["# Pieces timed on one device, and what they let expect on K", ""]
    if report["environment"]["gpus"] == 0:
        lines += ["**CPU; not measured on a GPU.**", ""]
    lines += [f"- {name}: {value}" for name, value in report["environment"].items()]
    lines += ["", "## Measured pieces (ms, forward / backward of the whole batch)", ""]
    lines += [
        "| network | L | B | extractor | all refiners | extractor's share |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        network, costs = f"{row['network']} | {row['num_refiners']} | {row['batch_size']}", row["costs_ms"]
        extractor = costs["extractor forward"], costs["extractor backward"]
        refiners = sum(costs["refiner forward"]), sum(costs["refiner backward"])
        share = sum(extractor) / (sum(extractor) + sum(refiners))
        lines.append(
            f"| {network} | {extractor[0]:.2f} / {extractor[1]:.2f} "
            f"| {refiners[0]:.2f} / {refiners[1]:.2f} | {100 * share:.0f} % |"
        )
    lines += ["", "## Measured memory of one process (MiB)", ""]
    lines += [
        "| network | L | B | method | saved activations | allocator peak |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        for key, memory in row["memory"].items():
            peak = "-" if memory["allocator_peak"] is None else f"{memory['allocator_peak'] / 2**20:.1f}"
            saved = memory["saved_activations"] / 2**20
            lines.append(
                f"| {row['network']} | {row['num_refiners']} | {row['batch_size']} | {key} | {saved:.1f} | {peak} |"
            )
    lines += ["", "## Projected on K ranks (modelled, each at the M that suits it best)", ""]
    lines += ["Where the bubble is `-`, the time is a bound that no step can undercut; it was not simulated.", ""]
    lines += ["| network | L | B | K | method | M | step ms | vs naive BP | bubble | the paper's projection |"]
    lines += ["| --- " * 10 + "|"]
    for row in report["rows"]:
        network = f"{row['network']} | {row['num_refiners']} | {row['batch_size']}"
        for p in row["projections"]:
            paper = "-" if p["paper_speedup"] is None else f"{p['paper_speedup']:.2f}"
            bubble = "-" if p["bubble_fraction"] is None else f"{100 * p['bubble_fraction']:.0f} %"
            lines.append(
                f"| {network} | {p['ranks']} | {p['method']} "
                f"| {p['microbatches']} | {p['step_ms']:.2f} | {p['speedup_vs_naive_bp']:.2f} "
                f"| {bubble} | {paper} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
