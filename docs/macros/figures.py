"""Figures and tables of the committed results by name, for the text of pages: `{{ figure("k8_streaming") }}`.

FIGURES maps a name to a function without arguments that returns Markdown. Each reads files in `profiling/results`, so a
page cannot disagree with them. Most names are made from two parts, what was measured and which way of training.
"""

import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from reporting.figures import Row, is_auto, median_ms
from reporting.summaries import RESULTS, best_of_kinds, over_best_sid, rows_of
from reporting.tables import table

from macros.answer import answer_table

CARD = RESULTS / "gpu" / "NVIDIA_H100_80GB_HBM3"
SCHEDULES = ("streaming", "fused", "1f1b", "zero_bubble", "ddp")


def read(*path: str) -> Any:
    return json.loads(RESULTS.joinpath(*path).read_text())


# Speed


def speed_up(name: str, key: str) -> str:
    """Of one row over naive backpropagation."""
    return f"{rows_of(name)[key]['speedup_vs_naive_bp']:.2f}"


def best_speed_up(name: str, schedule: str) -> str:
    """Of the fastest row of a schedule over naive backpropagation."""
    rows = [row for row in rows_of(name).values() if row["schedule"] == schedule and row["network"] == "cascade"]
    return f"{max(row['speedup_vs_naive_bp'] for row in rows if not is_auto(row)):.2f}"


def projected_by_the_paper(name: str, key: str) -> str:
    return f"{rows_of(name)[key]['paper_speedup']:.2f}"


def model_off(name: str, counts: Sequence[int]) -> str:
    """How far the cost model is off the measured median at most, over rows with one of these M."""
    rows = [row for row in rows_of(name).values() if row["microbatches"] in counts and row["model_step_ms"] is not None]
    return f"{math.ceil(100 * max(abs(row['model_step_ms'] / median_ms(row) - 1) for row in rows))} %"


def sixteen_ranks(way: str) -> str:
    """Modelled, not measured; a time without a bubble is a bound that no step can undercut."""
    (report,) = read("projection_emulated", "projection.json")["rows"]
    found = [row for row in report["projections"] if row["ranks"] == 16 and row["method"].split()[1] == way]
    best = max(found, key=lambda row: row["speedup_vs_naive_bp"])
    return f"{'at most ' if best['bubble_fraction'] is None else ''}{best['speedup_vs_naive_bp']:.2f}"


def over_sid(name: str, kind: str) -> str:
    """A step over that of the best SID of the grid."""
    return f"{over_best_sid(rows_of(name))[kind]:.2f}"


def sent(name: str, kind: str) -> str:
    """What a rank sends in a step at most, of the fastest row of a kind."""
    return f"{max(best_of_kinds(rows_of(name))[kind]['bytes_sent']) / 2**20:.0f} MiB"


def recomputing(measure: str) -> str:
    """SimpleCNN's stream, whose extractor keeps its activations or computes them twice."""
    rows = rows_of("simple_cnn_k2")
    kept, again = (rows[f"sid streaming sharded M=1{more}"] for more in ("", " recomputing"))
    if measure == "time":
        return f"{median_ms(again) / median_ms(kept):.2f}"
    return f"{max((kept if measure == 'kept' else again)['saved_activation_bytes']) / 2**20:.0f} MiB"


# Accuracy


def accuracy(dataset: str, staleness: int, remedy: str) -> float:
    """The mean over seeds, in percent."""
    wanted = (staleness, remedy, 0)
    rows = read("staleness", f"{dataset}.json")["rows"]
    found = [row["test_accuracy"] for row in rows if (row["staleness"], row["remedy"], row["diagnose"]) == wanted]
    return 100 * float(statistics.mean(found))


def lost(dataset: str, staleness: int, remedy: str) -> str:
    """Points of accuracy lost to `fused`."""
    return f"{accuracy(dataset, 0, 'none') - accuracy(dataset, staleness, remedy):.2f}"


def staleness_report(number: int) -> str:
    """A table of the report: digits, Proposition 5 on digits, Fashion-MNIST."""
    tables: list[str] = re.findall(r"(?:^\|.*\n)+", (RESULTS / "staleness" / "report.md").read_text(), re.MULTILINE)
    return tables[number].rstrip()


def training_table() -> str:
    lines = []
    ways = {"sid": "`sid`, 2 ranks, `sharded`, `fused`", "local": "`local`, one process, 2 threads"}
    for data, name in (("fashion_mnist", "Fashion-MNIST"), ("cifar10", "CIFAR-10")):
        for way, words in ways.items():
            run = read("real_data", f"{data}-{way}.json")
            accuracy, speed = f"{100 * run['test_accuracy']:.2f} %", f"{run['images_per_second']:.0f}"
            lines.append((name, run["epochs"], words, accuracy, speed))
    return table(["data", "epochs", "method", "test accuracy", "images/s"], lines, texts=3)


def by_depth(run: str) -> str:
    """Test accuracy after each refiner, in percent."""
    return ", ".join(f"{100 * value:.2f}" for value in read("real_data", f"{run}.json")["refiner_test_accuracy"])


