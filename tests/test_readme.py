"""The README is short, its example runs as printed, its table is that of the committed results, and what it links to is
there."""

import ast
import re
from pathlib import Path

import pytest
from macros.answer import answer_table

import sidpar
from tests.harness import ROOT, run_command

README = (ROOT / "README.md").read_text()


@pytest.mark.processes
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_example_runs(ranks: int, tmp_path: Path) -> None:
    """Each rank prints the losses of its refiners, four in all."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(example)
    done = run_command(ranks, str(script))
    assert done.returncode == 0, done.stderr
    # Two ranks may write at the same moment, and so on one line.
    found = re.findall(r"rank (\d): losses \[([^]]*)\]", done.stdout)
    assert sorted(rank for rank, _ in found) == [str(rank) for rank in range(ranks)]
    assert sum(len(losses.split(", ")) for _, losses in found) == 4


def test_it_is_read_to_its_end() -> None:
    assert len(README.splitlines()) < 250


def test_the_answer_is_that_of_the_results() -> None:
    table = answer_table()
    assert table in README, f"put this table into the README:\n{table}"


def test_what_it_links_to_is_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    assert len(targets) > 20
    for target in targets:
        assert (ROOT / target).exists(), target


def test_it_names_every_package_and_command() -> None:
    where = README.split("## What is where")[1].split("\n## ")[0]
    for init in (ROOT / "sidpar").glob("*/__init__.py"):
        assert f"`{init.parent.name}`" in where, init.parent.name
    for name in ("train", "plan", "predict", "plot"):
        assert f"`{name}`" in where


def test_changelog_and_citation_have_the_version() -> None:
    assert f"\n## [{sidpar.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {sidpar.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_example_needs_the_names_of_sidpar_alone() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    imported = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imported] == ["import torch", "import sidpar"]
