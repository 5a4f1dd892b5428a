"""Replicas through the command line: the same weights and the same record as one process."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.training.test_train import SMALL, STREAM, rows, train, train_by_command

pytestmark = [pytest.mark.processes, pytest.mark.long]

ONE_EPOCH = [*SMALL, "--optim.epochs", "1"]


def assert_same(found: Path, expected: Path) -> None:
    """Weights to rounding, and every measure of every refiner."""
    one, other = (load_file(folder / "weights.safetensors") for folder in (found, expected))
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert (tensor - one[name]).abs().max() < 1e-4, name
    for row, reference in zip(rows(found), rows(expected), strict=True):
        assert (row["kind"], row["step"], row["epoch"]) == (reference["kind"], reference["step"], reference["epoch"])
        assert row["kl"] == pytest.approx(reference["kl"], rel=1e-3)
        assert row["accuracy"] == pytest.approx(reference["accuracy"], abs=2 / 360)


def test_two_replicas_of_two_ranks(tmp_path: Path) -> None:
    """Through the command; the last batch of the epoch is a ragged one."""
    placed = train_by_command(4, tmp_path / "placed", *ONE_EPOCH, "--parallel.replicas", "2")
    assert_same(placed, train(1, tmp_path / "alone", *ONE_EPOCH))
    summary = json.loads((placed / "summary.json").read_text())
    assert (summary["world_size"], summary["replicas"], summary["refiners_per_rank"]) == (4, 2, [2, 2, 2, 2])
    assert len(summary["peak_memory_bytes"]) == 4


@pytest.mark.parametrize(
    "flags",
    [
        [*STREAM],
        [*ONE_EPOCH, "--parallel.extractor", "root", "--parallel.schedule", "two_phase", "--optim.clip", "0.5"],
    ],
    ids=["streaming", "two_phase"],
)
def test_schedules(flags: list[str], tmp_path: Path) -> None:
    placed = train(4, tmp_path / "placed", *flags, "--parallel.replicas", "2", "--parallel.placement", "[3,1]")
    assert_same(placed, train(1, tmp_path / "alone", *flags))


def test_shared_statistics(tmp_path: Path) -> None:
    """Batch norm in a sharded extractor and in the refiners of two replicas: the run of one process."""
    network = ["--model.builder", "tests.own_networks:normalised", "--model.num_refiners", "2", "--optim.epochs", "1"]
    flags = [*network, "--data.batch_size", "200", "--parallel.sync_batchnorm", "true"]
    placed = train(4, tmp_path / "placed", *flags, "--parallel.replicas", "2")
    alone = train(1, tmp_path / "alone", *flags)
    assert_same(placed, alone)
    extractor, refiners = (
        "of the whole batch on 4 ranks in the extractor (1)",
        "of a microbatch on 2 ranks in the refiners (2)",
    )
    said = f"batch norm  statistics {extractor}, {refiners}"
    assert (placed / "logs" / "rank_0.log").read_text().count(said) == 1
    assert "batch norm  statistics" not in (alone / "logs" / "rank_0.log").read_text()
