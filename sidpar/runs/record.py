"""Writes what a run measures, row by row: to metrics.jsonl, and the same as events for TensorBoard."""

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

# Not torch's SummaryWriter: it writes on a thread, whose errors come late and in a traceback of their own, and it
# imports all of TensorFlow where that is installed.
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from sidpar.errors import StorageError
from sidpar.runs.atomic_files import plain
from sidpar.runs.run_folder import METRICS, TENSORBOARD

_HEAD = ("kind", "step", "epoch")
_log = logging.getLogger(__name__)


class Record:
    """The only writer of metrics. A row is a dict with `kind`, `step` and `epoch`, and measures that are numbers or
    lists of numbers. Every row is on disk when `write` returns. Raises StorageError where it cannot be.

    Args:
        folder: the run folder.
        enabled: whether this rank writes; elsewhere nothing happens.
        after_step: the step that a run resumes from. Rows of later steps, and lines that a killed run left unfinished,
            are dropped; a row that is known for this very step is not written a second time.
        tensorboard: whether to write events to `tensorboard/` too.
    """

    def __init__(
        self, folder: Path, *, enabled: bool = True, after_step: int | None = None, tensorboard: bool = True
    ) -> None:
        self._path = folder / METRICS if enabled else None
        self._known: set[tuple[str, int]] = set()
        self._events: _Events | None = None
        if self._path is None:
            return
        if after_step is not None and self._path.exists():
            self._known = _keep_until(self._path, after_step)
        if tensorboard:
            self._events = _Events(folder / TENSORBOARD, after_step)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        if self._path is None or (row["kind"], row["step"]) in self._known:
            return
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(plain(row)) + "\n")
        except OSError as error:
            raise StorageError(self._path, error) from error
        if self._events is not None:
            self._events.write(row)

    def close(self) -> None:
        """No row follows. Not needed after an exception."""
        if self._events is not None:
            self._events.close()
            self._events = None


def scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Tag and value of everything in a row. Tags go from the general to the particular, as TensorBoard groups them:
    `train/loss/refiner_3`, `test/accuracy/refiner_7`, `diagnosis/teacher_drift/refiner_0`, `learning_rate`,
    `images_per_second/train`, `memory/rank_1 GiB`."""
    kind = row["kind"]
    for name, value in row.items():
        if name in _HEAD:
            continue
        if name == "memory_bytes":
            group = "memory" if kind == "train" else f"memory/{kind}"
            yield from ((f"{group}/rank_{rank} GiB", number / 2**30) for rank, number in enumerate(value))
        elif name == "learning_rate":
            yield name, value
        elif name == "images_per_second":
            yield f"{name}/{kind}", value
        elif isinstance(value, list):
            yield from ((f"{kind}/{name}/refiner_{i}", number) for i, number in enumerate(value))
        else:
            yield f"{kind}/{name}", value


class _Events:
    """A file of TensorBoard's; each start of a run has one, and a resumed run's hides what came after `after_step`."""

    def __init__(self, folder: Path, after_step: int | None) -> None:
        self._folder = folder
        try:
            folder.mkdir(exist_ok=True)
            # TensorBoard reads a folder's files by name: their number orders them, whatever the clocks of hosts say.
            number = 1 + max((int(path.suffix[1:]) for path in folder.glob("events.out.tfevents.[0-9]*")), default=-1)
            self._file: BinaryIO = (folder / f"events.out.tfevents.{number:06d}").open("xb")
        except OSError as error:
            raise StorageError(folder, error) from error
        self._writer = RecordWriter(self._file)
        self._add(Event(file_version="brain.Event:2"))
        if after_step is not None:
            self._add(Event(step=after_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, row: dict[str, Any]) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(row)]
        self._add(Event(step=row["step"], summary=Summary(value=values)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        try:
            self._writer.write(event.SerializeToString())
            self._writer.flush()
        except OSError as error:
            raise StorageError(self._folder, error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise StorageError(self._folder, error) from error


def _keep_until(path: Path, step: int) -> set[tuple[str, int]]:
    """Drop the rows of later steps, as a whole or not at all; the kinds that are known for this one."""
    known, broken = set(), 0
    temporary = path.with_name(f".{path.name}")
    try:
        with path.open("rb") as old, temporary.open("wb") as new:
            for line in old:
                try:
                    kind, found = _key(line)
                except (ValueError, KeyError, TypeError):
                    broken += 1
                    continue
                if found <= step:
                    new.write(line)
                if found == step:
                    known.add((kind, found))
            new.flush()
            os.fsync(new.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(path, error) from error
    if broken:
        _log.warning("%s: removed %d incomplete lines of a run that was killed", path, broken)
    return known


def _key(line: bytes) -> tuple[str, int]:
    """Kind and step of a line; ValueError, KeyError or TypeError unless it is a whole row."""
    if not line.endswith(b"\n"):
        raise ValueError("without an end")
    row = json.loads(line)
    return row["kind"], int(row["step"])
