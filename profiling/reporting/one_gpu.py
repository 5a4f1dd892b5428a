"""The tables of what `profiling/gpu/run.py` leaves in a card's folder, in Markdown. Parts that did not run are left
out."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from reporting.tables import figure, times

STACKED = ("stacked.json", "stacked_compiled.json")


def card_report(folder: Path) -> str:
    """All tables of a card's folder; "" if it holds none of these results."""
    tables: list[tuple[str, str, Callable[[Any], list[Sequence[str]]]]] = [
        ("summary.json", "Parts", _verdicts),
        ("first_use.json", "First uses beside a busy stream", _first_uses),
        ("engine_overhead.json", "A step of the engine, and of a plain loop", _overheads),
        *((name, f"Refiners at once ({name.removesuffix('.json')})", _stacked) for name in STACKED),
    ]
    sections = []
    for name, title, rows in tables:
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text())
            sections.append(_section(title, rows(content), content.get("environment", {})))
    if runs := _trainings(sorted(folder.glob("runs/*/summary.json"))):
        sections.append(_section("Trainings", runs, {}))
    return "\n".join(sections)


def _section(title: str, rows: list[Sequence[str]], environment: dict[str, Any]) -> str:
    where = ", ".join(f"{name} {value}" for name, value in environment.items() if isinstance(value, str))
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    lines.insert(1, "| " + " | ".join("---" for _ in rows[0]) + " |")
    return "\n".join([f"## {title}", "", *([where, ""] if where else []), *lines, ""])


def _verdicts(content: dict[str, Any]) -> list[Sequence[str]]:
    parts = content["parts"]
    return [("part", "verdict", "seconds"), *((p["name"], p["status"], figure(p["seconds"])) for p in parts)]


def _first_uses(content: dict[str, Any]) -> list[Sequence[str]]:
    kinds = ("first_seconds", "again_seconds", "busy_seconds")
    head = ("use", "first, ms", "again, ms", "the stream was busy, ms")
    return [head, *((row["use"], *(figure(1000 * row[kind]) for kind in kinds)) for row in content["rows"])]


def _overheads(content: dict[str, Any]) -> list[Sequence[str]]:
    head = ("network", "L", "B", "autocast", "engine, ms", "loop, ms", "engine : loop")
    return [
        head,
        *(
            (
                *(str(row[name]) for name in ("model", "num_refiners", "batch_size", "autocast")),
                *(figure(row[name]) for name in ("sid_ms", "plain_ms")),
                _spread({"median": row["ratio"], **row["ratio_of_pairs"]}),
            )
            for row in content["rows"]
        ),
    ]


def _stacked(content: dict[str, Any]) -> list[Sequence[str]]:
    ways, ratios = ("loop", "stacked", "bp"), ("stacked_over_loop", "stacked_over_bp", "loop_over_bp")
    head = ("network", "L", "B", *(f"{way}, ms" for way in ways), *(name.replace("_over_", " : ") for name in ratios))
    return [
        head,
        *(
            (
                *(str(row[name]) for name in ("network", "num_refiners", "batch_size")),
                *(figure(row["ms"][way]["median"]) for way in ways),
                *(_spread(row["ratios"][name]) for name in ratios),
            )
            for row in content["rows"]
        ),
    ]


def _trainings(summaries: Iterable[Path]) -> list[Sequence[str]]:
    found = [(path.parent.name, json.loads(path.read_text())) for path in summaries]
    head = ("run", "method", "epochs", "test accuracy", "images/s")
    rows = []
    for name, run in found:
        accuracy = f"{100 * run['test_accuracy']:.2f} %"
        rows.append((name, run["method"], str(run["epochs"]), accuracy, figure(run["images_per_second"])))
    return [head, *rows] if rows else []


def _spread(ratio: dict[str, float]) -> str:
    """Of pairs of neighbouring steps."""
    return f"{times(ratio['median'])} ({ratio['p10']:.2f} to {ratio['p90']:.2f})"
