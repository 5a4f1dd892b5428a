"""Makes the table and the picture of staleness again from its files, without training anything.

    python profiling/staleness_report.py DIR

reads every DIR/*.json that `profiling/staleness.py` has written, and writes DIR/report.md and DIR/staleness.png.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from reporting.figures import Row

from sidpar.plots.pictures import save_picture
from sidpar.plots.style import METHODS, WIDTH, series, styled

REMEDIES = ("none", "warmup", "slow", "momentum", "prediction", "compensation")
NOTE = (
    "Test accuracy after the last epoch, in percent; where several seeds were run, the mean and in brackets the least "
    "and the greatest. Staleness 0 is `fused`."
)
DIAGNOSES = (
    "Proposition 5 observed, means over the observations and refiners of one run: *extractor staleness* ||w - w'|| / "
    "||w'||, *teacher drift* the mean over samples of ||q - q'||, *refiner* and *extractor gradient error* "
    "||g - g'|| / ||g'||, each of what the stream would have used against the synchronous value on the same batch."
)


def remake(folder: Path) -> None:
    """All files of the folder in one report."""
    reports = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if not reports:
        raise SystemExit(f"{folder} holds no JSON file of profiling/staleness.py")
    (folder / "report.md").write_text("\n\n".join(markdown(reports)) + "\n")
    picture(reports, folder / "staleness.png")


def accuracies(rows: Sequence[Row], staleness: int, remedy: str) -> list[float]:
    """In percent, one for each seed, of the runs that were not drained for observations."""
    return [
        100 * row["test_accuracy"]
        for row in rows
        if (row["staleness"], row["remedy"]) == (staleness, remedy) and not row["diagnose"]
    ]


def markdown(reports: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The parts of the report."""
    yield "# Accuracy as a function of staleness"
    yield NOTE
    for name, report in reports.items():
        rows = report["rows"]
        environment = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
        yield f"## {name}"
        yield f"{report['config']} with `{' '.join(report['flags'])}`; {environment}."
        remedies = [remedy for remedy in REMEDIES if any(row["remedy"] == remedy for row in rows)]
        lines = [f"| staleness | {' | '.join(remedies)} |", f"| ---: |{' ---: |' * len(remedies)}"]
        for staleness in sorted({row["staleness"] for row in rows}):
            cells = [cell(accuracies(rows, staleness, remedy)) for remedy in remedies]
            lines.append(f"| {staleness} | {' | '.join(cells)} |")
        yield "\n".join(lines)
        observed = [row for row in rows if row["diagnoses"]]
        if observed:
            yield DIAGNOSES
            yield "\n".join(diagnosis_table(observed))


def cell(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def diagnosis_table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| staleness | extractor staleness | teacher drift | refiner gradient error | extractor gradient error |"
    yield "| ---: | ---: | ---: | ---: | ---: |"
    for row in sorted(rows, key=lambda row: row["staleness"]):
        columns = ("extractor_staleness", "teacher_drift", "gradient_error", "extractor_gradient_error")
        means = [statistics.mean(flat(found[column]) for found in row["diagnoses"]) for column in columns]
        yield f"| {row['staleness']} | {' | '.join(f'{mean:.4f}' for mean in means)} |"


def flat(value: float | list[float]) -> float:
    """The mean over refiners, where there is a value for each."""
    return statistics.mean(value) if isinstance(value, list) else value


@styled
def picture(reports: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy against staleness, a panel for each dataset: every seed a dot, their mean a line."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    grid = figure.subplots(1, len(reports), squeeze=False)
    handles: dict[str, Artist] = {}
    for axes, (name, report) in zip(grid[0], reports.items(), strict=True):
        panel(axes, name, report)
        handles |= {str(line.get_label()): line for line in axes.get_legend_handles_labels()[0]}
    figure.legend(handles=list(handles.values()), loc="outside upper left", ncols=3, handlelength=3)
    figure.supxlabel("staleness: steps by which the extractor's updates are late (0: fused)")
    save_picture(figure, path)


def panel(axes: Axes, name: str, report: dict[str, Any]) -> None:
    rows = report["rows"]
    levels = sorted({row["staleness"] for row in rows})
    for place, remedy in enumerate(REMEDIES):
        found = [(k, accuracies(rows, level, remedy)) for k, level in enumerate(levels)]
        found = [(k, values) for k, values in found if values]
        if not found:
            continue
        look = METHODS["SID streaming"] if remedy == "none" else series(place + (place > 3))
        label = "no remedy" if remedy == "none" else remedy
        places, means = [k for k, _ in found], [statistics.mean(values) for _, values in found]
        width = 1.8 if remedy == "none" else 1
        axes.plot(places, means, ls=look.line, marker=look.marker, color=look.colour, label=label, lw=width)
        for k, values in found:
            axes.plot([k] * len(values), values, ".", color=look.colour, ms=2.5, alpha=0.6)
    axes.set_xticks(range(len(levels)), [str(level) for level in levels])
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_ylabel("test accuracy, %")
    seeds = len({row["seed"] for row in rows})
    axes.set_title(f"{name}, K = {report['environment']['ranks']}, up to {seeds} seeds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    remake(parser.parse_args().folder)
