"""The import rule: what each package may import stands in the docstring of its `__init__.py`, and is held here."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.harness import ROOT

SOURCE = ROOT / "sidpar"
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")
PACKAGES = sorted(path.parent for path in SOURCE.rglob("__init__.py") if path.parent != SOURCE)
LEAVES = {"errors", "version", "seeding"}
"""Files beside the packages that every file may import."""
COMMANDS = {"train", "plan", "predict", "plot"}
"""Files beside the packages that may import everything, and that no file imports."""
MOST_FILES = 12


def name_of(package: Path) -> str:
    """sidpar/engines/backpropagation is `engines.backpropagation`."""
    return ".".join(package.relative_to(SOURCE).parts)


def docstring(package: Path) -> str:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    assert text is not None, f"{package} does not say what lives there"
    return " ".join(text.split())


def allowed(package: Path) -> set[str]:
    """What a package says that it may import."""
    found = re.search(r"May import: ([a-z_., ]+?)\. ", docstring(package))
    assert found is not None, f"{package} does not say what it may import"
    return set() if found[1] == "nothing" else set(found[1].split(", "))


MAY = {name_of(package): allowed(package) for package in PACKAGES}
PURE = {name_of(package) for package in PACKAGES if "Pure: no torch." in docstring(package)}
KNOWS_RANKS = {name for name, may in MAY.items() if name == "distributed" or "distributed" in may}


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


def home(imported: str) -> str:
    """The package, or the file beside the packages, that a dotted name of ours is in."""
    parts = imported.split(".")[1:]
    depth = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in MAY), None)
    return parts[0] if depth is None else ".".join(parts[:depth])


def is_allowed(path: Path, target: str) -> bool:
    """A package's name stands for the packages within it too, but not for those within the file's own package."""
    package = name_of(path.parent)
    if target in LEAVES or target == package:
        return True
    if not package:
        return path.stem in COMMANDS
    return any(target == name or (target.startswith(f"{name}.") and name != package) for name in MAY[package])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_what_its_package_may(path: Path) -> None:
    package = name_of(path.parent)
    for imported in imports(path):
        if imported.startswith("sidpar."):
            target = home(imported)
            assert target not in COMMANDS, f"{path.name} may not import a command, {imported}"
            assert is_allowed(path, target), f"{path.relative_to(ROOT)} may not import {imported}"
        if package in PURE:
            assert imported.split(".")[0] != "torch", f"{path.name} is pure and may not import torch"
            assert not imported.startswith("sidpar.seeding"), f"{path.name} is pure, and seeding is torch's"
        if imported.startswith("torch.distributed") and package and package not in KNOWS_RANKS:
            pytest.fail(f"{path.name} may not know of ranks")


def test_packages_lie_in_one_order() -> None:
    """What a package may import exists, and leads to no circle."""
    for name, may in MAY.items():
        assert may <= MAY.keys(), f"{name} may import {may - MAY.keys()}, which is not there"
    list(TopologicalSorter(MAY).static_order())  # raises CycleError


def test_pure_packages_rest_on_pure_ones() -> None:
    for name in PURE:
        assert MAY[name] <= PURE, f"{name} is pure and may not import {MAY[name] - PURE}"


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_a_package_uses_what_it_may_import(package: Path) -> None:
    """And says where to start reading, in a file that is there."""
    used = {home(name) for path in package.glob("*.py") for name in imports(path) if name.startswith("sidpar.")}
    assert not [may for may in MAY[name_of(package)] if not any(f"{name}.".startswith(f"{may}.") for name in used)]
    start = re.search(r"Start reading: (\w+\.py)", docstring(package))
    assert start is not None
    assert (package / start[1]).is_file()


def test_folders_are_small() -> None:
    """But for what profiling/gpu/pack.py gathers of others."""
    for root in ("sidpar", "tests", "profiling"):
        for folder in {path.parent for path in (ROOT / root).rglob("*.py") if "pack" not in path.parts}:
            files = [path.name for path in folder.glob("*.py") if path.read_text()]
            assert len(files) <= MOST_FILES, f"{folder} has {len(files)} files: {sorted(files)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_hides_in_a_function(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert not [node for f in functions for node in ast.walk(f) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_cuda_has_one_seam() -> None:
    """Only what chooses and sets the device, and what hides it."""
    users = {str(path.relative_to(SOURCE)) for path in FILES if "torch.cuda" in path.read_text()}
    assert users <= {f"distributed/{name}.py" for name in ("device", "backends", "runtime")}


def test_environment_is_read_in_one_place() -> None:
    users = {str(path.relative_to(SOURCE)) for path in FILES if re.search(r"os\.environ|getenv", path.read_text())}
    assert users == {"distributed/environment.py"}
