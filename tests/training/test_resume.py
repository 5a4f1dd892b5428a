"""A run that is interrupted and resumed ends with the same weights as one that was not."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sidpar.data.loader import Loader
from sidpar.distributed.runtime import Runtime
from sidpar.distributed.signals import Signals
from sidpar.train import parse
from sidpar.training.run import train
from tests.harness import alone, run_ranks

pytestmark = pytest.mark.processes

SMALL = ["--model.name", "wide_mlp", "--model.width", "16", "--model.num_refiners", "4", "--data.batch_size", "200"]
SMALL += ["--optim.epochs", "2", "--run.log_every", "3", "--run.tensorboard", "false"]
"""16 steps, in two epochs of 8, the last batch of which is a ragged one."""


def run(ranks: int, folder: Path, *flags: str, stop_at: int | None = None) -> bool:
    """Train on ranks, one of which asks to stop when it takes the batch of step `stop_at`; whether the run is done."""
    return finish(ranks, folder, [*SMALL, *flags], stop_at)


def finish(ranks: int, folder: Path, flags: list[str], stop_at: int | None = None) -> bool:
    """The same of any configuration."""
    arguments = [*flags, "--run.dir", str(folder)]
    replicas = parse(arguments).parallel.replicas
    (finished, *others) = run_ranks(job, ranks, arguments, stop_at, replicas=replicas)
    assert all(other == finished for other in others)
    return bool(finished)


def job(runtime: Runtime, arguments: list[str], stop_at: int | None) -> bool:
    if runtime.world_size == 1:
        single = alone()
        runtime = Runtime(0, 1, single.device, "none", signals=Signals(lambda _: "", lambda: False))
    if stop_at is not None and runtime.rank == runtime.world_size - 1:
        Loader.train_batches = asking(runtime, Loader.train_batches, stop_at)  # type: ignore[method-assign]
    return train(parse(arguments), runtime)


def asking(runtime: Runtime, batches: Callable[..., Iterator[Any]], stop_at: int) -> Callable[..., Iterator[Any]]:
    """The same batches; while that of step `stop_at` is made, this rank is asked to stop."""

    def train_batches(loader: Loader, epoch: int, start: int = 0) -> Iterator[Any]:
        for step, batch in enumerate(batches(loader, epoch, start), epoch * loader.steps_per_epoch + start):
            if step == stop_at:
                assert runtime.signals is not None
                runtime.signals.stop_requested = True
            yield batch

    return train_batches


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights.safetensors")


def difference(folder: Path, other: Path) -> float:
    """The largest of all weights' differences."""
    found, expected = weights(folder), weights(other)
    assert found.keys() == expected.keys()
    return max((tensor - expected[name]).abs().max().item() for name, tensor in found.items())


