"""Checkpoints of a run, in `RUN/checkpoints/step_…`. Names in them do not depend on K, so a run can resume on another
number of ranks."""

import json
import os
import pickle
import re
import shutil
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from sidpar.distributed.runtime import Runtime
from sidpar.errors import RunError, UsageError
from sidpar.runs.atomic_files import publish, sync
from sidpar.runs.run_folder import CHECKPOINTS
from sidpar.runs.snapshot import Snapshot

PROGRESS, _METADATA, _CHECKSUM = "progress.json", ".metadata", ".crc32"
_ALONE = "torch.distributed is disabled, unavailable or uninitialized"
_PARTIAL, _OLD = ".partial_", ".old_"


@dataclass(frozen=True)
class Stored:
    """A checkpoint on disk. Its `.metadata` is a pickle, as torch writes it: open only checkpoints that you trust."""

    path: Path

    @cached_property
    def progress(self) -> dict[str, Any]:
        """The state of the run: `step`, and what else the trainer needs."""
        content: dict[str, Any] = json.loads((self.path / PROGRESS).read_text())
        return content

    @cached_property
    def _metadata(self) -> Metadata:
        return FileSystemReader(self.path).read_metadata()

    @property
    def shapes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of every tensor, by name."""
        entries = self._metadata.state_dict_metadata.items()
        return {name: (e.size, e.properties.dtype) for name, e in entries if isinstance(e, TensorStorageMetadata)}

    def fault(self) -> str | None:
        """What is wrong with this checkpoint, or None if it is complete. Reads all of it."""
        fault = _fault(self.path / PROGRESS) or _fault(self.path / _METADATA)
        if fault is not None:
            return fault
        missing = {"data", "seconds", "images", "resumed_at"} - self.progress.keys()
        if missing:
            return f"{PROGRESS} lacks {', '.join(sorted(missing))}"
        if self.path != _place(self.path.parent, self.progress["step"]):
            return f"{PROGRESS} is of step {self.progress['step']}"
        try:
            files = {part.relative_path for part in self._metadata.storage_data.values()}
        except Exception as error:  # whatever the pickle of another torch may raise
            return f"{_METADATA} cannot be read ({error!r})"
        return next((fault for file in sorted(files) if (fault := _fault(self.path / file))), None)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names, on the CPU. Sends no message."""
        shapes = self.shapes
        tensors: dict[str, Any] = {name: torch.empty(shapes[name][0], dtype=shapes[name][1]) for name in names}
        try:
            with warnings.catch_warnings():  # each rank reads alone, and means to
                warnings.filterwarnings("ignore", _ALONE)
                load(tensors, storage_reader=FileSystemReader(self.path), no_dist=True)
        except (CheckpointException, OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise UsageError(
                f"the checkpoint {self.path} cannot be read ({_reason(error)}): remove it, and the same command "
                "resumes from the one before"
            ) from error
        return tensors


def find_newest(run_folder: Path, runtime: Runtime) -> tuple[Stored | None, list[str]]:
    """The newest complete checkpoint, the same on every rank, and what is wrong with newer ones.

    Raises UsageError on every rank if there are checkpoints, but none is complete.
    """
    folder = run_folder / CHECKPOINTS
    found, skipped = runtime.from_root("newest checkpoint", _find(folder) if runtime.rank == 0 else None)
    if found is None and skipped:
        raise UsageError(
            f"no checkpoint in {folder} is complete: {'; '.join(skipped)}. Remove them to train from the beginning"
        )
    return None if found is None else Stored(Path(found)), skipped


def _find(folder: Path) -> tuple[str | None, list[str]]:
    skipped: list[str] = []
    for path in reversed(_paths(folder)):
        fault = Stored(path).fault()
        if fault is None:
            return str(path), skipped
        skipped.append(f"{path.name}: {fault}")
    return None, skipped


def _paths(folder: Path) -> list[Path]:
    """In the order of their steps, the names of which have as many digits. Copies under other names are not ours."""
    return sorted(path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{10}", path.name))


class Checkpoints:
    """Writes the checkpoints of a run and keeps the newest ones.

    All ranks write at once, each a part, to a folder that gets its name when everything is on the disk: a checkpoint is
    visible whole or not at all. One at a time is written, by a thread of its own if `asynchronous`, from a snapshot in
    host memory. Each file has a checksum beside it, because disks lose bytes later.

    Made once the run folder is this job's own: what a killed run has left half-written there is removed.
    """

    def __init__(self, run_folder: Path, runtime: Runtime, *, keep: int, asynchronous: bool) -> None:
        self._folder = run_folder / CHECKPOINTS
        self._runtime = runtime
        self._keep = keep
        self._asynchronous = asynchronous
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._step = 0
        self._snapshot = Snapshot(runtime.device)
        if runtime.groups is None:  # for good: the thread that writes must not change filters now and then
            warnings.filterwarnings("ignore", _ALONE)
        if runtime.rank == 0:
            for leftover in [*self._folder.glob(f"{_PARTIAL}*"), *self._folder.glob(f"{_OLD}*")]:
                shutil.rmtree(leftover, ignore_errors=True)

    def save(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Write this rank's `tensors`; each name may be given by one rank only. `progress`, with the `step`, is that of
        rank 0.

        Returns once the tensors may change. Raises RunError, on every rank, if this checkpoint or the one before cannot
        be written; what was there is still there.
        """
        self.wait()
        self._step = progress["step"]
        staged = self._snapshot.take(tensors)
        self._thread = threading.Thread(
            target=self._write, args=(staged, dict(progress)), name="sidpar checkpoint", daemon=True
        )
        self._thread.start()
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is on the disk."""
        if self._thread is None:
            return
        with self._runtime.during(f"write the checkpoint of step {self._step}"):
            self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            if self._runtime.rank == 0:  # all ranks have given up by now
                shutil.rmtree(self._folder / f"{_PARTIAL}{self._step}", ignore_errors=True)
            raise RunError(
                f"the checkpoint of step {self._step} cannot be written to {self._folder}: {_reason(error)}. "
                f"{self.newest_in_words()}: free space or repair the disk, and start the same command again (if a rank "
                f"waited too long for another one, raise parallel.init_timeout)"
            ) from error

    def newest_in_words(self) -> str:
        """A sentence that names the checkpoint from which the run can resume."""
        whole = [path.name for path in _paths(self._folder) if Stored(path).fault() is None]
        return f"The checkpoint {whole[-1]} is kept" if whole else "There is no checkpoint yet"

    def _write(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """In the thread."""
        step, groups = progress["step"], self._runtime.groups
        writer = _Writer(self._folder / f"{_PARTIAL}{step}", lambda path: self._publish(path, progress))
        try:
            save(
                dict(tensors),
                storage_writer=writer,
                process_group=None if groups is None else groups.checkpoints,
                no_dist=groups is None,
            )
        except BaseException as error:  # CheckpointException is no Exception; `wait` raises it on the main thread
            self._error = error

    def _publish(self, partial: Path, progress: dict[str, Any]) -> None:
        """On rank 0, once all ranks have written: make the checkpoint visible, and forget the oldest ones."""
        (partial / PROGRESS).write_text(json.dumps(progress))
        sync(partial / PROGRESS)
        for name in (PROGRESS, _METADATA):
            _keep_checksum(partial / name)
        final = _place(self._folder, progress["step"])
        for later in [path for path in _paths(self._folder) if path >= final]:  # found damaged, or they were taken
            _remove(later)
        publish(partial, final)
        for old in _paths(self._folder)[: -self._keep]:
            _remove(old)


class _Writer(FileSystemWriter):
    """Calls back on the coordinator when all ranks have written; its failures become those of every rank."""

    def __init__(self, path: Path, publish: Callable[[Path], None]) -> None:
        # Nothing is copied ahead: the tensors are in host memory. Copying ahead, torch would wait here, in the thread
        # that writes, for all that training has queued on GPU 0, and open a context there.
        super().__init__(path, per_thread_copy_ahead=0)
        self._publish = publish

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with _telling_space(Path(self.path)):
            written = super().write_data(plan, planner)
            for name in {result.storage_data.relative_path for result in written.wait()}:
                _keep_checksum(Path(self.path) / name)
            return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        with _telling_space(Path(self.path)):
            super().finish(metadata, results)
            self._publish(Path(self.path))


@contextmanager
def _telling_space(folder: Path) -> Iterator[None]:
    """Add to an error how much space is free on the disk, which torch's own may not say."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(folder).free / 2**20
        raise OSError(f"{_reason(error)}, with {free:.1f} MiB free on the disk") from error


def _keep_checksum(file: Path) -> None:
    """Beside the file, which was just written."""
    beside = _beside(file)
    beside.write_bytes(_checksum(file))
    sync(beside)


def _fault(file: Path) -> str | None:
    """Why the bytes of a file are not those that were written; None if they are."""
    try:
        return (
            None if _beside(file).read_bytes() == _checksum(file) else f"{file.name} is damaged: its checksum differs"
        )
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"


def _beside(file: Path) -> Path:
    return file.with_name(file.name + _CHECKSUM)


def _checksum(file: Path) -> bytes:
    total = 0
    with file.open("rb") as content:
        while block := content.read(2**20):
            total = zlib.crc32(block, total)
    return f"{total:08x}".encode()


def _place(folder: Path, step: int) -> Path:
    return folder / f"step_{step:010d}"


def _remove(path: Path) -> None:
    """Out of sight first: half a checkpoint must never look like one."""
    hidden = path.with_name(f"{_OLD}{path.name}")
    os.replace(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _reason(error: BaseException) -> str:
    """What lies behind torch's exception, in one line."""
    if not isinstance(error, CheckpointException):
        return str(error).splitlines()[0] if str(error) else repr(error)
    failures = {rank: cause for rank, (cause, _) in error.failures.items()}
    return "; ".join(f"rank {rank}: {str(cause).splitlines()[0]}" for rank, cause in sorted(failures.items()))
