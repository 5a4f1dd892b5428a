"""Figures and tables of the committed results by name, for the text of pages: `{{ figure("k8_streaming") }}`.

FIGURES maps a name to a function without arguments that returns Markdown. Each reads files in `profiling/results`, so a
page cannot disagree with them. Most names are made from two parts, what was measured and which way of training.
"""

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "profiling" / "results"
CARD = RESULTS / "gpu" / "NVIDIA_H100_80GB_HBM3"
Row = dict[str, Any]

EMULATED = {"k8": "emulated_k8", "k4": "emulated_k4"}
REAL = {"wide_mlp": "wide_mlp_k2", "simple_cnn": "simple_cnn_k2", "digits": "digits_k2"}
SCHEDULES = (
    "streaming",
    "fused",
    "two_phase",
    "gpipe",
    "1f1b",
    "interleaved",
    "zero_bubble",
    "zbv",
    "dualpipe_v",
    "ddp",
)
PIPELINES = {
    "naive": "naive",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "interleaved 1F1B",
    "zero_bubble": "zero bubble",
    "zbv": "ZBV",
    "dualpipe_v": "DualPipeV",
}
WAYS = ("streaming", "synchronous", "pipeline", "ddp", "process", "process_1", "auto")
"""`process` is one process with two threads, `process_1` with one."""
LEVELS, REMEDIES = (0, 1, 2, 4, 8), ("none", "warmup", "slow", "momentum", "prediction", "compensation")


def read(*path: str) -> Any:
    return json.loads(RESULTS.joinpath(*path).read_text())


def rows(folder: str) -> list[Row]:
    """The rows of the cascade, without the plan's choice."""
    found = read(folder, "report.json")["rows"]
    return [row for row in found if row["network"] == "cascade" and not row["key"].endswith(" auto")]


def median(row: Row) -> float:
    return float(row["step_ms"]["median"])


def table(lines: Iterable[Sequence[str]]) -> str:
    """Markdown; the first line is the head."""
    head, *body = lines
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


# Emulated work: speed-up over naive backpropagation


def best_of(folder: str, schedule: str, m: int | None = None) -> Row:
    """The fastest row of a schedule, at any number of microbatches or at one."""
    found = [row for row in rows(folder) if row["schedule"] == schedule and m in (None, row["microbatches"])]
    return min(found, key=median)


def speed_up(folder: str, schedule: str, m: int | None = None) -> str:
    return f"{best_of(folder, schedule, m)['speedup_vs_naive_bp']:.2f}"


def best_pipeline(folder: str) -> Row:
    """The fastest pipeline of backpropagation over ranks."""
    return min((row for row in rows(folder) if row["method"] == "bp" and row["schedule"] in PIPELINES), key=median)


def model_off(folder: str, counts: Sequence[int]) -> str:
    """How far the cost model is off the measured median at most, over rows with one of these M."""
    found = [row for row in read(folder, "report.json")["rows"] if row["microbatches"] in counts]
    off = max(abs(row["model_step_ms"] / median(row) - 1) for row in found if row["model_step_ms"] is not None)
    return f"{math.ceil(100 * off)} %"


def sixteen_ranks(way: str) -> str:
    """Modelled, not measured; a time without a bubble is a bound that no step can undercut."""
    (report,) = read("projection_emulated", "projection.json")["rows"]
    found = [row for row in report["projections"] if row["ranks"] == 16 and row["method"].split()[1] == way]
    best = max(found, key=lambda row: row["speedup_vs_naive_bp"])
    return f"{'at most ' if best['bubble_fraction'] is None else ''}{best['speedup_vs_naive_bp']:.2f}"


# Real arithmetic on two ranks


def best_real(folder: str, way: str) -> Row:
    """The fastest row of a kind."""
    if way == "auto":
        return next(row for row in read(folder, "report.json")["rows"] if row["key"].endswith(" auto"))
    if way == "pipeline":
        return best_pipeline(folder)
    kinds: dict[str, Callable[[Row], bool]] = {
        "streaming": lambda row: row["schedule"] == "streaming",
        "synchronous": lambda row: row["schedule"] in ("fused", "two_phase"),
        "ddp": lambda row: row["method"] == "ddp",
        "process": lambda row: row["method"] == "bp" and row["schedule"] == "one process, 2 threads",
        "process_1": lambda row: row["key"] == "bp one process whole M=1",
    }
    return min(filter(kinds[way], rows(folder)), key=median)


def step_ms(folder: str, way: str) -> str:
    return f"{median(best_real(folder, way)):.0f}"


def over_sid(folder: str, way: str) -> str:
    """A step over that of the best SID tried."""
    sid = min(median(best_real(folder, kind)) for kind in ("streaming", "synchronous"))
    return f"{median(best_real(folder, way)) / sid:.2f}"


