"""What a run leaves on disk. Rank 0 writes it."""

import json
import math
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from sidpar.command_line import to_yaml
from sidpar.config import Config
from sidpar.errors import UsageError
from sidpar.runtime import Runtime

CONFIG, SUMMARY, WEIGHTS = "config.yaml", "summary.json", "weights.safetensors"
METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


def create_run_folder(config: Config, runtime: Runtime) -> Path:
    """Make the folder on rank 0, and agree on its name. Raises UsageError on every rank if it holds another run."""
    name = config.run.dir or f"runs/{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    problem = _make(Path(name), config) if runtime.rank == 0 else None
    name, problem = runtime.from_root("run folder", [name, problem])
    if problem is not None:
        raise UsageError(problem)
    return Path(name)


def _make(path: Path, config: Config) -> str | None:
    taken = [name for name in (CONFIG, METRICS, TENSORBOARD, SUMMARY, WEIGHTS) if (path / name).exists()]
    if taken:
        return f"run.dir={path} already holds a run ({', '.join(taken)}): choose another folder, or remove it"
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / CONFIG).write_text(to_yaml(config))
    except OSError as error:
        return f"run.dir={path} cannot be written: {error}"
    return None


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
    temporary = folder / f".{SUMMARY}"
    temporary.write_text(json.dumps(plain(summary), indent=2) + "\n")
    os.replace(temporary, folder / SUMMARY)


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
