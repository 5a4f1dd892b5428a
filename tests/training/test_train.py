"""The main job through its command line: what it leaves on disk, on any number of ranks, and how it refuses."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sidpar.data.datasets import load
from sidpar.data.loader import Loader
from sidpar.distributed.runtime import Runtime
from sidpar.models.simple_cnn import simple_cnn
from sidpar.train import parse
from sidpar.training.run import train as train_run
from sidpar.version import source_commit
from tests.harness import run_command, run_ranks, torchrun

pytestmark = [pytest.mark.processes, pytest.mark.long]

CONFIG = ["--config", "configs/digits.yaml"]
SMALL = ["--data.batch_size", "200", "--model.num_refiners", "4", "--run.log_every", "4"]


def train_by_command(ranks: int, folder: Path, *flags: str) -> Path:
    """The command line, on ranks that need no torchrun to start."""
    return trained(run_command(ranks, "-m", "sidpar.train", *CONFIG, "--run.dir", str(folder), *flags), folder)


def trained(done: subprocess.CompletedProcess[str], folder: Path) -> Path:
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run folder: {folder}" in done.stdout
    return folder


def train(ranks: int, folder: Path, *flags: str) -> Path:
    """The same by a call."""
    arguments = [*CONFIG, "--run.dir", str(folder), *flags]
    run_ranks(job, ranks, arguments, replicas=parse(arguments).parallel.replicas)
    return folder


def job(runtime: Runtime, flags: list[str]) -> None:
    assert train_run(parse(flags), runtime if runtime.world_size > 1 else Runtime.single("cpu"))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Two epochs on digits with 1, 2 and 4 ranks."""
    base = tmp_path_factory.mktemp("runs")
    return {ranks: train_by_command(ranks, base / str(ranks), "--optim.epochs", "2") for ranks in (1, 2, 4)}


def test_weights_do_not_depend_on_the_number_of_ranks(runs: dict[int, Path]) -> None:
    """One cascade on any number of ranks, after two epochs, to rounding."""
    alone = load_file(runs[1] / "weights.safetensors")
    for ranks in (2, 4):
        placed = load_file(runs[ranks] / "weights.safetensors")
        assert placed.keys() == alone.keys()
        for name, tensor in alone.items():
            assert (tensor - placed[name]).abs().max() < 1e-4, name
    initial = simple_cnn((1, 8, 8), 10, 8, seed=0).state_dict()
    assert any((alone[name] - initial[name]).abs().max() > 1e-3 for name in alone), "training moved them"


def test_initial_weights_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    initial = simple_cnn((1, 8, 8), 10, 8, seed=0).state_dict()
    for ranks in (1, 3):
        folder = train(ranks, tmp_path / str(ranks), "--optim.epochs", "0", "--optim.warmup_epochs", "0")
        found = load_file(folder / "weights.safetensors")
        assert found.keys() == initial.keys()
        assert all(torch.equal(tensor, initial[name]) for name, tensor in found.items())
        assert json.loads((folder / "summary.json").read_text())["steps"] == 0


