"""Reads a run folder back: its settings, and the rows of metrics.jsonl as columns, thinned out for pictures."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidpar.config.schema import Config
from sidpar.errors import UsageError
from sidpar.runs.run_folder import METRICS, read_config

MAX_ROWS = 2000
"""Rows of each kind that are read; more than a picture has room for."""

_PER_RANK = "memory_bytes"
"""No picture shows it, and a run that was resumed on another number of ranks has rows of several lengths."""

_KIND = re.compile(rb'\{"kind": "(\w+)"')


@dataclass(frozen=True)
class MetricRows:
    """The rows of one kind, in the order of the file: n of them, for L refiners. What is not finite is NaN."""

    steps: NDArray[np.float64]
    epochs: NDArray[np.float64]
    columns: dict[str, NDArray[np.float64]]
    """Measures by name: [n, L] where they are per refiner, else [n]; none that is per rank."""

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> Self:
        """From rows with the same keys."""
        columns = {key: np.array([row[key] for row in rows], dtype=np.float64) for key in rows[0] if key != "kind"}
        return cls(columns.pop("step"), columns.pop("epoch"), columns)


@dataclass(frozen=True)
class Recorded:
    """What a run folder holds."""

    folder: Path
    config: Config
    rows: dict[str, MetricRows]
    """By kind: train, test, diagnosis; those that are there."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises UsageError if it is not a run folder, or if its metrics are missing or damaged."""
        return cls(folder, read_config(folder), _read(folder / METRICS))

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def traits(self) -> dict[str, str]:
        """The settings that tell runs apart, for people."""
        data, model, optim = self.config.data, self.config.model, self.config.optim
        schedule = self.config.parallel.schedule
        return {
            "method": self.config.learning if schedule is None else f"{self.config.learning} {schedule}",
            "network": str(model.builder or model.name),
            "depth": f"{model.num_refiners} refiners",
            "data": data.name,
            "batch": f"batch {data.batch_size}",
            "optimizer": f"{optim.name} with learning rate {optim.lr:g}",
            "seed": f"seed {self.config.run.seed}",
        }


def _read(path: Path) -> dict[str, MetricRows]:
    """Every k-th row of each kind, and its last."""
    try:
        totals = Counter(kind for _, kind, _ in _lines(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): the run has not measured anything yet") from error
    if not totals:
        raise UsageError(f"{path} has no rows yet: the first one is written after run.log_every steps")
    taken: dict[str, list[dict[str, Any]]] = {kind: [] for kind in totals}
    seen: Counter[str] = Counter()
    for number, kind, line in _lines(path):
        seen[kind] += 1
        if seen[kind] <= totals[kind] and (totals[kind] - seen[kind]) % math.ceil(totals[kind] / MAX_ROWS) == 0:
            taken[kind].append(_row(path, number, line, like=taken[kind][:1]))
    return {kind: MetricRows.of(rows) for kind, rows in taken.items()}


def _lines(path: Path) -> Iterator[tuple[int, str, bytes]]:
    """Number, kind and text of every line. A last line without an end is one that a run is writing: left out."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                match = _KIND.match(line)
                yield number, match[1].decode() if match else _row(path, number, line, [])["kind"], line


def _row(path: Path, number: int, line: bytes, like: list[dict[str, Any]]) -> dict[str, Any]:
    """A line as a row. Raises UsageError unless it has the shape of the first one of its kind."""
    try:
        row: dict[str, Any] = json.loads(line)
        row.pop(_PER_RANK, None)
        shape = _shape(row)
    except (ValueError, TypeError, AttributeError) as error:
        raise _broken(path, number, f"is not JSON: {error}") from error
    if not {"kind", "step", "epoch"} <= row.keys():
        raise _broken(path, number, "has no kind, step and epoch")
    if like and shape != _shape(like[0]):
        raise _broken(path, number, "has other measures or another number of refiners than the lines before it")
    return row


def _broken(path: Path, number: int, why: str) -> UsageError:
    return UsageError(f"{path}, line {number}, {why}: repair or remove this line")


def _shape(row: dict[str, Any]) -> dict[str, int | None]:
    return {key: len(value) if isinstance(value, list) else None for key, value in row.items()}