CASES = {
    "sharded": (3, ["--optim.clip", "0.5", "--optim.warmup_epochs", "1"]),
    "adamw": (2, ["--optim.name", "adamw", "--optim.weight_decay", "0.1", "--parallel.extractor", "root"]),
    "sgd": (2, ["--optim.name", "sgd", "--parallel.extractor", "replicated", "--parallel.microbatches", "3"]),
    "two_phase": (
        2,
        ["--parallel.schedule", "two_phase", "--objective.kl", "reverse", *["--objective.label_smoothing", "0.1"]],
    ),
    "stacked": (2, ["--parallel.refiner_execution", "stacked"]),
    "frozen": (2, ["--objective.extractor_update", "frozen"]),
    "replicas": (4, ["--parallel.replicas", "2"]),
    "local": (1, ["--method", "local"]),
    "alone": (1, []),
    "pipeline": (2, ["--method", "bp"]),
    "ddp": (2, ["--method", "ddp"]),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_on_the_same_ranks_bit_for_bit(case: str, tmp_path: Path) -> None:
    """Stopped in the second epoch, between two checkpoints, and begun again by the same command."""
    ranks, flags = CASES[case]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(ranks, whole, *flags)
    assert not run(ranks, parts, *flags, stop_at=10)
    assert (parts / "REQUEUE").exists()
    assert not (parts / "summary.json").exists()
    assert run(ranks, parts, *flags)
    assert not (parts / "REQUEUE").exists()
    assert difference(parts, whole) == 0
    resumed = json.loads((parts / "summary.json").read_text())
    assert (resumed["steps"], resumed["resumed_at"]) == (16, [11]), "asked at one step, stopped after it"
    record, expected = (
        [(row["kind"], row["step"]) for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]
        for folder in (parts, whole)
    )
    assert record == expected, "one consistent record"


STREAM = ["--parallel.schedule", "streaming", "--checkpoint.every", "5", "--parallel.microbatches", "2"]


@pytest.mark.parametrize("more", [[], ["--parallel.weight_prediction", "true", "--parallel.staleness", "2"]])
def test_a_stream_goes_on_from_a_checkpoint_bit_for_bit(more: list[str], tmp_path: Path) -> None:
    """Killed after the checkpoint of step 10, at which both runs were drained: the run loses what came later."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(2, whole, *STREAM, *more, "--checkpoint.keep", "9")
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == [
        f"step_{step:010d}" for step in (5, 10, 15)
    ]
    (parts / "checkpoints").mkdir(parents=True)
    (whole / "checkpoints" / "step_0000000010").rename(parts / "checkpoints" / "step_0000000010")
    (parts / "config.yaml").write_text((whole / "config.yaml").read_text())
    assert run(2, parts, *STREAM, *more)
    assert difference(parts, whole) == 0
    assert json.loads((parts / "summary.json").read_text())["resumed_at"] == [10]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on four ranks that stopped, and one that did not."""
    base = tmp_path_factory.mktemp("interrupted")
    flags = ["--data.augment", "true", "--optim.name", "sgd"]
    assert run(4, base / "whole", *flags)
    assert not run(4, base / "parts", *flags, stop_at=10)
    return base / "whole", base / "parts"


@pytest.mark.parametrize("extractor", ["replicated", "root", "sharded"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_resumed_on_other_ranks(ranks: int, extractor: str, interrupted: tuple[Path, Path], tmp_path: Path) -> None:
    """From K = 4: the same weights as never interrupted, to 1e-6."""
    whole, parts = interrupted
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (folder / name).write_bytes((parts / name).read_bytes())
    (folder / "checkpoints").symlink_to(parts / "checkpoints")
    flags = ["--data.augment", "true", "--optim.name", "sgd", "--parallel.extractor", extractor]
    assert run(ranks, folder, *flags, "--checkpoint.every", "0")
    assert difference(folder, whole) < 1e-6


def test_a_complete_run_is_left_alone(tmp_path: Path) -> None:
    assert run(2, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run(2, tmp_path / "run"), "finished, as before"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def drawn(runtime: Runtime, folder: str) -> tuple[Tensor, Tensor]:
    """What each rank draws after its checkpoint, and what it draws when it has gone on from it."""
    from_seed = torch.Generator().manual_seed(runtime.rank)
    torch.set_rng_state(from_seed.get_state())
    arguments = [*SMALL, "--run.dir", folder]
    Loader.train_batches = asking(runtime, Loader.train_batches, 3)  # type: ignore[method-assign]
    assert not train(parse(arguments), runtime)
    before = torch.rand(3)
    torch.manual_seed(99)
    assert runtime.signals is not None
    runtime.signals.stop_requested = False
    Loader.train_batches = asking(runtime, Loader.train_batches, 4)  # type: ignore[method-assign]
    assert not train(parse(arguments), runtime)
    return before, torch.rand(3)


def test_generators_of_every_rank_go_on(tmp_path: Path) -> None:
    """For what a user's own modules draw from them."""
    first, second = run_ranks(drawn, 2, str(tmp_path / "run"))
    for before, after in (first, second):
        assert torch.equal(before, after)
    assert not torch.equal(first[0], second[0])
