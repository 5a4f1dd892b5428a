"""The learning rate over time, the optimizers, and clipping part by part."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sidpar.config.groups.optim import OptimConfig
from sidpar.engines.base import clip_each
from sidpar.training.optim import Optimizers, build_optimizer, learning_rate_factor


def test_warm_up_then_cosine() -> None:
    factor = learning_rate_factor(OptimConfig(epochs=10, warmup_epochs=2), steps_per_epoch=5)
    values = [factor(step) for step in range(51)]
    assert values[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])
    assert values[10] == 1
    assert values[30] == pytest.approx(0.5)
    assert values[50] == pytest.approx(0)
    assert all(after < before for before, after in pairwise(values[10:]))


def test_constant() -> None:
    factor = learning_rate_factor(OptimConfig(epochs=2, schedule="constant", warmup_epochs=0.5), steps_per_epoch=4)
    assert [factor(step) for step in range(8)] == pytest.approx([1 / 3, 2 / 3, *[1.0] * 6])


def test_no_epochs() -> None:
    assert math.isfinite(learning_rate_factor(OptimConfig(epochs=0), steps_per_epoch=3)(0))


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizers(name: str, kind: type[torch.optim.Optimizer]) -> None:
    config = OptimConfig(name=name, lr=0.1, weight_decay=0.01, epochs=1)  # type: ignore[arg-type]
    optimizer = build_optimizer([nn.Parameter(torch.ones(3))], config, 0.1)
    assert type(optimizer) is kind
    assert optimizer.defaults["weight_decay"] == 0.01
    if name == "sgd":
        assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_rehearsal_of_updates_changes_nothing(name: str) -> None:
    """But that every kind of parameter has been updated once by another optimizer like this one."""
    part = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    config = OptimConfig(name=name, weight_decay=0.1, clip=0.5, epochs=1)  # type: ignore[arg-type]
    optimizers = Optimizers({"refiners.0": part}, config, steps_per_epoch=2)
    before, generator, updated = copy.deepcopy(part.state_dict()), torch.get_rng_state(), list[list[torch.dtype]]()

    def see(optimizer: torch.optim.Optimizer, *arguments: object) -> None:
        updated.append([p.dtype for group in optimizer.param_groups for p in group["params"]])

    hook = register_optimizer_step_post_hook(see)  # type: ignore[arg-type]
    optimizers.rehearse()
    hook.remove()
    assert updated == [[torch.float32, torch.float64]] * 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in part.state_dict().items())
    assert all(parameter.grad is None for parameter in part.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert optimizers.state() == {}
    (optimizer,) = optimizers.all
    assert optimizer.param_groups[0]["lr"] == config.lr


def test_extractor_and_refiners_are_updated_apart() -> None:
    """Each with its own rate, and its own place in the schedule of rates."""
    parts: dict[str, nn.Module] = {
        "extractor": nn.Linear(1, 1),
        "refiners.4": nn.Linear(1, 1),
        "refiners.5": nn.Linear(1, 1),
    }
    config = OptimConfig(name="sgd", momentum=0.0, lr=0.1, extractor_lr=0.01, epochs=1)
    optimizers = Optimizers(parts, config, steps_per_epoch=2)

    def moved(names: list[str]) -> dict[str, float]:
        before = {name: parts[name].bias.item() for name in parts}  # type: ignore[union-attr, operator]
        for part in parts.values():
            for parameter in part.parameters():
                parameter.grad = torch.ones_like(parameter)
        optimizers.update(names)
        return {name: before[name] - parts[name].bias.item() for name in parts}  # type: ignore[union-attr, operator]

    assert moved(["refiners.4", "refiners.5"]) == pytest.approx({"extractor": 0, "refiners.4": 0.1, "refiners.5": 0.1})
    assert moved(["extractor"]) == pytest.approx({"extractor": 0.01, "refiners.4": 0, "refiners.5": 0})
    assert moved(list(parts)) == pytest.approx({"extractor": 0.005, "refiners.4": 0.05, "refiners.5": 0.05}, rel=1e-4)


def test_parts_are_clipped_on_their_own() -> None:
    large, small = nn.Linear(2, 2), nn.Linear(2, 2)
    for part, size in ((large, 100.0), (small, 0.01)):
        for parameter in part.parameters():
            parameter.grad = torch.full_like(parameter, size)
    clip_each([large, small], 1.0)
    norm = torch.cat([p.grad.flatten() for p in large.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1.0, rel=1e-4)
    assert all((p.grad == 0.01).all() for p in small.parameters() if p.grad is not None), "not by a global norm"