def test_run_folder(runs: dict[int, Path]) -> None:
    folder = runs[4]
    config = parse(["--config", "configs/digits.yaml", "--optim.epochs", "2", "--run.dir", str(folder)])
    assert yaml.safe_load((folder / "config.yaml").read_text()) == config.to_dict()

    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["epochs"], summary["world_size"]) == (12, 2, 4)
    assert len(summary["refiner_test_accuracy"]) == 8
    assert summary["test_accuracy"] == summary["refiner_test_accuracy"][-1]
    assert len(summary["peak_memory_bytes"]) == 4
    assert min(summary["peak_memory_bytes"]) > 2**20
    assert summary["torch"] == torch.__version__
    assert summary["commit"] == source_commit()
    assert summary["wall_seconds"] > 0
    assert summary["images_per_second"] == pytest.approx(2 * 1437 / summary["wall_seconds"])

    train_rows, test_rows = ([row for row in rows(folder) if row["kind"] == kind] for kind in ("train", "test"))
    assert [row["step"] for row in train_rows] == [10, 12], "the last steps are not lost"
    assert [(row["epoch"], row["step"]) for row in test_rows] == [(1, 6), (2, 12)]
    for row in train_rows + test_rows:
        assert row["images_per_second"] > 0
        assert len(row["memory_bytes"]) == 4
        for column in ("loss", "kl", "accuracy", "premise_failures", "descent_failures", "epsilon"):
            assert len(row[column]) == 8
        assert row["bound_slack"] >= -1e-9, "Proposition 4"
    assert test_rows[-1]["accuracy"] == summary["refiner_test_accuracy"]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_weights_file_gives_the_accuracy_of_the_summary(runs: dict[int, Path], ranks: int) -> None:
    """Loaded into a plain cascade in one process: nothing was lost on the way from the ranks."""
    cascade = simple_cnn((1, 8, 8), 10, 8, seed=99)
    cascade.load_state_dict(load_file(runs[ranks] / "weights.safetensors"))
    loader = Loader(
        load("digits"), batch_size=128, eval_batch_size=360, augment=False, seed=0, device=torch.device("cpu")
    )
    ((x, y),) = loader.test_batches()
    with torch.no_grad():
        accuracy = (cascade(x).argmax(1) == y).double().mean().item()
    summary = json.loads((runs[ranks] / "summary.json").read_text())
    assert accuracy == pytest.approx(summary["test_accuracy"], abs=1.5 / 360)


def test_metrics_do_not_depend_on_the_number_of_ranks(runs: dict[int, Path]) -> None:
    for alone, placed in zip(rows(runs[1]), rows(runs[4]), strict=True):
        assert alone["kl"] == pytest.approx(placed["kl"], rel=1e-3)


STREAM = ["--parallel.schedule", "streaming", "--parallel.microbatches", "2", "--optim.epochs", "1", *SMALL]


def test_streaming_ends_with_the_same_weights_wherever_it_runs(tmp_path: Path) -> None:
    """One process, three ranks, every placement of the extractor; the last batch of the epoch is a ragged one."""
    alone = load_file(train(1, tmp_path / "1", *STREAM) / "weights.safetensors")
    for extractor in ("replicated", "root", "sharded"):
        placed = train(3, tmp_path / extractor, *STREAM, "--parallel.extractor", extractor)
        for name, tensor in load_file(placed / "weights.safetensors").items():
            assert (tensor - alone[name]).abs().max() < 1e-4, (extractor, name)
        assert [row["step"] for row in rows(placed)] == [4, 8, 8]


def test_streaming_without_staleness_is_fused_bit_for_bit(tmp_path: Path) -> None:
    weights = {}
    for name, flags in {
        "fused": ["--parallel.schedule", "fused"],
        "none": ["--parallel.staleness", "0"],
        "one": ["--parallel.staleness", "1"],
    }.items():
        weights[name] = load_file(train(2, tmp_path / name, *STREAM, *flags) / "weights.safetensors")
    assert all(torch.equal(tensor, weights["none"][name]) for name, tensor in weights["fused"].items())
    assert not all(torch.equal(tensor, weights["one"][name]) for name, tensor in weights["fused"].items())