def recomputing(measure: str) -> str:
    """SimpleCNN's stream, whose extractor keeps its activations or computes them twice."""
    found = {row["key"]: row for row in read("simple_cnn_k2", "report.json")["rows"]}
    kept, again = (found[f"sid streaming sharded M=1{more}"] for more in ("", " recomputing"))
    if measure == "time":
        return f"{median(again) / median(kept):.2f}"
    return f"{max((kept if measure == 'kept' else again)['saved_activation_bytes']) / 2**20:.0f} MiB"


# Accuracy


def accuracies(dataset: str, staleness: int, remedy: str) -> list[float]:
    """In percent, one for each seed."""
    return [
        100 * row["test_accuracy"]
        for row in read("staleness", f"{dataset}.json")["rows"]
        if (row["staleness"], row["remedy"]) == (staleness, remedy) and not row["diagnose"]
    ]


def accuracy(dataset: str, staleness: int, remedy: str) -> str:
    return f"{statistics.mean(accuracies(dataset, staleness, remedy)):.2f}"


def lost(dataset: str, staleness: int, remedy: str) -> str:
    """Points of accuracy lost to `fused`."""
    found, whole = (statistics.mean(accuracies(dataset, *which)) for which in ((staleness, remedy), (0, "none")))
    return f"{whole - found:.2f}"


def staleness_report(number: int) -> str:
    """A table of the report: digits, Proposition 5 on digits, Fashion-MNIST."""
    text = (RESULTS / "staleness" / "report.md").read_text()
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)[number].rstrip()


def training_table() -> str:
    lines = [("data", "epochs", "method", "test accuracy", "images/s")]
    ways = {"sid": "`sid`, 2 ranks, `sharded`, `fused`", "local": "`local`, one process, 2 threads"}
    for data, name in (("fashion_mnist", "Fashion-MNIST"), ("cifar10", "CIFAR-10")):
        for way, words in ways.items():
            run = read("real_data", f"{data}-{way}.json")
            speed = f"{run['images_per_second']:.0f}"
            lines.append((name, str(run["epochs"]), words, f"{100 * run['test_accuracy']:.2f} %", speed))
    return table(lines)


def by_depth(run: str) -> str:
    """Test accuracy after each refiner, in percent."""
    return ", ".join(f"{100 * value:.2f}" for value in read("real_data", f"{run}.json")["refiner_test_accuracy"])


# What a step, a checkpoint and a GPU cost


def overhead_table(*path: str) -> str:
    lines = [("network", "arithmetic", "L", "batch", "`ParallelEngine` : plain loop")]
    for row in read(*path)["rows"]:
        arithmetic = "fp32" if row["autocast"] == "none" else "bf16 autocast"
        sizes = str(row["num_refiners"]), str(row["batch_size"])
        lines.append((f"`{row['model']}`", arithmetic, *sizes, f"{row['ratio']:.2f}"))
    return table(lines)


def stacked_table() -> str:
    found = {
        (row["network"], row["num_refiners"], row["batch_size"]): row["ratios"]["stacked_over_loop"]["median"]
        for row in read("stacked_cpu.json")["rows"]
    }
    columns = [(name, size) for name in ("simple_cnn", "wide_mlp") for size in (8, 64, 256)]
    head = ("refiners", *(f"`{name}`, {size} rows" for name, size in columns))
    counts = sorted({count for _, count, _ in found})
    return table([head, *((str(n), *(f"{found[name, n, size]:.2f}" for name, size in columns)) for n in counts)])


def checkpoint_table() -> str:
    lines = [("checkpoints", "50 steps, s", "of none", "training stands still, ms")]
    for row in read("checkpoint_cost.json")["rows"]:
        time, still = row["window_s"], f"{1000 * row['blocked_s']['median']:.0f}"
        spread = f"{time['median']:.2f} ({time['min']:.2f} to {time['max']:.2f})"
        lines.append(
            (row["checkpoints"], spread, f"{row['ratio']:.3f}", "-" if row["checkpoints"] == "none" else still)
        )
    return table(lines)


def plan_table() -> str:
    """The end of a plan, as it is printed."""
    text = (RESULTS / "plan" / "plan.txt").read_text()
    return f"```text\n{text[text.index('way  ') :].rstrip()}\n```"


def gpu_stacked_table() -> str:
    lines = (CARD / "stacked.txt").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


def gpu_uses_table() -> str:
    lines = [("first use", "first time, ms", "second time, ms", "the stream was busy, ms")]
    for row in json.loads((CARD / "first_use.json").read_text())["rows"]:
        times = (1000 * row[name] for name in ("first_seconds", "again_seconds", "busy_seconds"))
        lines.append((row["use"], *(f"{ms:,.1f}" for ms in times)))
    return table(lines)


