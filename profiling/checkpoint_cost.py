"""What checkpoints cost: steps of `wide_mlp` on the ranks of a job with a checkpoint every N steps, and without.

    torchrun --standalone --nproc_per_node=2 profiling/checkpoint_cost.py --out profiling/results/checkpoint_cost.json

A window is N steps (engine and optimizer) with one checkpoint at its beginning, which is on the disk at its end.
Windows without a checkpoint, with one that is written while training goes on, and with one that training waits for take
turns, so that drift of the machine hits all alike. Reported: the ratio of the medians, and the time for which training
stands still.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness.conditions import conditions
from harness.workloads import Workload, add_details, make

from sidpar import Objective, ParallelEngine, Runtime, Stage
from sidpar.config.groups.optim import OptimConfig
from sidpar.engines.base import Engine
from sidpar.runs.checkpoint import Checkpoints
from sidpar.training.optim import Optimizers
from sidpar.training.training_state import TrainingState

WAYS = ("none", "asynchronous", "synchronous")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the report as JSON")
    parser.add_argument("--every", type=int, default=50, help="N, steps from one checkpoint to the next")
    parser.add_argument("--windows", type=int, default=7, help="of each kind")
    parser.add_argument("--refiners", type=int, default=8, help="L")
    parser.add_argument("--batch", type=int, default=256, help="global batch B")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; by default a temporary folder")
    add_details(parser)
    parser.set_defaults(workload="wide_mlp")
    arguments = parser.parse_args()
    with Runtime.start() as runtime, tempfile.TemporaryDirectory() as temporary:
        # A folder that all ranks see: rank 0's.
        folder = Path(runtime.from_root("folder", str(arguments.folder or temporary)))
        report = measure(runtime, make(arguments, runtime.world_size), folder, arguments.every, arguments.windows)
        runtime.barrier()
    if runtime.rank == 0:
        for row in report["rows"]:
            print(
                f"{row['checkpoints']:12} {row['window_s']['median']:.2f} s for {arguments.every} steps, "
                f"{row['ratio']:.3f} of none; standing still {1000 * row['blocked_s']['median']:.0f} ms"
            )
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def measure(runtime: Runtime, workload: Workload, folder: Path, every: int, windows: int) -> dict[str, Any]:
    """The report, the same on every rank but for the times."""
    stage = Stage(workload.networks["cascade"](), runtime, compute=workload.compute)
    engine = ParallelEngine(stage, Objective())
    optimizers = Optimizers(stage.parts(), OptimConfig(), 1000)
    state = TrainingState(engine, optimizers)
    writers = {
        way: Checkpoints(folder / way, runtime, keep=1, asynchronous=way == "asynchronous")
        for way in WAYS
        if way != "none"
    }
    train(engine, optimizers, workload, 5)
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(windows):
        for way in WAYS:
            runtime.barrier()
            start = time.perf_counter()
            if way != "none":
                assert state.all_finite()
                writers[way].save(state.tensors(), {"step": engine.steps})
            blocked = time.perf_counter() - start if way != "none" else 0.0
            train(engine, optimizers, workload, every)
            if way != "none":
                writers[way].wait()
            runtime.barrier()
            times[way].append((time.perf_counter() - start, blocked))
    none = statistics.median(total for total, _ in times["none"])
    written = sum(file.stat().st_size for file in (folder / "synchronous").rglob("*") if file.is_file())
    return {
        "environment": conditions(runtime.device)
        | {"command": "torchrun --standalone --nproc_per_node=2 profiling/checkpoint_cost.py"},
        "settings": workload.conditions
        | {"ranks": runtime.world_size, "steps_between": every, "windows": windows, "checkpoint_bytes": written},
        "rows": [
            {
                "checkpoints": way,
                "window_s": spread([total for total, _ in found]),
                "blocked_s": spread([blocked for _, blocked in found]),
                "ratio": statistics.median(total for total, _ in found) / none,
            }
            for way, found in times.items()
        ],
    }


def train(engine: Engine, optimizers: Optimizers, workload: Workload, steps: int) -> None:
    """So many steps, each with its update."""
    for _ in range(steps):
        engine.step(workload.x, workload.y)
        optimizers.update(engine.stage.parts())


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
