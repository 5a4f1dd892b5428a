"""`parallel.auto`: what is chosen is the same on all ranks, is what runs, and leaves what is given alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from sidpar import Cascade
from sidpar.cascade.batch_norm.module import Company, synchronise
from sidpar.distributed import runtime
from sidpar.distributed.runtime import Runtime
from sidpar.methods import auto, method_of
from sidpar.planner.search import FREE
from sidpar.train import parse
from tests.harness import RankError, make_run, run_ranks

FLAGS = ["--config", "configs/digits.yaml", "--data.batch_size", "200", "--model.num_refiners", "4"]
FLAGS += ["--optim.epochs", "1", "--parallel.auto", "true"]
CHOSEN = ("extractor", "schedule", "microbatches", "placement")


def run(runtime: Runtime, flags: list[str]) -> dict[str, Any]:
    """One epoch; what this rank was told to do."""
    trained = make_run(parse(flags), runtime)
    trained.train()
    return {name: getattr(trained.config.parallel, name) for name in (*CHOSEN, "auto", "staleness")}


@pytest.mark.processes
def test_all_ranks_run_what_the_run_folder_says(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first, second = run_ranks(run, 2, [*FLAGS, "--run.dir", str(folder)])
    assert first == second
    config = yaml.safe_load((folder / "config.yaml").read_text())["parallel"]
    summary = json.loads((folder / "summary.json").read_text())
    assert {name: config[name] for name in first} == first
    assert {name: summary["plan"][name] for name in CHOSEN} == {name: first[name] for name in CHOSEN}
    assert first["auto"] is False, "the file repeats the run, and does not choose again"
    assert first["schedule"] in ("fused", "streaming")
    assert first["staleness"] == (1 if first["schedule"] == "streaming" else None)
    assert summary["refiners_per_rank"] == first["placement"]
    assert summary["plan"]["predicted_step_seconds"] > 0


@pytest.mark.processes
def test_with_replicas(tmp_path: Path) -> None:
    """Two cascades of one rank each: messages are measured where there are any."""
    flags = [*FLAGS, "--parallel.replicas", "2", "--run.dir", str(tmp_path / "run")]
    first, second = run_ranks(run, 2, flags, replicas=2)
    assert first == second
    assert first["placement"] == [4]


@pytest.mark.processes
def test_what_is_given_stays(tmp_path: Path) -> None:
    given = ["--parallel.extractor", "root", "--parallel.schedule", "two_phase", "--parallel.placement", "[3,1]"]
    found = run_ranks(run, 2, [*FLAGS, *given, "--run.dir", str(tmp_path / "run")])[0]
    assert (found["extractor"], found["schedule"], found["placement"]) == ("root", "two_phase", [3, 1])
    assert found["microbatches"] >= 1


@pytest.mark.processes
def test_one_process_chooses_too(tmp_path: Path) -> None:
    found = run(Runtime.single("cpu"), [*FLAGS, "--run.dir", str(tmp_path / "run")])
    assert found["placement"] == [4]


def normalized() -> Cascade:
    """A network whose features depend on the whole batch."""
    extractor = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 16))
    refiners = [nn.Sequential(nn.Linear(16 + 10, 10)) for _ in range(4)]
    return Cascade(extractor, [Concatenating(refiner) for refiner in refiners], num_classes=10)


class Concatenating(nn.Module):
    """Takes features and log-belief side by side."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        logits: Tensor = self.layers(torch.cat([features, log_belief], dim=1))
        return logits


def choose_for_batch_norm(runtime: Runtime, flags: list[str]) -> str | None:
    """The extractor's placement."""
    config = parse(flags)
    config, _ = method_of(config).choose(config, normalized, torch.randn(64, 1, 8, 8), runtime)
    return config.parallel.extractor


@pytest.mark.processes
def test_what_would_be_refused_is_not_chosen() -> None:
    """Batch norm sees a part of the batch in a sharded extractor."""
    x, runtime = torch.randn(16, 1, 8, 8), Runtime.single("cpu")
    possible = auto.feasible(FREE, normalized().extractor, x, runtime)
    assert set(possible.extractors) == set(FREE.extractors) - {"sharded"}
    each_alone = nn.Sequential(nn.Flatten(), nn.LayerNorm(64))
    assert auto.feasible(FREE, each_alone, x, runtime).extractors == list(FREE.extractors)
    assert set(run_ranks(choose_for_batch_norm, 2, FLAGS)) <= {"replicated", "root"}


def test_what_shares_its_statistics_may_be_sharded() -> None:
    x, runtime, company, extractor = torch.randn(16, 1, 8, 8), Runtime.single("cpu"), Company(), normalized().extractor
    synchronise(extractor, company)
    assert auto.feasible(FREE, extractor, x, runtime, company).extractors == list(FREE.extractors)
    masked = nn.Sequential(extractor, nn.Dropout(0.5))
    assert "sharded" not in auto.feasible(FREE, masked, x, runtime, company).extractors


def test_nothing_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "usable_memory", lambda device, sharers: 900.0)
    with pytest.raises(
        ValueError, match="parallel.auto=true finds no schedule and placement for SID that fit 900 B on each of 1 ranks"
    ):
        run(Runtime.single("cpu"), [*FLAGS, "--run.dir", str(tmp_path / "run")])


@pytest.mark.processes
def test_too_many_ranks_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(RankError) as failure:
        run_ranks(run, 3, [*FLAGS, "--model.num_refiners", "2", "--run.dir", str(tmp_path / "run")])
    assert all("2 refiners cannot be placed on 3 ranks" in text for text in failure.value.errors.values())
    assert not (tmp_path / "run").exists()