# What a step, a checkpoint and a GPU cost


def overhead_table(*path: str) -> str:
    lines = [
        (
            f"`{row['model']}`",
            "fp32" if row["autocast"] == "none" else "bf16 autocast",
            row["num_refiners"],
            row["batch_size"],
            f"{row['ratio']:.2f}",
        )
        for row in read(*path)["rows"]
    ]
    return table(["network", "arithmetic", "L", "batch", "`ParallelEngine` : plain loop"], lines, texts=2)


def stacked_table() -> str:
    """Time of stacked refiners over that of the loop."""
    found = {
        (row["network"], row["num_refiners"], row["batch_size"]): row["ratios"]["stacked_over_loop"]["median"]
        for row in read("stacked_cpu.json")["rows"]
    }
    columns = [(name, size) for name in ("simple_cnn", "wide_mlp") for size in (8, 64, 256)]
    counts = sorted({count for _, count, _ in found})
    lines = [(n, *(f"{found[name, n, size]:.2f}" for name, size in columns)) for n in counts]
    return table(["refiners", *(f"`{name}`, {size} rows" for name, size in columns)], lines)


def checkpoint_table() -> str:
    lines = []
    for row in read("checkpoint_cost.json")["rows"]:
        time = row["window_s"]
        still = "-" if row["checkpoints"] == "none" else f"{1000 * row['blocked_s']['median']:.0f}"
        spread = f"{time['median']:.2f} ({time['min']:.2f} to {time['max']:.2f})"
        lines.append((row["checkpoints"], spread, f"{row['ratio']:.3f}", still))
    return table(["checkpoints", "50 steps, s", "of none", "training stands still, ms"], lines)


def plan_table() -> str:
    """The end of a plan, as it is printed."""
    text = (RESULTS / "plan" / "plan.txt").read_text()
    return f"```text\n{text[text.index('way  ') :].rstrip()}\n```"


def gpu_stacked_table() -> str:
    lines = (CARD / "stacked.txt").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


def gpu_uses_table() -> str:
    kinds = ("first_seconds", "again_seconds", "busy_seconds")
    rows: list[Row] = json.loads((CARD / "first_use.json").read_text())["rows"]
    lines = [(row["use"], *(f"{1000 * row[kind]:,.1f}" for kind in kinds)) for row in rows]
    return table(["use", "first time, ms", "second time, ms", "the stream was busy, ms"], lines)


FIGURES: dict[str, Callable[[], str]] = {
    "answer_table": answer_table,
    **{f"k8_{way}": partial(best_speed_up, "emulated_k8", way) for way in SCHEDULES},
    "k8_fused_at_1": partial(speed_up, "emulated_k8", "sid fused sharded M=1"),
    "simple_cnn_paper": partial(speed_up, "simple_cnn_k2", "sid two_phase replicated M=1"),
    "simple_cnn_projected": partial(projected_by_the_paper, "simple_cnn_k2", "sid two_phase replicated M=1"),
    **{f"k16_{way}": partial(sixteen_ranks, way) for way in SCHEDULES},
    "model_off_k4": partial(model_off, "emulated_k4", [1, 4, 16]),
    "model_off_k8_few": partial(model_off, "emulated_k8", [1, 8]),
    "model_off_k8_many": partial(model_off, "emulated_k8", [32]),
    "wide_mlp_pipeline_ratio": partial(over_sid, "wide_mlp_k2", "best BP pipeline"),
    "wide_mlp_ddp_ratio": partial(over_sid, "wide_mlp_k2", "DDP"),
    "wide_mlp_sent": partial(sent, "wide_mlp_k2", "SID, synchronous"),
    "wide_mlp_ddp_sent": partial(sent, "wide_mlp_k2", "DDP"),
    **{f"recomputing_{measure}": partial(recomputing, measure) for measure in ("time", "kept", "again")},
    "lost_fashion_mnist_1": partial(lost, "fashion_mnist", 1, "none"),
    **{f"lost_digits_{s}": partial(lost, "digits", s, "none") for s in (1, 2, 4)},
    **{f"lost_digits_{s}_prediction": partial(lost, "digits", s, "prediction") for s in (2, 4)},
    "staleness_table_digits": partial(staleness_report, 0),
    "staleness_table_proposition_5": partial(staleness_report, 1),
    "staleness_table_fashion_mnist": partial(staleness_report, 2),
    "training_table": training_table,
    **{f"by_depth_{run}": partial(by_depth, run) for run in ("cifar10-local", "cifar10-sid")},
    "overhead_table": partial(overhead_table, "engine_overhead.json"),
    "gpu_overhead_table": partial(overhead_table, "gpu", CARD.name, "engine_overhead.json"),
    "stacked_table": stacked_table,
    "checkpoint_table": checkpoint_table,
    "plan_table": plan_table,
    "gpu_stacked_table": gpu_stacked_table,
    "gpu_uses_table": gpu_uses_table,
}
