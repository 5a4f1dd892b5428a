"""The tables of a report, in Markdown."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from reporting.figures import Row, at, is_auto, median_ms, saved_activations
from reporting.gantt import phase_order
from sidpar.config.units import human, unit_of
from sidpar.schedules.phases import MESSAGES

PARTS = ("extractor forward", "extractor backward", "refiner forward", "refiner backward")


def figure(value: float | None, unit: str = "") -> str:
    """A number with about four digits."""
    if value is None:
        return "-"
    decimals = next((count for count, limit in enumerate((1000, 100, 10)) if abs(value) >= limit), 3)
    return f"{value:,.{decimals}f}{unit}"


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def greatest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def per_rank(values: Sequence[float | None] | None, sizes: bool) -> str:
    """The maximum, and every rank's figure in brackets; sizes in the unit of the maximum."""
    most = greatest(values or [])
    if most is None or values is None:
        return "-"
    if not sizes:
        return f"{most:.0f} [{', '.join('-' if value is None else f'{value:.0f}' for value in values)}]"
    divisor, unit = unit_of(most)
    digits = 0 if divisor == 1 else 2
    each = ", ".join("-" if value is None else f"{value / divisor:.{digits}f}" for value in values)
    return f"{most / divisor:.{digits}f} {unit} [{each}]"


def table(header: Sequence[str], lines: Iterable[Sequence[Any]], texts: int = 1) -> str:
    """A table of Markdown; the first columns, `texts` of them, are aligned to the left."""
    rule = ["---" if column < texts else "---:" for column in range(len(header))]
    cells = [["-" if cell is None else str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *cells])


def markdown(report: dict[str, Any]) -> str:
    environment = report["environment"]
    rows = sorted(report["rows"], key=median_ms)
    name = report["workload"].get("name")
    parts = [f"# Speed and memory of SID and of backpropagation{'' if name is None else f': {name}'}"]
    if environment.get("gpus") == 0:
        parts.append("**CPU with gloo; not measured on a GPU.**")
    parts += [
        verdict(rows),
        *choice(rows),
        "Remade from `report.json` and `timelines.json` by `python profiling/report.py DIR`.",
    ]
    parts += ["## Conditions", table(["environment", ""], environment.items(), 2)]
    parts += [table(["workload", ""], report["workload"].items(), 2)]
    parts += [
        "## Speed",
        speed_table(rows, report["costs_ms"]),
        SPEED_NOTE,
        *group_section(rows),
        "![speed-up](speedup.png)",
        "![timelines](timeline.png)",
    ]
    parts += ["## Memory", memory_table(rows), MEMORY_NOTE, "![memory](memory.png)"]
    parts += ["## Traffic", traffic_table(rows), TRAFFIC_NOTE]
    parts += ["## Phases", phase_table(rows), PHASE_NOTE]
    parts += ["## The link", link_table(report["link"]), LINK_NOTE]
    parts += ["## Costs", cost_table(report["costs_ms"]), COST_NOTE]
    parts += [GPU_COST_NOTE] if any("launched" in name for name in report["costs_ms"]) else []
    left_out = [f"- {entry['key']}: {entry['reason']}" for entry in report["left_out"] if entry is not None]
    parts += ["## Left out", "\n".join(left_out) or "Nothing."]
    return "\n\n".join(parts) + "\n"


def verdict(rows: Sequence[Row]) -> str:
    """Which of the two is faster here; rows are sorted by time."""
    measured = [row for row in rows if at(row, "step_ms", "median") is not None]
    sid = next((row for row in measured if row["method"] == "sid"), None)
    other = next((row for row in measured if row["method"] != "sid"), None)
    if sid is None or other is None:
        return "SID and backpropagation were not both measured."
    fast, slow = sorted((sid, other), key=median_ms)
    winner = "SID" if fast is sid else "Backpropagation"
    each = [f"`{row['key']}` with {figure(median_ms(row))} ms" for row in (fast, slow)]
    ratio = times(median_ms(slow) / median_ms(fast))
    return f"{winner} is faster here, {ratio}: {each[0]} against {each[1]}, each the fastest of its kind."


