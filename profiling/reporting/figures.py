"""What tables and pictures share: the files' shapes, sizes in words, captions."""

import math
import textwrap
from typing import Any

from sidpar.plots.gantt import Span
from sidpar.plots.style import METHODS, Look, family, series

Row = dict[str, Any]
Timelines = dict[str, dict[str, list[list[Span]] | None]]  # key -> "measured" or "modelled" -> spans of each rank
LINE = 88
"""Characters of a line of text across a picture."""


def at(value: Any, *path: str) -> Any:
    """value[path[0]][path[1]]..., or None as soon as something is null or absent."""
    for name in path:
        if value is None:
            return None
        value = value.get(name)
    return value


def is_auto(row: Row) -> bool:
    """Whether it is the plan's choice, beside the row of the same settings."""
    return bool(row["key"].endswith(" auto"))


def median_ms(row: Row) -> float:
    """For sorting: a row without a time comes last."""
    median = at(row, "step_ms", "median")
    return math.inf if median is None else median


def saved_activations(row: Row) -> list[float | None]:
    """Bytes of each rank."""
    if row["saved_activation_bytes"] is not None:
        return list(row["saved_activation_bytes"])
    return [at(rank, "saved_activations") for rank in row["memory"] or []]


def name_of(row: Row) -> str:
    """The method, for people: everything but M."""
    method, schedule, extractor, network = (row[name] for name in ("method", "schedule", "extractor", "network"))
    name = method.upper() if schedule == method else f"{method.upper()} {schedule}"
    others = [extractor] if extractor not in (None, "whole") else []
    return ", ".join([name, *others, *([] if network in (None, "cascade") else [f"{network} network"])])


def look_of(row: Row) -> Look:
    """The method's, as in every other picture."""
    return METHODS.get(family(row["method"], row["schedule"]), series(5))


def conditions(report: dict[str, Any]) -> str:
    """What must be in the picture itself because pictures travel alone."""
    environment = report["environment"]
    workload = ", ".join(f"{name} {value}" for name, value in report["workload"].items() if value is not None)
    ranks = max((row["world_size"] or 1 for row in report["rows"]), default=1)
    where = f"K = {ranks} ranks; {environment.get('device')}, backend {environment.get('backend')}"
    gpu = "; no GPU" if environment.get("gpus") == 0 else ""
    return "\n".join(textwrap.fill(line, LINE) for line in (f"workload: {workload}", f"{where}{gpu}"))
