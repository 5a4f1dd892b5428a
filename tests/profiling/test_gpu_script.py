"""`profiling/gpu/run.py` where there is no GPU: the least sizes, and what needs a GPU is skipped and says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.harness import ROOT

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
]


def carry_out(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "profiling/gpu/run.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_every_part_has_a_verdict(tmp_path: Path) -> None:
    done = carry_out("--out", str(tmp_path), "--only", "first_use", "tests", "stacked", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "cpu" / "summary.json").read_text())
    verdicts = {part["name"]: part["status"] for part in found["parts"]}
    assert verdicts == {
        "first_use": "skipped: needs a GPU",
        "tests": "passed",
        "tests_of_resuming": "skipped: needs a GPU",
        "tests_of_first_use": "skipped: needs a GPU",
        "stacked": "passed",
        "demo": "passed",
    }
    assert "torch sees no GPU here" in (tmp_path / "cpu" / "tests.log").read_text()
    assert json.loads((tmp_path / "cpu" / "stacked.json").read_text())["rows"]
    subprocess.run([sys.executable, "profiling/report.py", str(tmp_path / "cpu")], cwd=ROOT, check=True)
    tables = (tmp_path / "cpu" / "report.md").read_text()
    assert [line for line in tables.splitlines() if line.startswith("#")] == [
        "# cpu",
        "## Parts",
        "## Refiners at once (stacked)",
        "## Trainings",
    ]
    for row in ("| stacked | passed |", "| simple_cnn | 2 | 8 |", "| demo | sid | 1 |"):
        assert row in tables, tables


def test_a_part_that_has_no_time_left_is_named(tmp_path: Path) -> None:
    done = carry_out("--out", str(tmp_path), "--only", "demo", "--minutes", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped: no time is left" in done.stdout
