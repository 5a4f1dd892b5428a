"""How much of a step under bf16 autocast is the casting of weights, which every microbatch does anew.

    python profiling/cast_cost.py --out DIR/cast_cost.json

Beside each step of the SID engine in one process, in turn, all weights are cast to bf16 as often as its microbatches do
that, and the gradients of the casts to fp32: M times each. Ratios are of the same turn.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import workloads
from harness.conditions import conditions

from sidpar import Objective, ParallelEngine, Runtime, Stage
from sidpar.distributed.device import mark, seconds_between, synchronize


def measure(workload: workloads.Workload, runtime: Runtime, microbatches: int, steps: int) -> dict[str, Any]:
    """Median milliseconds of a step, of its casts, and the median share with its 10th and 90th percentile."""
    stage = Stage(workload.networks["cascade"](), runtime, extractor="replicated", compute=workload.compute)
    engine = ParallelEngine(stage, Objective(), microbatches=microbatches)
    weights = [parameter.detach() for parameter in stage.parameters() if parameter.dim() > 1]
    x, y = workload.x.to(runtime.device), workload.y.to(runtime.device)
    engine.step(x, y)
    seconds = []
    for _ in range(steps):
        synchronize(runtime.device)
        marks = [mark(runtime.device)]
        engine.step(x, y)
        marks.append(mark(runtime.device))
        for _ in range(microbatches):
            for weight in weights:
                weight.bfloat16().float()
        marks.append(mark(runtime.device))
        synchronize(runtime.device)
        seconds.append([seconds_between(marks[0], marks[1]), seconds_between(marks[1], marks[2])])
    step, casts = np.array(seconds).T
    low, share, high = np.quantile(casts / step, [0.1, 0.5, 0.9])
    return {
        "network": workload.name,
        "microbatches": microbatches,
        "step_ms": 1000 * float(np.median(step)),
        "casts_ms": 1000 * float(np.median(casts)),
        "share": {"p10": float(low), "median": float(share), "p90": float(high)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the report, as JSON")
    parser.add_argument("--networks", nargs="+", default=["simple_cnn", "wide_mlp"], choices=["simple_cnn", "wide_mlp"])
    parser.add_argument("--microbatches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--refiners", type=int, default=8, help="L")
    parser.add_argument("--batch", type=int, default=256, help="global batch B")
    parser.add_argument("--steps", type=int, default=7)
    workloads.add_details(parser)
    parser.set_defaults(autocast="bf16")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    runtime, rows = Runtime.single(), []
    for name in given.networks:
        workload = workloads.make(argparse.Namespace(**vars(given), workload=name), num_ranks=1)
        for microbatches in given.microbatches:
            row = measure(workload, runtime, microbatches, given.steps)
            print(f"{name}, M = {microbatches}: {row['step_ms']:.1f} ms, casts {100 * row['share']['median']:.1f} %")
            rows.append(row)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"environment": conditions(runtime.device), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
