"""The staleness experiment from its command to its table and picture, on two real ranks, short."""

import json
from pathlib import Path

import pytest
from matplotlib import image
from staleness_report import remake

from tests.harness import run_command

pytestmark = [pytest.mark.processes, pytest.mark.long]

REMEDIES = ("none", "warmup", "slow", "momentum", "prediction", "compensation")
FLAGS = ["--", "--optim.epochs", "2", "--data.batch_size", "256", "--model.num_refiners", "2"]


def train(out: Path, *arguments: str) -> str:
    command = ["profiling/staleness.py", "--config", "configs/digits.yaml", "--out", str(out), "--seeds", "0"]
    done = run_command(2, *command, *arguments, *FLAGS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("staleness")
    train(out / "digits.json", "--staleness", "0", "2", "--remedies", *REMEDIES)
    again = train(out / "digits.json", "--staleness", "0", "1", "--diagnose", "2")
    assert again.count("test_accuracy") == 1, "what is there is not repeated, and nothing is stale without staleness"
    remake(out)
    return out


def test_every_remedy_is_another_training(folder: Path) -> None:
    rows = json.loads((folder / "digits.json").read_text())["rows"]
    losses = {(row["staleness"], row["remedy"]): row["test_loss"] for row in rows if not row["diagnose"]}
    assert set(losses) == {(0, "none"), *((2, remedy) for remedy in REMEDIES)}
    assert len(set(losses.values())) == len(losses)
    assert all(row["steps"] == 12 for row in rows)


def test_observations_are_kept(folder: Path) -> None:
    (row,) = (row for row in json.loads((folder / "digits.json").read_text())["rows"] if row["diagnose"])
    assert [found["step"] for found in row["diagnoses"]] == [5, 9]
    assert all(found["extractor_gradient_error"] > 0 for found in row["diagnoses"])


def test_table_and_picture(folder: Path) -> None:
    report = (folder / "report.md").read_text()
    assert "| staleness | none | warmup | slow | momentum | prediction | compensation |" in report
    assert "| 0 | " in report
    assert "extractor staleness" in report
    picture = image.imread(folder / "staleness.png")
    assert len({tuple(pixel) for row in picture[::5] for pixel in row[::5]}) > 5, "the picture is blank"
