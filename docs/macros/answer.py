"""The table at the top of the README and of the first page: what is faster than what, and what accuracy."""

import json
import statistics
from collections.abc import Iterable, Sequence

from reporting.figures import Row, median_ms
from reporting.summaries import RESULTS, best_of_kinds, rows_of
from reporting.tables import table

REAL = {"wide_mlp": "wide_mlp_k2", "simple_cnn": "simple_cnn_k2", "digits": "digits_k2"}
WAYS = {
    "SID `streaming`": "SID, streaming",
    "SID `fused`": "SID, synchronous",
    "best pipeline of backpropagation": "best BP pipeline",
    "DDP": "DDP",
    "one process, both cores": "one process, 2 threads",
}
STALENESS = {"SID `streaming`": 1, "SID `fused`": 0}
PIPELINES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "interleaved 1F1B",
    "zero_bubble": "zero bubble",
    "zbv": "ZBV",
    "dualpipe_v": "DualPipeV",
}


def answer_table() -> str:
    """A line for each way; the best of each column of speed is bold."""
    fastest = [_emulated(), *(best_of_kinds(rows_of(name)) for name in REAL.values())]
    columns = [
        [_cell(rows.get(kind), emulated=number == 0) for kind in WAYS.values()] for number, rows in enumerate(fastest)
    ]
    columns = [_with_best(column, most=number == 0) for number, column in enumerate(columns)]
    head = ["", "8 ranks, emulated: speed-up", *(f"2 ranks, `{name}`: step" for name in REAL), "test accuracy"]
    return table(head, [(way, *cells, _accuracy(way)) for way, *cells in zip(WAYS, *columns, strict=True)], len(head))


def _emulated() -> dict[str, Row]:
    """The fastest row of each kind on eight ranks."""
    rows = list(rows_of("emulated_k8").values())
    kinds = {
        "SID, streaming": [row for row in rows if row["schedule"] == "streaming"],
        "SID, synchronous": [row for row in rows if row["schedule"] == "fused"],
        "best BP pipeline": [row for row in rows if row["schedule"] in PIPELINES],
        "DDP": [row for row in rows if row["method"] == "ddp"],
    }
    return {kind: min(found, key=median_ms) for kind, found in kinds.items()}


def _cell(row: Row | None, *, emulated: bool) -> str:
    if row is None:
        return "-"
    pipeline = f" ({PIPELINES[row['schedule']]})" if row["schedule"] in PIPELINES else ""
    return (f"{row['speedup_vs_naive_bp']:.2f}" if emulated else f"{median_ms(row):.0f} ms") + pipeline


def _with_best(cells: Iterable[str], *, most: bool) -> list[str]:
    found = list(cells)
    best = (max if most else min)((cell for cell in found if cell != "-"), key=lambda cell: float(cell.split()[0]))
    return [f"**{cell}**" if cell == best else cell for cell in found]


def _accuracy(way: str) -> str:
    """On Fashion-MNIST, the mean over seeds."""
    if way not in STALENESS:
        return "not measured"
    rows: Sequence[Row] = json.loads((RESULTS / "staleness" / "fashion_mnist.json").read_text())["rows"]
    wanted = (STALENESS[way], "none", 0)
    found = [row["test_accuracy"] for row in rows if (row["staleness"], row["remedy"], row["diagnose"]) == wanted]
    return f"{100 * statistics.mean(found):.2f} %"