def choice(rows: Sequence[Row]) -> Iterator[str]:
    """How good the plan's choice is; rows are sorted by time."""
    settings = [row for row in rows if row["method"] == "sid" and row["network"] == "cascade"]
    settings = [row for row in settings if not row["schedule"].startswith("one process")]
    auto, others = ([row for row in settings if is_auto(row) == chosen] for chosen in (True, False))
    if auto and others:
        yield (
            f"`parallel: auto` chooses `{auto[0]['key'].removesuffix(' auto')}`: {figure(median_ms(auto[0]))} ms, "
            f"{median_ms(auto[0]) / median_ms(others[0]):.2f} times the fastest setting of SID that was tried, "
            f"`{others[0]['key']}` with {figure(median_ms(others[0]))} ms."
        )


SPEED_NOTE = (
    "Sorted by time. *step*: median and 10th to 90th percentile; *vs naive BP*, *vs best BP*: measured speed-up over "
    "the pipeline without microbatches and over the fastest backpropagation of this table; *law*: the speed-up over "
    "naive BP by the laws (two_phase and interleaved: derived alike), for equal refiners, without "
    "extractor and messages; *model*: the cost model's step, and its share of the measured one; *bubble*: share of a "
    "step in which ranks do not compute, measured / modelled; *paper*: the projection of its appendix B.3, T_BP / "
    "(T_teacher + T_extractor + max over processors), communication ignored."
)


def speed_table(rows: Sequence[Row], costs: dict[str, Any]) -> str:
    header = ["method", "schedule", "network", "extractor", "K", "M", "step ms", "p10-p90", "samples/s"]
    header += ["vs naive BP", "vs best BP", "law", "model ms", "model / measured", "bubble", "paper"]
    lines = []
    for row in rows:
        median, model = at(row, "step_ms", "median"), row["model_step_ms"]
        spread = f"{figure(at(row, 'step_ms', 'p10'))}-{figure(at(row, 'step_ms', 'p90'))}"
        line = [row[name] for name in ("method", "schedule", "network", "extractor", "world_size", "microbatches")]
        line += [figure(median), "-" if spread == "---" else spread, figure(row["samples_per_second"])]
        line += [times(row[name]) for name in ("speedup_vs_naive_bp", "speedup_vs_best_bp", "law_speedup")]
        line += [figure(model), percent(model / median if median and model is not None else None)]
        line += [f"{percent(row['bubble_fraction'])} / {percent(row['model_bubble_fraction'])}"]
        lines.append([*line, times(row["paper_speedup"])])
    # The extractor's own row: no placement of refiners makes this part faster.
    parts = [costs.get(name) for name in PARTS[:2]]
    alone = None if None in parts else sum(part for part in parts if part is not None)
    lines.append(["extractor alone", "forward, backward", "-", "-", "1", "1", figure(alone), *["-"] * 9])
    return table(header, lines, texts=4)


GROUP_NOTE = (
    "These methods do not fit into memory together, so they were timed in groups, one group after the other; within a "
    "group in turn. `{reference}` is in every group. *drift*: its step in that group over its step in all of them, so "
    "methods of groups that drifted apart compare less well."
)


def group_section(rows: Sequence[Row]) -> Iterator[str]:
    """Who was timed beside whom, where not all were."""
    numbers = sorted({row["group"] for row in rows if row.get("group") is not None})
    if len(numbers) < 2:
        return
    members = {number: [row for row in rows if row.get("group") == number] for number in numbers}
    reference = next((row["key"] for row in rows if row.get("group") is None), "-")
    lines = [
        (f"{number:.0f}", figure(group[0].get("drift")), ", ".join(row["key"] for row in group))
        for number, group in members.items()
    ]
    yield table(["group", "drift", "methods"], lines, texts=0)
    yield GROUP_NOTE.format(reference=reference)


