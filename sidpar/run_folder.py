"""What a run leaves on disk. Rank 0 writes it."""

import json
import math
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from sidpar.command_line import to_yaml
from sidpar.config import Config
from sidpar.data.label_noise import MovedLabels
from sidpar.environment import Launch
from sidpar.errors import StorageError, UsageError
from sidpar.runtime import Runtime

SUMMARY, CONFIG, WEIGHTS = "summary.json", "config.yaml", "weights.safetensors"
REQUEUE = "REQUEUE"
"""A file that says: stopped on request, start me again. torchrun does not hand on the exit status that says it too."""
LAUNCH, LABEL_NOISE = ".launch", "label_noise.json"
METRICS, TENSORBOARD, CHECKPOINTS = "metrics.jsonl", "tensorboard", "checkpoints"


@dataclass(frozen=True)
class RunFolder:
    """Where a run is recorded, and what is there already."""

    path: Path
    state: Literal["new", "begun", "complete"]


def find_run_folder(config: Config, runtime: Runtime) -> RunFolder:
    """The folder of the run that `config` describes, the same on every rank; nothing is written yet.

    Raises UsageError on every rank if the folder holds anything else than this run.
    """
    name, state, problem = runtime.from_root("run folder", _find(config, runtime.launch) if runtime.rank == 0 else None)
    if problem is not None:
        raise UsageError(problem)
    return RunFolder(Path(name), state)


def create_run_folder(folder: RunFolder, config: Config, runtime: Runtime) -> None:
    """Make it on rank 0, with the configuration as it is now. Raises UsageError on every rank if that cannot be, or if
    another rank does not see it."""
    problem = _make(folder.path, config, runtime.launch) if runtime.rank == 0 else None
    problem = runtime.from_root("problem with the run folder", problem)
    blind = [rank for rank, sees in enumerate(runtime.exchange("sight", (folder.path / CONFIG).exists())) if not sees]
    if problem is None and blind:
        problem = (
            f"run.dir={folder.path} is not seen by rank {blind[0]}: choose a folder on storage that all nodes share"
        )
    if problem is not None:
        raise UsageError(problem)


def _find(config: Config, launch: Launch) -> tuple[str, str, str | None]:
    """Name, state, problem."""
    path = Path(config.run.dir) if config.run.dir else _earlier(config.run.name, launch)
    if path is None:
        return f"runs/{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}", "new", None
    taken = [name for name in (CONFIG, METRICS, TENSORBOARD, SUMMARY, WEIGHTS, CHECKPOINTS) if (path / name).exists()]
    if not taken:
        return str(path), "new", None
    try:
        there = yaml.safe_load((path / CONFIG).read_text())
        differences = config.differences(there)
    except (OSError, yaml.YAMLError, AttributeError) as error:
        holds = f"already holds a run ({', '.join(taken)}), but no {CONFIG} that can be read ({error!r})"
        return str(path), "begun", f"run.dir={path} {holds}: choose another folder, or remove it"
    if differences:
        other = f"run.dir={path} holds a run with other settings ({'; '.join(differences)})"
        return str(path), "begun", f"{other}: choose another folder, or start it with the settings of its {CONFIG}"
    if (path / SUMMARY).exists():
        return str(path), "complete", None
    return str(path), "begun", None


def was_stopped(config: Config, launch: Launch) -> bool:
    """Whether the run has ended on request, and only torchrun, which does not know that, has started it again."""
    path = Path(config.run.dir) if config.run.dir else _earlier(config.run.name, launch)
    return launch.restarts > 0 and path is not None and (path / REQUEUE).exists()


def _earlier(name: str, launch: Launch) -> Path | None:
    """The folder that this job has made before torchrun started it again."""
    if not launch.restarts:
        return None
    marks = sorted(Path("runs").glob(f"{name}-*/{LAUNCH}"), key=lambda mark: mark.stat().st_mtime)
    return next((mark.parent for mark in reversed(marks) if mark.read_text() == str(launch.identity)), None)


def _make(path: Path, config: Config, launch: Launch) -> str | None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_whole(path / CONFIG, to_yaml(config))
        write_whole(path / LAUNCH, str(launch.identity))
        (path / REQUEUE).unlink(missing_ok=True)
    except (OSError, StorageError) as error:
        return f"run.dir={path} cannot be written: {error}"
    return None


def write_whole(path: Path, text: str) -> None:
    """A file that is there with all of its text, or as it was before. Raises StorageError."""
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(path, error) from error


def write_label_noise(folder: Path, moved: MovedLabels | None, runtime: Runtime) -> None:
    """Keep which training labels were moved, if any; rank 0 does. A resumed run writes the same again."""
    if runtime.rank == 0 and moved is not None:
        write_whole(folder / LABEL_NOISE, json.dumps(moved.to_dict()) + "\n")


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: a run that diverged shows null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Last of all files, and whole or not at all: its presence says that the run is complete."""
    write_whole(folder / SUMMARY, json.dumps(plain(summary), indent=2) + "\n")


def source_commit() -> str | None:
    """The commit of sidpar's source tree, with `+` where it has uncommitted changes; None outside of a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "--verify", "--quiet", "HEAD")
    changed = git("status", "--porcelain", "--", ".", ":!profiling/results")  # results say nothing of the program
    return f"{commit}+" if commit and changed else commit or None
