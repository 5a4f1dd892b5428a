"""The examples run as their docstrings say, on one rank and on two, and learn."""

import ast
import json
import re
from pathlib import Path

import pytest

from tests.harness import ROOT, run_command, torchrun

pytestmark = pytest.mark.processes
EXAMPLES = ROOT / "examples"


def run(ranks: int, script: str, *arguments: str, cwd: Path) -> str:
    """What a script has printed."""
    done = run_command(ranks, str(EXAMPLES / script), *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def accuracies(printed: str, ranks: int) -> list[float]:
    """Of all refiners. Two ranks may write at the same moment, and so on one line."""
    found = re.findall(r"rank (\d): refiners \[[^]]*\], accuracy \[([^]]*)\]", printed)
    assert sorted(rank for rank, _ in found) == [str(rank) for rank in range(ranks)]
    return [float(number) for _, numbers in found for number in numbers.split(", ")]


@pytest.mark.parametrize("ranks", [1, 2])
def test_own_network(ranks: int, tmp_path: Path) -> None:
    """By the command of its docstring, whose options may be set."""
    text = str(ast.get_docstring(ast.parse((EXAMPLES / "own_network.py").read_text())))
    start = "torchrun --standalone --nproc_per_node=2" if ranks > 1 else "python"
    (command,) = re.findall(rf"^ *{start} (-m .*)$", text, re.MULTILINE)
    settings = ["--model.num_refiners=4", "--model.options.width=48", "--optim.epochs=10", f"--run.dir={tmp_path}"]
    done = (torchrun if ranks > 1 else run_command)(ranks, *command.split(), *settings)
    assert done.returncode == 0, done.stderr
    assert min(json.loads((tmp_path / "summary.json").read_text())["refiner_test_accuracy"]) > 0.8


@pytest.mark.parametrize("ranks", [1, 2])
def test_own_images(ranks: int, tmp_path: Path) -> None:
    """Those that the script draws, and then the same folder by its name."""
    run(ranks, "own_images.py", cwd=tmp_path)
    summary = tmp_path / "runs" / "shapes" / "summary.json"
    assert json.loads(summary.read_text())["test_accuracy"] > 0.9
    if ranks == 1:
        printed = run(1, "own_images.py", "data/shapes", cwd=tmp_path)
        assert re.search(r"val/disc/0.png after 4 refiners: disc [5-9]\d\.\d %", printed)


@pytest.mark.parametrize("arguments", [(), ("--streaming",)], ids=["steps", "streaming"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_own_loop(ranks: int, arguments: tuple[str, ...], tmp_path: Path) -> None:
    printed = run(ranks, "own_loop.py", *arguments, cwd=tmp_path)
    assert min(accuracies(printed, ranks)) > 0.9


@pytest.mark.parametrize("ranks", [1, 2])
def test_own_rule(ranks: int, tmp_path: Path) -> None:
    printed = run(ranks, "own_rule.py", cwd=tmp_path)
    assert min(accuracies(printed, ranks)) > 0.85


@pytest.mark.parametrize("ranks", [1, 2])
def test_look_at_beliefs(ranks: int, tmp_path: Path) -> None:
    printed = run(ranks, "look_at_beliefs.py", cwd=tmp_path)
    counts = [int(count) for count in re.findall(r"settled by refiner \d: (\d+) of 360", printed)]
    assert len(counts) == 6
    assert sum(counts) == 360
    assert (tmp_path / "runs" / "look_at_beliefs" / "look_at_beliefs.png").stat().st_size > 10_000


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("own_*.py"):
        assert len(path.read_text().splitlines()) < 60, f"{path.name} is no longer read at a glance"
