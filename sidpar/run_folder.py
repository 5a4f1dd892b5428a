"""The record of a run on disk. Rank 0 writes it; the printed lines are derived from it."""

import json
import math
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from sidpar.command_line import to_yaml
from sidpar.config import Config
from sidpar.data.label_noise import MovedLabels
from sidpar.errors import UsageError
from sidpar.runtime import Runtime

SUMMARY, METRICS, CONFIG, WEIGHTS = "summary.json", "metrics.jsonl", "config.yaml", "weights.safetensors"
LABEL_NOISE = "label_noise.json"


def create_run_folder(config: Config, runtime: Runtime) -> Path:
    """Make the folder on rank 0, and agree on its name. Raises UsageError on every rank if it holds another run."""
    name = config.run.dir or f"runs/{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    problem = _make(Path(name), config) if runtime.rank == 0 else None
    name, problem = runtime.from_root("run folder", [name, problem])
    if problem is not None:
        raise UsageError(problem)
    return Path(name)


def _make(path: Path, config: Config) -> str | None:
    taken = [name for name in (CONFIG, METRICS, SUMMARY, WEIGHTS) if (path / name).exists()]
    if taken:
        return f"run.dir={path} already holds a run ({', '.join(taken)}): choose another folder, or remove it"
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / CONFIG).write_text(to_yaml(config))
    except OSError as error:
        return f"run.dir={path} cannot be written: {error}"
    return None


def append_metrics(folder: Path, row: dict[str, Any]) -> None:
    with (folder / METRICS).open("a") as file:
        file.write(json.dumps(_plain(row)) + "\n")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: a run that diverged shows null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def write_label_noise(folder: Path, moved: MovedLabels | None, runtime: Runtime) -> None:
    """Keep which training labels were moved, if any; rank 0 does. A resumed run writes the same again."""
    if runtime.rank == 0 and moved is not None:
        _write_whole(folder / LABEL_NOISE, json.dumps(moved.to_dict()) + "\n")


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Last of all files: its presence says that the run is complete."""
    _write_whole(folder / SUMMARY, json.dumps(_plain(summary), indent=2) + "\n")


def _write_whole(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    os.replace(temporary, path)


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
