"""The scripts that measure one thing each, on the least work that they take: they run, and report what they say."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness import run_command

pytestmark = pytest.mark.processes


def report(ranks: int, out: Path, *command: str) -> dict[str, object]:
    done = run_command(ranks, *command, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, object] = json.loads(out.read_text())
    return found


def test_engine_overhead(tmp_path: Path) -> None:
    flags = ["--batch", "4", "--steps", "1", "--warmup", "0"]
    found = report(1, tmp_path / "a.json", "profiling/engine_overhead.py", *flags)
    assert [(row["model"], row["ratio"] > 0) for row in found["rows"]] == [  # type: ignore[attr-defined]
        ("simple_cnn", True),
        ("simple_cnn", True),
        ("wide_mlp", True),
    ]


def test_stacked(tmp_path: Path) -> None:
    flags = ["--networks", "simple_cnn", "--refiners", "2", "--batches", "8", "--steps", "1", "--warmup", "0"]
    found = report(1, tmp_path / "b.json", "profiling/stacked.py", *flags)
    assert found["rows"]


def test_checkpoint_cost(tmp_path: Path) -> None:
    flags = ["--every", "2", "--windows", "1", "--refiners", "2", "--batch", "8", "--folder", str(tmp_path / "c")]
    assert report(2, tmp_path / "c.json", "profiling/checkpoint_cost.py", *flags)


def test_loading(tmp_path: Path) -> None:
    flags = ["--images", "16", "--batch", "8", "--turns", "1", "--ranks", "1", "2"]
    found = report(1, tmp_path / "e.json", "profiling/loading.py", *flags)
    assert found["settings"]["images"] == 16  # type: ignore[index]
    rows: Any = found["rows"]
    assert [(row["dataset"], row["ranks"]) for row in rows[::3]] == [
        (name, ranks) for name in ("image_folder", "imagenet") for ranks in (1, 2)
    ]
    for row in rows:
        assert row["images_per_core_second"]["median"] > 0
        assert row["images_per_second_of_torchvisions"]["median"] > 0


def test_cast_cost(tmp_path: Path) -> None:
    flags = ["--networks", "wide_mlp", "--width", "16", "--refiners", "2", "--batch", "8", "--steps", "1"]
    found = report(1, tmp_path / "d.json", "profiling/cast_cost.py", *flags, "--microbatches", "1", "4")
    assert [(row["microbatches"], row["casts_ms"] > 0) for row in found["rows"]] == [(1, True), (4, True)]  # type: ignore[attr-defined]
