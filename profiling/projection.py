"""Times each piece of a network on one device, and projects from that what K devices would do. No other rank is needed.

    python profiling/projection.py --out DIR

writes DIR/projection.json and DIR/projection.md: for SimpleCNN and wide_mlp at several L and batch sizes, the time of
each piece (CUDA events on a GPU, a monotonic clock on a CPU), the memory that one process takes by method, and for each
K the cost model's speed-up over naive backpropagation beside the paper's own projection (appendix B.3), which knows no
messages. Messages are modelled from --latency-us and --gigabytes-per-s; nothing here was sent.
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
from conditions import conditions
from contenders import SINGLE, Contender
from measuring import Entry, memory_of
from rows import describe_costs
from workloads import make

from sidpar import Runtime
from sidpar.balance import measure_costs
from sidpar.batching import BatchLayout
from sidpar.cost_model import (
    Prediction,
    naive_seconds,
    paper_seconds,
    predict_pipeline,
    predict_sid,
    predict_whole,
)
from sidpar.costs import Costs, ring_links
from sidpar.cut import make_cut
from sidpar.pipelines import one_f_one_b, with_messages
from sidpar.placement import Placement, place_by_count
from sidpar.schedule import all_ranks, fused, two_phase

SCHEDULES = {"two_phase": two_phase, "fused": fused}
SINGLES = (
    Contender("bp", SINGLE, "whole"),
    Contender("bp", f"{SINGLE}, accumulation", "whole", 8),
    Contender("bp", f"{SINGLE}, checkpointing", "whole"),
    Contender("bp", f"{SINGLE}, deep supervision", "whole"),
    Contender("sid", SINGLE, "whole"),
    Contender("sid", f"{SINGLE}, accumulation", "whole", 8),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["simple_cnn", "wide_mlp"])
    parser.add_argument("--refiners", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512, 4096])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--autocast", choices=["none", "bf16"], default="none")
    parser.add_argument("--width", type=int, default=1024, help="wide_mlp: hidden units of a refiner")
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
    workload = make(given, 1)
    workload = replace(workload, x=workload.x.to(runtime.device), y=workload.y.to(runtime.device))
    cuts = {batch} | {batch // m for m in (2, 4, 8, 16, 32, 64) if batch // m >= 1}
    costs = measure_costs(workload.networks["cascade"](), workload.x, workload.compute, sorted(cuts), apart=True)
    memory = {c.key: asdict(memory_of(Entry(c, runtime, workload, costs), runtime, workload)[0]) for c in SINGLES}
    return {
        "network": name,
        "num_refiners": num_refiners,
        "batch_size": batch,
        "costs_ms": describe_costs(costs, batch),
        "memory": memory,
        "projections": [p for ranks in arguments.ranks for p in project(costs, num_refiners, batch, ranks, arguments)],
    }


def project(
    costs: Costs, num_refiners: int, batch: int, ranks: int, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """What K ranks would do, each method at the M that suits it best."""
    if num_refiners < ranks:
        return
    links = ring_links(1e-6 * arguments.latency_us, 1e9 * arguments.gigabytes_per_s, ranks)
    costs = replace(costs, links=links)
    naive = naive_seconds(costs, batch)
    counts = place_by_count(num_refiners, ranks)

    def row(method: str, predictions: dict[int, Prediction], paper: float | None = None) -> dict[str, Any]:
        best = min(predictions, key=lambda m: predictions[m].seconds)
        prediction = predictions[best]
        return {
            "ranks": ranks,
            "method": method,
            "microbatches": best,
            "step_ms": 1000 * prediction.seconds,
            "speedup_vs_naive_bp": naive / prediction.seconds,
            "bubble_fraction": prediction.bubble,
            "saved_activation_bytes": max(prediction.saved_bytes),
            "paper_speedup": paper,
        }

    tried = [m for m in (1, ranks, 4 * ranks) if m <= batch]
    paper = naive / paper_seconds(costs, batch, [Placement(counts).refiners(rank) for rank in range(ranks)])
    for schedule, extractor in product(SCHEDULES, ("replicated", "sharded")):
        placement = Placement(counts, extractor)  # type: ignore[arg-type]
        predictions = {
            m: predict_sid(all_ranks(SCHEDULES[schedule], placement, m), placement, costs, BatchLayout(batch, m, ranks))
            for m in tried
        }
        yield row(f"sid {schedule} {extractor}", predictions, paper)
    if len(costs.layers) + num_refiners >= ranks:
        yield row("bp 1f1b cut", {m: pipeline(costs, batch, ranks, m) for m in tried if m >= ranks})
    yield row("ddp", {1: predict_whole(costs, batch, num_ranks=ranks)})


def pipeline(costs: Costs, batch: int, ranks: int, microbatches: int) -> Prediction:
    rows = batch / microbatches
    layers, refiners = costs.loads(rows)
    sections = make_cut("1f1b", "cut", ranks, layers, refiners)
    lists = [list(with_messages(sections, one_f_one_b(sections, rank, microbatches))) for rank in range(ranks)]
    return predict_pipeline(lists, costs, sections, rows)


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
        network = f"{row['network']} | {row['num_refiners']} | {row['batch_size']}"
        for key, memory in row["memory"].items():
            peak = "-" if memory["allocator_peak"] is None else f"{memory['allocator_peak'] / 2**20:.1f}"
            saved = memory["saved_activations"] / 2**20
            lines.append(
                f"| {row['network']} | {row['num_refiners']} | {row['batch_size']} | {key} | {saved:.1f} | {peak} |"
            )
    lines += ["", "## Projected on K ranks (modelled, each at its best M of 1, K, 4K)", ""]
    lines += ["| network | L | B | K | method | M | step ms | vs naive BP | bubble | the paper's projection |"]
    lines += ["| --- " * 10 + "|"]
    for row in report["rows"]:
        network = f"{row['network']} | {row['num_refiners']} | {row['batch_size']}"
        for p in row["projections"]:
            paper = "-" if p["paper_speedup"] is None else f"{p['paper_speedup']:.2f}"
            lines.append(
                f"| {network} | {p['ranks']} | {p['method']} "
                f"| {p['microbatches']} | {p['step_ms']:.2f} | {p['speedup_vs_naive_bp']:.2f} "
                f"| {100 * p['bubble_fraction']:.0f} % | {paper} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
