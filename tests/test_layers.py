"""The import rule of DESIGN section 6: a file imports only from its own layer or from layers above it."""

import ast
import re
from pathlib import Path

import pytest

from tests.harness import ROOT

LAYERS: list[tuple[str, list[str]]] = [
    (
        "pure",
        [
            *["version", "errors", "choices", "units", "validation", "compute", "objective"],
            *["config_groups", "config", "command_line", "placement", "cut", "batching"],
            *["actions", "rank_view", "schedule", "streaming", "pipelines", "phases"],
            *["simulated", "simulator", "timeline", "occupancy"],
            *["costs", "cost_records", "prices", "cost_model", "bounds", "footprint"],
            *["job", "candidates", "planning", "plan_text"],
        ],
    ),
    ("network", ["seeding", "cascade", "losses", "theory", "specs", "stackable", "stacked", "models", "data"]),
    (
        "machine",
        ["device", "environment", "backends", "groups", "rounds", "signals", "cut_off", "runtime", "clock", "memory"],
    ),
    ("messages", ["traffic", "transport", "buckets", "links"]),
    ("engines", ["stage", "sections", "engines", "balance", "calibration"]),
    (
        "application",
        [
            *["run_folder", "logs", "record", "checkpoint", "optim", "training_state", "stopping", "weights", "meter"],
            *["trainer", "build", "auto", "train"],
            *[
                "builder",
                "network",
                "inference",
                "predict",
                "pictures",
                "belief_picture",
                "recorded",
                "curves",
                "samples",
                "plot",
            ],
            *["configured", "drawing", "plan_picture", "plan"],
        ],
    ),
]
LEVEL = {name: level for level, (_, names) in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in (ROOT / "sidpar").rglob("*.py") if path != ROOT / "sidpar" / "__init__.py")


def name_of(path: Path) -> str:
    """sidpar/engines/sid.py belongs to `engines`, sidpar/stage.py to `stage`."""
    first = path.relative_to(ROOT / "sidpar").parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Dotted names of everything a file imports, wherever in the file."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_up_the_layers(path: Path) -> None:
    level = LEVEL[name_of(path)]
    for imported in imports(path):
        package, *rest = imported.split(".")
        if package == "sidpar":
            assert LEVEL[rest[0]] <= level, f"{path.name} may not know {imported}"
        if package == "torch":
            assert LAYERS[level][0] != "pure", f"{path.name} is pure and may not import torch"
        if imported.startswith("torch.distributed"):
            assert LAYERS[level][0] not in ("pure", "network"), f"{path.name} may not know of ranks"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_hides_in_a_function(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert not [node for f in functions for node in ast.walk(f) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_cuda_has_one_seam() -> None:
    """Only what chooses and sets the device, and what hides it."""
    users = {path.name for path in FILES if "torch.cuda" in path.read_text()}
    assert users <= {"device.py", "backends.py", "runtime.py"}


def test_environment_is_read_in_one_place() -> None:
    users = {path.name for path in FILES if re.search(r"os\.environ|getenv", path.read_text())}
    assert users == {"environment.py"}
