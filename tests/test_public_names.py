"""A training loop of a user's own needs the names in `sidpar` alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import sidpar
from tests import networks
from tests.harness import run_ranks


class Squares(sidpar.LocalRule):
    """Beliefs are moved to the label by squares."""

    name = "squares"

    def loss(
        self,
        i: int,
        features: tuple[Tensor, ...],
        state: tuple[Tensor, ...],
        following: tuple[Tensor, ...],
        target: Tensor,
    ) -> Tensor:
        return (following[0].exp() - target).square().sum(-1)


def own_loop(runtime: sidpar.Runtime, weights: Path) -> list[list[float]]:
    """The accuracy of every refiner before and after training."""
    counts = sidpar.place_by_cost([1.0, 1.0, 1.0], runtime.world_size, 0.0)
    stage = sidpar.Stage(networks.plain(3), runtime, counts=counts)
    engine = sidpar.ParallelEngine(stage, Squares(sidpar.Objective()), microbatches=2)
    optimizer, meter = torch.optim.Adam(stage.parameters(), lr=1e-2), sidpar.Meter(engine)
    x, _ = networks.batch(64)
    y = x[:, :3].argmax(1)

    def accuracy() -> list[float]:
        meter.add(engine.evaluate(x, y))
        return list(meter.read()["accuracy"])

    before = accuracy()
    for _ in range(60):
        engine.step(x, y)
        optimizer.step()
    sidpar.save_weights(stage, weights)
    return [before, accuracy()]


def test_every_name_is_there() -> None:
    assert sorted(sidpar.__all__) == sidpar.__all__
    assert all(hasattr(sidpar, name) for name in sidpar.__all__)
    assert sidpar.SIDEngine is sidpar.ParallelEngine, "its name when there was one rule"


@pytest.mark.processes
def test_a_loop_of_ones_own_learns_on_two_ranks_and_keeps_all_weights(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    first, second = run_ranks(own_loop, 2, weights)
    assert first == second
    before, after = first
    assert max(before) < 0.6
    assert min(after) > 0.9
    assert load_file(weights).keys() == networks.plain(3).state_dict().keys()
