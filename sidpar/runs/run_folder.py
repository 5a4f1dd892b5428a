"""The folder of a run. Rank 0 writes to it."""

import errno
import fcntl
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, TextIO

import yaml

from sidpar.config.command_line import from_yaml, to_yaml
from sidpar.config.schema import Config
from sidpar.data.label_noise import MovedLabels
from sidpar.distributed.environment import Launch
from sidpar.distributed.runtime import Runtime
from sidpar.errors import StorageError, UsageError
from sidpar.runs.atomic_files import plain, write_whole
from sidpar.runs.launches import LAUNCH, REQUEUE, earlier_folder, launchers_of

SUMMARY, CONFIG, WEIGHTS = "summary.json", "config.yaml", "weights.safetensors"
LOCK, LABEL_NOISE = ".lock", "label_noise.json"
METRICS, TENSORBOARD, CHECKPOINTS = "metrics.jsonl", "tensorboard", "checkpoints"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, and whether it holds a run already."""

    path: Path
    state: Literal["new", "begun", "complete"]


def find_run_folder(config: Config, runtime: Runtime) -> RunFolder:
    """The folder of the run that `config` describes, the same on every rank; nothing is written yet.

    Raises UsageError on every rank if the folder holds another run.
    """
    name, state, problem = runtime.from_root("run folder", _find(config, runtime.launch) if runtime.rank == 0 else None)
    if problem is not None:
        raise UsageError(problem)
    return RunFolder(Path(name), state)


def read_config(folder: Path) -> Config:
    """The settings of a run, finished or not. Raises UsageError."""
    path = folder / CONFIG
    try:
        is_folder = folder.is_dir()
        if is_folder and path.exists():
            return from_yaml(path.read_text())
    except (UsageError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not is_folder:
        raise UsageError(f"there is no run folder {folder}")
    raise UsageError(f"{folder} is not a run folder, it has no {CONFIG}: give the run folder that sidpar.train printed")


class OpenFolder:
    """A run folder that is locked for this job. Its path may differ from the one that was found, if another run started
    in the same second."""

    def __init__(self, folder: RunFolder, config: Config, runtime: Runtime) -> None:
        """Made by rank 0, with the configuration as it is now; all ranks call it. Raises UsageError on every rank if it
        cannot be made, if another job trains there, or if a rank does not see it."""
        self._lock: TextIO | None = None
        launchers = launchers_of(runtime)
        alone = folder.state == "new" and config.run.dir is None
        made = self._make(folder.path, alone, to_yaml(config), launchers) if runtime.rank == 0 else None
        path, problem = runtime.from_root("run folder as made", made)
        if problem is not None:
            raise UsageError(problem)
        self.path = Path(path)
        check_sight(self.path, runtime)

    def close(self) -> None:
        """Unlock the folder for other jobs."""
        if self._lock is not None:
            self._lock.close()

    def _make(self, path: Path, alone: bool, config: str, launchers: list[str]) -> tuple[str, str | None]:
        try:
            path = _make_alone(path) if alone else path
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / LOCK).open("w")
            if _is_locked(self._lock):
                taken = "is in use: another job trains there. Wait until it ends, or choose another folder"
                return str(path), f"run.dir={path} {taken}"
            write_whole(path / CONFIG, config)
            write_whole(path / LAUNCH, "\n".join(launchers))
            (path / REQUEUE).unlink(missing_ok=True)
        except (OSError, StorageError) as error:
            return str(path), f"run.dir={path} cannot be written: {error}"
        return str(path), None


def _make_alone(stem: Path) -> Path:
    """Make a new folder of this name, with a number added if it exists."""
    for number in count(1):
        path = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("there are more numbers")


def _is_locked(file: TextIO) -> bool:
    """Lock a file until the process ends; True if another process has locked it. Without effect on file systems without
    locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


def check_sight(path: Path, runtime: Runtime) -> None:
    """Raises UsageError on every rank if one of them does not see the run folder."""
    blind = [rank for rank, sees in enumerate(runtime.exchange("sight", (path / CONFIG).exists())) if not sees]
    if blind:
        raise UsageError(
            f"run.dir={path} is not seen by rank {blind[0]}: choose a folder on storage that all nodes share"
        )


def _find(config: Config, launch: Launch) -> tuple[str, str, str | None]:
    """Name, state, problem."""
    path = Path(config.run.dir) if config.run.dir else earlier_folder(config.run.name, launch)
    if path is None:
        return f"runs/{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}", "new", None
    try:
        state, problem = _state(path, config)
    except OSError as error:
        state, problem = "begun", f"run.dir={path} cannot be used ({error.strerror}): choose another folder"
    return str(path), state, problem


def _state(path: Path, config: Config) -> tuple[str, str | None]:
    taken = [name for name in (CONFIG, METRICS, TENSORBOARD, SUMMARY, WEIGHTS, CHECKPOINTS) if (path / name).exists()]
    if not taken:
        return "new", None
    try:
        there = yaml.safe_load((path / CONFIG).read_text())
        differences = config.differences(there)
    except (OSError, yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        holds = f"already holds a run ({', '.join(taken)}), but no {CONFIG} that can be read ({error!r})"
        return "begun", f"run.dir={path} {holds}: choose another folder, or remove it"
    if differences:
        other = f"run.dir={path} holds a run with other settings ({'; '.join(differences)})"
        return "begun", f"{other}: choose another folder, or start it with the settings of its {CONFIG}"
    return "complete" if {SUMMARY, WEIGHTS} <= set(taken) else "begun", None


def write_label_noise(folder: Path, moved: MovedLabels | None, runtime: Runtime) -> None:
    """Write which training labels were changed, if any, on rank 0. A resumed run writes the same again."""
    if runtime.rank == 0 and moved is not None:
        write_whole(folder / LABEL_NOISE, json.dumps(moved.to_dict()) + "\n")


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, the last of all files, as a whole: its presence says that the run is complete."""
    write_whole(folder / SUMMARY, json.dumps(plain(summary), indent=2) + "\n")