def as_on_nccl(runtime: Runtime, flags: list[str]) -> None:
    """With a rehearsal of all that is used for the first time, and receives that are posted late."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "loads_lazily", True)
        patch.setattr(Runtime, "posts_receives_ahead", False)
        job(runtime, flags)


def test_what_nccl_needs_changes_no_weight_and_no_measure(tmp_path: Path) -> None:
    flags = [*STREAM, "--optim.clip", "0.5", "--parallel.weight_prediction", "true"]
    plain, other = train(2, tmp_path / "plain", *flags), tmp_path / "as on nccl"
    run_ranks(as_on_nccl, 2, [*CONFIG, "--run.dir", str(other), *flags])
    weights = load_file(plain / "weights.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(other / "weights.safetensors").items())
    for row, expected in zip(rows(other), rows(plain), strict=True):
        assert (row["kl"], row["accuracy"], row["loss"]) == (expected["kl"], expected["accuracy"], expected["loss"])


def test_the_demo_reaches_its_accuracy(tmp_path: Path) -> None:
    """What `make demo` runs."""
    folder = tmp_path / "demo"
    trained(torchrun(4, "-m", "sidpar.train", *CONFIG, "--run.dir", str(folder)), folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_accuracy"] >= 0.97


@pytest.mark.parametrize(
    "flags",
    [
        ["--parallel.extractor", "root", "--parallel.schedule", "two_phase", "--parallel.microbatches", "3"],
        ["--parallel.extractor", "replicated", "--parallel.placement", "[3,1]", "--optim.clip", "0.5"],
        ["--parallel.placement", "cost", "--compute.autocast", "bf16", "--compute.channels_last", "true"],
        ["--parallel.placement", "cost", "--parallel.costs", "[1,1,1,9]", "--optim.name", "adam", "--optim.lr", "1e-3"],
        [
            *["--model.name", "wide_mlp", "--model.width", "32", "--objective.kl", "reverse"],
            *["--objective.label_smoothing", "0.1", "--objective.alpha", "[1,0.7,0.5,0.3]"],
        ],
    ],
    ids=["root", "replicated", "measured", "costs", "wide_mlp"],
)
def test_options_train(flags: list[str], tmp_path: Path) -> None:
    folder = train(2, tmp_path / "run", *SMALL, "--optim.epochs", "3", *flags)
    losses = [row["loss"][-1] for row in rows(folder) if row["kind"] == "train"]
    assert losses[-1] < losses[0]
    if "[1,1,1,9]" in flags:
        assert json.loads((folder / "summary.json").read_text())["refiners_per_rank"] == [3, 1]


def test_the_local_oracle_trains_to_the_same_weights(tmp_path: Path) -> None:
    """The trainer does not ask which method runs."""
    oracle = train(1, tmp_path / "local", *SMALL, "--optim.epochs", "1", "--method", "local")
    placed = train(2, tmp_path / "sid", *SMALL, "--optim.epochs", "1")
    found = load_file(placed / "weights.safetensors")
    for name, tensor in load_file(oracle / "weights.safetensors").items():
        assert (tensor - found[name]).abs().max() < 1e-4, name


@pytest.fixture(scope="module")
def backpropagation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of backpropagation in one process."""
    return train(1, tmp_path_factory.mktemp("bp") / "one", *SMALL, "--optim.epochs", "1", "--method", "bp")


@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (1, ["--method", "bp", "--parallel.microbatches", "3", "--bp.checkpointing", "true"]),
        (2, ["--method", "ddp"]),
        (2, ["--method", "bp"]),
        (2, ["--method", "bp", "--parallel.schedule", "interleaved", "--parallel.placement", "count"]),
        (2, ["--method", "bp", "--parallel.schedule", "gpipe", "--parallel.extractor", "root"]),
    ],
    ids=["checkpointing", "ddp", "1f1b", "interleaved", "root"],
)
def test_backpropagation_trains_to_the_same_weights(
    ranks: int, flags: list[str], backpropagation: Path, tmp_path: Path
) -> None:
    """On ranks, cut, with microbatches, clipped by the global norm: the same run folder as in one process."""
    folder = train(ranks, tmp_path / "run", *SMALL, "--optim.epochs", "1", *flags)
    found, expected = (load_file(path / "weights.safetensors") for path in (folder, backpropagation))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (tensor - found[name]).abs().max() < 1e-4, name
    summary, reference = (json.loads((path / "summary.json").read_text()) for path in (folder, backpropagation))
    assert summary["refiner_test_accuracy"] == pytest.approx(reference["refiner_test_accuracy"], abs=2 / 360)
    for row, other in zip(rows(folder), rows(backpropagation), strict=True):
        assert row["kl"] == pytest.approx(other["kl"], rel=1e-3)


def test_the_plain_network_and_deep_supervision_train(tmp_path: Path) -> None:
    plain = train(2, tmp_path / "plain", *SMALL, "--optim.epochs", "3", "--method", "bp", "--model.name", "plain_cnn")
    deep = ["--method", "ddp", "--bp.deep_supervision", "true"]
    for folder in (plain, train(2, tmp_path / "deep", *SMALL, "--optim.epochs", "3", *deep)):
        losses = [row["loss"][-1] for row in rows(folder) if row["kind"] == "train"]
        assert losses[-1] < losses[0]
