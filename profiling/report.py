"""Makes the tables and pictures of a profile again from its two files, without measuring anything.

    python profiling/report.py DIR

reads DIR/report.json and DIR/timelines.json, as profiling/speedup.py writes them, and writes DIR/report.md,
DIR/speedup.png, DIR/memory.png, DIR/timeline.png (measured and modelled), DIR/overview.png (measured alone) and
DIR/trace.json, which https://ui.perfetto.dev opens. With
`--format pdf` or `--format svg`, the pictures are vector graphics. Of a card's folder, as profiling/gpu/run.py writes
it, DIR/report.md has all tables in one.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reporting import draw
from reporting.figures import Timelines, is_auto
from reporting.gantt import timeline
from reporting.one_gpu import card_report
from reporting.tables import PARTS, markdown

from sidpar.plots.pictures import FORMATS, PictureFormat

# What the files must hold. A null is right wherever something else than a text is asked for; `float` takes integers.
TEXTS = ("key", "method", "schedule", "network", "extractor")
FIGURES = ("microbatches", "world_size", "samples_per_second", "speedup_vs_naive_bp", "speedup_vs_best_bp")
MORE_FIGURES = ("law_speedup", "paper_speedup", "model_step_ms", "bubble_fraction", "model_bubble_fraction")
LATER = ("group", "drift")
"""Figures that results from before there were groups do not have."""
LISTS = ("saved_activation_bytes", "peak_memory_bytes", "bytes_sent", "messages_sent")
ROW_SHAPE: dict[str, Any] = {
    **dict.fromkeys(TEXTS, str),
    **dict.fromkeys(FIGURES + MORE_FIGURES + LATER, float),
    **{name: [float] for name in LISTS},
    "step_ms": {"*": float},
    "memory": [{"*": float}],
    "traffic": [{"*": {"messages": float, "bytes": float}}],
    "phases_ms": [{"*": float}],
}
REPORT_SHAPE: dict[str, Any] = {
    "environment": {"*": object},
    "workload": {"*": object},
    "link": {"*": {"latency_us": float, "gigabytes_per_s": float}},
    "costs_ms": {**dict.fromkeys(PARTS[:2], float), **{name: [float] for name in PARTS[2:]}, "*": float},
    "rows": [ROW_SHAPE],
    "left_out": [{"key": str, "reason": str}],
}
SPANS_SHAPE = [[(str, object, float, float)]]
TIMELINES_SHAPE: dict[str, Any] = {"*": {"measured": SPANS_SHAPE, "modelled": SPANS_SHAPE}}


class BadFileError(ValueError):
    """A file of the profile is missing or malformed; the message is one line."""


def remake(folder: Path, kind: PictureFormat = "png") -> None:
    """Writes everything that follows from report.json and timelines.json, pictures in one format."""
    content = read(folder / "report.json", REPORT_SHAPE)
    report = {name: type(shape)() if content[name] is None else content[name] for name, shape in REPORT_SHAPE.items()}
    repeated = [key for key, count in Counter(row["key"] for row in report["rows"]).items() if count > 1]
    if repeated:
        raise bad(folder / "report.json", f"two rows have the key {repeated[0]!r}")
    timelines = {
        key: {kind: spans and [rank or [] for rank in spans] for kind, spans in value.items()}
        for key, value in read(folder / "timelines.json", TIMELINES_SHAPE).items()
        if value is not None
    }
    (folder / "report.md").write_text(markdown(report))
    (folder / "trace.json").write_text(json.dumps(trace(timelines)) + "\n")
    drawn = report | {"rows": [row for row in report["rows"] if not is_auto(row)]}
    draw.speedup(drawn, folder / f"speedup.{kind}")
    draw.memory(drawn, folder / f"memory.{kind}")
    timeline(drawn, timelines, folder / f"timeline.{kind}")
    timeline(drawn, timelines, folder / f"overview.{kind}", modelled=False)


def remake_card(folder: Path) -> bool:
    """The tables of a card's folder; False if it is none."""
    tables = card_report(folder)
    if tables:
        (folder / "report.md").write_text(f"# {folder.name.replace('_', ' ')}\n\n{tables}")
    return bool(tables)


def bad(path: Path, what: str) -> BadFileError:
    return BadFileError(f"{path}: {what}; make it with `torchrun --nproc_per_node=K profiling/speedup.py`")


def read(path: Path, shape: Any) -> Any:
    try:
        content = json.loads(path.read_text(), parse_constant=lambda _: None)  # NaN and Infinity are no measurements
    except OSError as error:
        raise bad(path, error.strerror or "cannot be read") from error
    except ValueError as error:
        raise bad(path, f"no JSON, {error}") from error
    fault = "is null" if content is None else next(faults(content, shape, "the file"), None)
    if fault is not None:
        raise bad(path, fault)
    return content


def faults(value: Any, shape: Any, where: str) -> Iterator[str]:
    """Where a value does not have its shape: a dict of names ("*": any name), a list of one, a tuple, or a type."""
    if shape is object or (value is None and shape is not str):
        return
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{where} is no object"
            return
        yield from (f"{where} lacks {name!r}" for name in shape if name not in (*LATER, "*", *value))
        for name, inner in value.items():
            yield from faults(inner, shape.get(name, shape.get("*", object)), f"{where}[{name!r}]")
    elif isinstance(shape, list | tuple):
        if not isinstance(value, list) or (isinstance(shape, tuple) and len(value) != len(shape)):
            yield f"{where} is no list" + (f" of {len(shape)}" if isinstance(shape, tuple) else "")
            return
        for index, inner in enumerate(value):
            yield from faults(inner, shape[index if isinstance(shape, tuple) else 0], f"{where}[{index}]")
    elif not isinstance(value, str if shape is str else int | float) or isinstance(value, bool):
        yield f"{where} is no {'text' if shape is str else 'number'}"


def trace(timelines: Timelines) -> dict[str, Any]:
    """Chrome's trace event format: a process per key, a thread per rank, the measured steps."""
    events: list[dict[str, Any]] = []
    for process, (key, value) in enumerate(timelines.items()):
        events.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": key}})
        events.append({"ph": "M", "name": "process_sort_index", "pid": process, "args": {"sort_index": process}})
        for rank, spans in enumerate(value["measured"] or []):
            place = {"pid": process, "tid": rank}
            events.append({"ph": "M", "name": "thread_name", **place, "args": {"name": f"rank {rank}"}})
            for phase, label, start, end in spans:
                when = {"ts": round(1e6 * start, 3), "dur": round(1e6 * (end - start), 3)}
                events.append({"ph": "X", "name": phase, "cat": phase, **place, **when, "args": {"label": label}})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="holds a profile, or a card's results")
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the pictures; by default png")
    try:
        given = parser.parse_args()
        if (given.folder / "report.json").exists() or not remake_card(given.folder):
            remake(given.folder, given.format)
    except BadFileError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
