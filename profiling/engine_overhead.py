"""What the engine itself costs: one process with `ParallelEngine` against a plain PyTorch loop of the same arithmetic.

    python profiling/engine_overhead.py --out profiling/results/engine_overhead.json

Both train the same network on the same batch, in turn (A B A B ...), so that drift of the machine hits both alike.
Reported: the ratio of the medians, and its spread over pairs. No optimizer, no data loading.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness.conditions import conditions
from torch import Tensor
from torch.nn import functional as F

from sidpar import Compute, Objective, ParallelEngine, Runtime, Stage
from sidpar.cascade.cascade import Cascade
from sidpar.distributed.device import synchronize
from sidpar.models import MODELS

IMAGE = (3, 32, 32)
ALPHA = 0.5


def plain_step(cascade: Cascade, x: Tensor, y: Tensor, autocast: bool) -> None:
    """SID in a few lines of PyTorch: what a researcher would write without sidpar."""
    cascade.zero_grad()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        features = cascade.extractor(x).float()
    target = F.one_hot(y, cascade.num_classes).float()
    log_belief = torch.full_like(target, 1 / cascade.num_classes).log()
    losses = []
    for refiner in cascade.refiners:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            logits = refiner(features, log_belief)
        log_p = logits.float().log_softmax(-1)
        to_target = F.kl_div(log_p, target, reduction="none").sum(-1)
        to_teacher = F.kl_div(log_p, log_belief, reduction="none", log_target=True).sum(-1)
        losses.append((ALPHA * to_target + (1 - ALPHA) * to_teacher).mean())
        log_belief = log_p.detach()
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]


def build(name: str, num_refiners: int) -> Cascade:
    return MODELS[name].build(IMAGE, 10, num_refiners)


def compare(name: str, num_refiners: int, batch_size: int, autocast: bool, steps: int, warmup: int) -> dict[str, Any]:
    """One row of the report."""
    runtime = Runtime.single()
    compute = Compute("bf16" if autocast else "none")
    stage = Stage(build(name, num_refiners), runtime, compute=compute)
    engine = ParallelEngine(stage, Objective(ALPHA))
    cascade = build(name, num_refiners).to(runtime.device)
    x = torch.randn(batch_size, *IMAGE, device=runtime.device)
    y = torch.randint(0, 10, (batch_size,), device=runtime.device)
    contenders: dict[str, Callable[[], Any]] = {
        "sid": lambda: engine.step(x, y),
        "plain": lambda: plain_step(cascade, x, y, autocast),
    }
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    for step in range(warmup + steps):
        for contender, run in contenders.items():
            synchronize(runtime.device)
            start = time.perf_counter()
            run()
            synchronize(runtime.device)
            if step >= warmup:
                times[contender].append(1000 * (time.perf_counter() - start))
    for parameter, other in zip(stage.parameters(), cascade.parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        assert torch.allclose(parameter.grad, other.grad, rtol=0.2, atol=1e-3), "both must do the same arithmetic"
    medians = {contender: statistics.median(values) for contender, values in times.items()}
    pairs = sorted(a / b for a, b in zip(times["sid"], times["plain"], strict=True))
    return {
        "model": name,
        "num_refiners": num_refiners,
        "batch_size": batch_size,
        "autocast": compute.autocast,
        "steps": steps,
        "warmup_steps": warmup,
        "sid_ms": medians["sid"],
        "plain_ms": medians["plain"],
        "ratio": medians["sid"] / medians["plain"],
        "ratio_of_pairs": {"p10": pairs[len(pairs) // 10], "p90": pairs[9 * len(pairs) // 10]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the report as JSON")
    parser.add_argument("--batch", type=int, default=128, help="B")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--max-ratio", type=float, help="fail if a ratio of medians is above this")
    arguments = parser.parse_args()
    cases = [("simple_cnn", False), ("simple_cnn", True), ("wide_mlp", False)]
    rows = [compare(name, 8, arguments.batch, half, arguments.steps, arguments.warmup) for name, half in cases]
    for row in rows:
        print(
            f"{row['model']:10} L={row['num_refiners']} B={row['batch_size']} autocast={row['autocast']}: "
            f"sid {row['sid_ms']:.1f} ms, plain {row['plain_ms']:.1f} ms, ratio {row['ratio']:.3f}"
        )
    environment = conditions(Runtime.single().device)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n")
    if arguments.max_ratio is not None and max(row["ratio"] for row in rows) > arguments.max_ratio:
        raise SystemExit(f"a ratio is above {arguments.max_ratio}")


if __name__ == "__main__":
    main()
