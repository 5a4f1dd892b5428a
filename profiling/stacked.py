"""The local forward-backward of n refiners on one device: one by one, all at once, and backpropagation beside them.

    python profiling/stacked.py --out profiling/results/stacked_cpu.json

Features are given, so the extractor is in none of the figures; neither is an optimizer. Contenders, in turn
(A B C A B C ...), so that drift of the machine hits all alike:

- `loop`: what `fused` does on one rank. One forward with a graph per refiner, which is teacher of the next and student;
  then one backward per refiner.
- `stacked`: the chain without a graph (but for the last refiner, whose state nobody here receives), then one batched
  forward and one batched backward for all refiners.
- `chain`: the first part of `stacked` alone. `two_phase` runs it in any case, so there `loop` costs `chain` more.
- `bp`: backpropagation through the same refiners: one graph, cross-entropy at the end.

Ratios are of contenders in the same turn. On a GPU, times are CUDA events' and the allocator's peak is measured too.
With few rows a step is bound by the number of kernels, with many by arithmetic, of which `stacked` has a third more.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.conditions import conditions
from torch import Tensor, nn

from sidpar import Objective, Runtime
from sidpar.cascade.cascade import TensorTuple, detach, initial_state, refine
from sidpar.cascade.stacked import StackedRefiners
from sidpar.distributed.device import mark, peak_memory, reset_peak_memory, seconds_between, synchronize
from sidpar.models import MODELS
from sidpar.profiler.saved_activations import SavedTensors
from sidpar.rules.kl import local_loss, local_losses, target_of

IMAGE, CLASSES = (3, 32, 32), 10
FEATURES = {"simple_cnn": 128, "wide_mlp": 1024}
OBJECTIVE = Objective(0.5)
TOLERANCE = 1e-10
"""Of gradients in float64, relative to their norms."""
PAIRS = (("stacked", "loop"), ("stacked", "bp"), ("loop", "bp"))


@dataclass(frozen=True)
class Batch:
    """Features [b, D], whose gradients collect in .grad, and targets [b, C]."""

    features: TensorTuple
    target: Tensor

    @staticmethod
    def make(rows: int, width: int, device: torch.device, dtype: torch.dtype = torch.float32) -> "Batch":
        generator = torch.Generator().manual_seed(rows)
        features = torch.randn(rows, width, generator=generator).relu().to(device, dtype).requires_grad_()
        labels = torch.randint(0, CLASSES, (rows,), generator=generator).to(device)
        return Batch((features,), target_of(OBJECTIVE, labels, CLASSES, dtype))


def loop(refiners: list[nn.Module], batch: Batch) -> None:
    """`fused` with one microbatch."""
    state = initial_state(batch.features, CLASSES)
    losses = []
    for refiner in refiners:
        following = refine(refiner, batch.features, state)
        losses.append(local_loss(OBJECTIVE, 0.5, following[0], state[0], batch.target).sum() / len(batch.target))
        state = detach(following)
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]


@torch.no_grad()
def chain(refiners: list[nn.Module], batch: Batch) -> list[TensorTuple]:
    """The states that the refiners receive."""
    states = [initial_state(batch.features, CLASSES)]
    for refiner in refiners[:-1]:
        states.append(refine(refiner, batch.features, states[-1]))
    return states


def at_once(stacked: StackedRefiners, refiners: list[nn.Module], batch: Batch) -> None:
    states = chain(refiners, batch)
    log_beliefs = stacked.forward(batch.features, states)[0]
    teachers = torch.stack([state[0] for state in states])
    losses = local_losses(OBJECTIVE, [0.5] * len(refiners), log_beliefs, teachers, batch.target)
    (losses.sum() / len(batch.target)).backward()  # type: ignore[no-untyped-call]


def backpropagation(refiners: list[nn.Module], batch: Batch) -> None:
    state = initial_state(batch.features, CLASSES)
    for refiner in refiners:
        state = refine(refiner, batch.features, state)
    losses = local_loss(OBJECTIVE, 1.0, state[0], state[0], batch.target)
    (losses.sum() / len(batch.target)).backward()  # type: ignore[no-untyped-call]


def build(network: str, num_refiners: int, device: torch.device, compile: bool) -> list[nn.Module]:
    refiners = [refiner.to(device) for refiner in MODELS[network].build(IMAGE, CLASSES, num_refiners).refiners]
    if compile:
        for refiner in refiners:
            refiner.compile()  # as a stage does
    return refiners


def compare(network: str, num_refiners: int, rows: int, device: torch.device, options: argparse.Namespace) -> Any:
    """One row of the report."""
    check(network, num_refiners, rows, device, compile=options.compile)
    batch = Batch.make(rows, FEATURES[network], device)
    plain, moved = (build(network, num_refiners, device, options.compile) for _ in range(2))
    stacked = StackedRefiners(moved, compile=options.compile)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.autocast == "bf16")
    contenders: dict[str, Callable[[], Any]] = {
        "loop": lambda: loop(plain, batch),
        "stacked": lambda: at_once(stacked, moved, batch),
        "chain": lambda: chain(moved, batch),
        "bp": lambda: backpropagation(plain, batch),
    }
    memory = {name: memory_of(run, [*plain, *moved], batch, autocast, device) for name, run in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(options.warmup + options.steps):
        for name, run in contenders.items():
            synchronize(device)
            start = mark(device)
            clear(moved if name == "stacked" else plain, batch)  # as a step begins: part of its time
            with autocast:
                run()
            end = mark(device)
            synchronize(device)
            if turn >= options.warmup:
                seconds[name].append(seconds_between(start, end))
    return {
        "network": network,
        "num_refiners": num_refiners,
        "batch_size": rows,
        "ms": {name: spread(1000 * np.array(times)) for name, times in seconds.items()},
        "ratios": {f"{a}_over_{b}": spread(np.array(seconds[a]) / np.array(seconds[b])) for a, b in PAIRS},
        **{kind: {name: figures[kind] for name, figures in memory.items()} for kind in memory["loop"]},
    }


def clear(refiners: list[nn.Module], batch: Batch) -> None:
    """No gradients: the beginning of a step."""
    for refiner in refiners:
        refiner.zero_grad()
    for feature in batch.features:
        feature.grad = None


def check(network: str, num_refiners: int, rows: int, device: torch.device, *, compile: bool) -> None:
    """Both must do the same arithmetic, or their times say nothing. Raises AssertionError if they do not.

    In float64, where they differ by no more than its rounding. In fp32, one unit whose input is nearer to 0 than its
    rounding may be on for one of them and off for the other, which changes a gradient by 2e-3: of the 10^6 units of
    `wide_mlp` with L = 8 and 64 rows, the nearest is at 1.4e-7.
    """
    batch = Batch.make(rows, FEATURES[network], device, torch.float64)
    plain, moved = ([refiner.double() for refiner in build(network, num_refiners, device, compile)] for _ in range(2))
    stacked = StackedRefiners(moved, compile=compile)
    sides: list[tuple[list[nn.Module], Callable[[], None]]] = [
        (plain, lambda: loop(plain, batch)),
        (moved, lambda: at_once(stacked, moved, batch)),
    ]
    found = []
    for refiners, run in sides:
        clear(refiners, batch)
        run()
        found.append([p.grad for refiner in refiners for p in refiner.parameters()] + [f.grad for f in batch.features])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert (one - other).norm() <= TOLERANCE * one.norm(), "the gradients differ"


def memory_of(
    run: Callable[[], Any], refiners: list[nn.Module], batch: Batch, autocast: torch.autocast, device: torch.device
) -> dict[str, int | None]:
    """Bytes beyond parameters, features and targets: what autograd saves, and on a GPU the allocator's peak."""
    clear(refiners, batch)
    known = [*(p for refiner in refiners for p in refiner.parameters()), *batch.features, batch.target]
    reset_peak_memory(device)
    before = peak_memory(device)
    with autocast:
        run()
    peak = peak_memory(device) - before if device.type == "cuda" else None
    clear(refiners, batch)
    with autocast, SavedTensors(known) as saved:
        run()
    return {"saved_activation_bytes": saved.peak, "peak_bytes": peak}


