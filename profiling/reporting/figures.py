"""What tables and pictures share: the files' shapes, sizes in words, captions."""

import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot, which would look for a display

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from sidpar.plots.gantt import Span

Row = dict[str, Any]
Timelines = dict[str, dict[str, list[list[Span]] | None]]  # key -> "measured" or "modelled" -> spans of each rank
DPI = 150


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


def caption(report: dict[str, Any], width: float) -> str:
    """The conditions, which must be in the picture itself because pictures travel alone; width in inches."""
    environment = report["environment"]
    workload = ", ".join(f"{name} {value}" for name, value in report["workload"].items() if value is not None)
    ranks = max((row["world_size"] or 1 for row in report["rows"]), default=1)
    where = f"K = {ranks} ranks; {environment.get('device')}, backend {environment.get('backend')}"
    gpu = "\nno GPU: gloo on CPU" if environment.get("gpus") == 0 else ""
    wrapped = "\n".join(textwrap.wrap(f"workload: {workload}", int(14 * width)))
    return f"{wrapped}\n{where}{gpu}"


def note(figure: Figure, report: dict[str, Any], width: float) -> None:
    figure.supxlabel(caption(report, width), x=0.012, ha="left", multialignment="left", fontsize=8, color="#444444")


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