# The answer: the table of the README and of the first page


def answer_table() -> str:
    """What is faster than what, and what accuracy. The best of each column of speed is bold."""
    ways = {
        "SID `streaming`": "streaming",
        "SID `fused`": "synchronous",
        "DDP": "ddp",
        "one process, both cores": "process",
    }
    fast = {name: _answer(way) for name, way in ways.items()}
    fast["best pipeline of backpropagation"] = _answer("pipeline")
    order = ["SID `streaming`", "SID `fused`", "best pipeline of backpropagation", "DDP", "one process, both cores"]
    best = [_best(fast.values(), column, most=column == 0) for column in range(4)]
    late = {"SID `streaming`": 1, "SID `fused`": 0}
    head = ("", "8 ranks, emulated: speed-up", *(f"2 ranks, `{name}`: step" for name in REAL), "test accuracy")
    lines = [head]
    for name in order:
        cells = [f"**{text}**" if text == top else text for text, top in zip(fast[name], best, strict=True)]
        measured = f"{accuracy('fashion_mnist', late[name], 'none')} %" if name in late else "not measured"
        lines.append((name, *cells, measured))
    return table(lines)


def _answer(way: str) -> list[str]:
    """Speed-up and three steps, with the pipeline's name."""
    schedule = {"streaming": "streaming", "synchronous": "fused", "ddp": "ddp"}.get(way)
    first = "-" if schedule is None else speed_up("emulated_k8", schedule)
    cells = [first, *(f"{step_ms(folder, way)} ms" for folder in REAL.values())]
    if way == "pipeline":
        names = [PIPELINES[best_pipeline(folder)["schedule"]] for folder in ("emulated_k8", *REAL.values())]
        cells[0] = f"{best_pipeline('emulated_k8')['speedup_vs_naive_bp']:.2f}"
        cells = [f"{cell} ({name})" for cell, name in zip(cells, names, strict=True)]
    return cells


def _best(lines: Iterable[Sequence[str]], column: int, *, most: bool) -> str:
    cells = [line[column] for line in lines if line[column] != "-"]
    return (max if most else min)(cells, key=lambda cell: float(cell.split()[0]))


FIGURES: dict[str, Callable[[], str]] = {
    **{f"{k}_{name}": partial(speed_up, folder, name) for k, folder in EMULATED.items() for name in SCHEDULES},
    **{
        f"k8_{name}_at_8": partial(speed_up, "emulated_k8", name, 8)
        for name in ("streaming", "fused", "zero_bubble", "1f1b")
    },
    **{f"k16_{name}": partial(sixteen_ranks, name) for name in ("streaming", "fused", "1f1b", "zero_bubble", "ddp")},
    "model_off_k4": partial(model_off, "emulated_k4", [1, 4, 16]),
    "model_off_k8_few": partial(model_off, "emulated_k8", [1, 8]),
    "model_off_k8_many": partial(model_off, "emulated_k8", [32]),
    **{f"{name}_{way}_ms": partial(step_ms, folder, way) for name, folder in REAL.items() for way in WAYS},
    **{f"{name}_{way}_ratio": partial(over_sid, folder, way) for name, folder in REAL.items() for way in WAYS},
    **{f"recomputing_{measure}": partial(recomputing, measure) for measure in ("time", "kept", "again")},
    **{
        f"accuracy_{data}_{s}": partial(accuracy, data, s, "none")
        for data in ("digits", "fashion_mnist")
        for s in LEVELS
    },
    **{f"lost_{data}_{s}": partial(lost, data, s, "none") for data in ("digits", "fashion_mnist") for s in LEVELS[1:]},
    **{f"lost_digits_{s}_{remedy}": partial(lost, "digits", s, remedy) for s in LEVELS[2:] for remedy in REMEDIES},
    **{f"by_depth_{run}": partial(by_depth, run) for run in ("cifar10-local", "cifar10-sid", "fashion_mnist-sid")},
    **{
        f"staleness_table_{name}": partial(staleness_report, number)
        for number, name in enumerate(("digits", "proposition_5", "fashion_mnist"))
    },
    "training_table": training_table,
    "overhead_table": partial(overhead_table, "engine_overhead.json"),
    "gpu_overhead_table": partial(overhead_table, "gpu", CARD.name, "engine_overhead.json"),
    "stacked_table": stacked_table,
    "checkpoint_table": checkpoint_table,
    "plan_table": plan_table,
    "gpu_stacked_table": gpu_stacked_table,
    "gpu_uses_table": gpu_uses_table,
    "answer_table": answer_table,
}


if __name__ == "__main__":
    print(answer_table())