def spread(figures: Any) -> dict[str, float]:
    return dict(zip(("p10", "median", "p90"), np.quantile(figures, [0.1, 0.5, 0.9]).tolist(), strict=True))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: medians, and ratios with their spread over turns."""
    names = list(rows[0]["ms"])
    header = ["network", "L", "batch", *(f"{name}, ms" for name in names), *(f"{a} : {b}" for a, b in PAIRS)]
    header += ["activations, MiB: loop", "stacked", "bp"]
    if rows[0]["peak_bytes"]["loop"] is not None:
        header += ["peak, MiB: loop", "stacked", "bp"]
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    for row in rows:
        cells = [row["network"], str(row["num_refiners"]), str(row["batch_size"])]
        cells += [f"{row['ms'][name]['median']:.2f}" for name in names]
        for a, b in PAIRS:
            ratio = row["ratios"][f"{a}_over_{b}"]
            cells.append(f"{ratio['median']:.2f} ({ratio['p10']:.2f} to {ratio['p90']:.2f})")
        for kind in ("saved_activation_bytes", "peak_bytes"):
            figures = [row[kind][name] for name in ("loop", "stacked", "bp")]
            cells += [f"{figure / 2**20:.1f}" for figure in figures if figure is not None]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the report as JSON")
    parser.add_argument("--networks", nargs="+", default=list(FEATURES), choices=list(FEATURES))
    parser.add_argument("--refiners", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--autocast", choices=["none", "bf16"], default="none")
    parser.add_argument("--compile", action="store_true", help="torch.compile every refiner, and the batched function")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    options = parser.parse_args()
    device = Runtime.single().device
    if device.type == "cpu":
        torch.set_num_threads(1)
    rows = []
    for network, num_refiners, batch in product(options.networks, options.refiners, options.batches):
        rows.append(compare(network, num_refiners, batch, device, options))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    print("\n" + table(rows))
    if options.out is not None:
        settings = {name: getattr(options, name) for name in ("autocast", "compile", "steps", "warmup")}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        report = {"environment": conditions(device), "settings": settings, "rows": rows}
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