MEMORY_NOTE = (
    "The maximum over ranks. *saved activations*: exact, by saved-tensor hooks, storages counted once, parameters and "
    "the input batch excluded; in brackets each rank's, in the same unit. *versions*: weights and gradients of the "
    "extractor for batches in flight, besides its own (streaming). *allocator*: on GPUs only. *driver* and *resident*: "
    "the whole process, seen by the GPU's driver and by the operating system. *process peak*: the allocator's peak on "
    "a GPU, the largest resident set on a CPU. Not in *saved activations*: the features of the whole batch that SID's "
    "ranks hold for their refiners, and activations that a pipeline received or has yet to send."
)


def memory_table(rows: Sequence[Row]) -> str:
    names = ["parameters", "gradients", "optimizer_state", "versions", "communication_buffers"]
    names += ["allocator_peak", "allocator_reserved", "driver", "resident"]
    lines = []
    for row in rows:
        sizes = [human(greatest(at(rank, name) for rank in row["memory"] or [])) for name in names]
        peak = human(greatest(row["peak_memory_bytes"] or []))
        lines.append([row["key"], per_rank(saved_activations(row), sizes=True), *sizes, peak])
    return table(["row", "saved activations", *(name.replace("_", " ") for name in names), "process peak"], lines)


TRAFFIC_NOTE = (
    "Per rank and step: the maximum, in brackets each rank's. *bytes sent*: for a collective, what a ring algorithm "
    "sends per rank. By kind: messages and bytes, each the maximum over ranks."
)


def traffic_table(rows: Sequence[Row]) -> str:
    kinds = list(dict.fromkeys(kind for row in rows for rank in row["traffic"] or [] for kind in rank or {}))
    lines = []
    for row in rows:
        line = [row["key"], per_rank(row["messages_sent"], sizes=False), per_rank(row["bytes_sent"], sizes=True)]
        for kind in kinds:
            messages = greatest(at(rank, kind, "messages") for rank in row["traffic"] or [])
            size = greatest(at(rank, kind, "bytes") for rank in row["traffic"] or [])
            line.append("-" if messages is None and size is None else f"{whole(messages)}: {human(size)}")
        lines.append(line)
    return table(["row", "messages", "bytes sent", *kinds], lines)


def whole(count: float | None) -> str:
    return "-" if count is None else f"{count:.0f}"


PHASE_NOTE = (
    "Median ms of each phase on the busiest rank, which computes for longest, messages and waiting aside. "
    "Phases may overlap, so a line need not add up to the step. The extractor's phases are its cost in the step."
)


def phase_table(rows: Sequence[Row]) -> str:
    phases = phase_order(phase for row in rows for rank in row["phases_ms"] or [] for phase in rank or {})

    def busy(rank: dict[str, float | None] | None) -> float:
        return sum(value or 0 for phase, value in (rank or {}).items() if phase not in MESSAGES)

    lines = []
    for row in rows:
        ranks = list(enumerate(row["phases_ms"] or []))
        number, busiest = max(ranks, key=lambda pair: busy(pair[1]), default=(None, None))
        lines.append([row["key"], number, *(figure(at(busiest, phase)) for phase in phases)])
    return table(["row", "rank", *phases], lines)


LINK_NOTE = "Fitted to messages of several sizes: a message of n bytes takes latency + n / bandwidth."


def link_table(link: dict[str, Any]) -> str:
    fits = [(at(fit, "latency_us"), at(fit, "gigabytes_per_s")) for fit in link.values()]
    lines = [(kind, figure(latency), figure(rate)) for kind, (latency, rate) in zip(link, fits, strict=True)]
    return table(["message", "latency, us", "bandwidth, GB/s"], lines)


COST_NOTE = "What the model takes as given, measured alone: the whole batch, in ms; in brackets each refiner's."
GPU_COST_NOTE = (
    "Of forward and backward it takes the GPU's own time, or that in which the host launches them, whichever is more "
    "for all pieces together."
)


def cost_table(costs: dict[str, Any]) -> str:
    lines = []
    for name, cost in costs.items():
        if isinstance(cost, list):
            total = figure(sum(value for value in cost if value is not None))
            lines.append((name, f"{total} [{', '.join(figure(value) for value in cost)}]"))
        else:
            lines.append((name, figure(cost)))
    return table(["what", "ms"], lines)
