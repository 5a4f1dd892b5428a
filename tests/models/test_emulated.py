"""The cascade that sleeps: stated times, real gradients, a backward that can be split. Nobody sleeps in these tests."""

from itertools import pairwise

import pytest
import torch

from sidpar import LocalEngine, Objective, Runtime, Stage
from sidpar.models.emulated import SleepingLinear, emulated
from sidpar.models.residual_block import equal_cost


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the modules would have slept, one entry per sleep."""
    naps: list[float] = []
    monkeypatch.setattr("sidpar.models.emulated.time.sleep", naps.append)
    return naps


def test_times_are_as_stated(slept: list[float]) -> None:
    """Ten rows of 2 ms: 20 ms, and 40 ms for the backward, half towards the input and half towards the weights."""
    layer, x = SleepingLinear(4, 4, 0.002), torch.randn(10, 4, requires_grad=True)
    layer(x).sum().backward()
    assert slept == pytest.approx([0.02, 0.02, 0.02])
    slept.clear()
    with torch.no_grad():
        layer(x[:5])
    assert slept == pytest.approx([0.01])


@pytest.mark.parametrize("towards", ["input", "weights"])
def test_each_half_of_the_backward_can_be_had_alone(towards: str, slept: list[float]) -> None:
    layer, x = SleepingLinear(4, 4, 0.002), torch.randn(10, 4, requires_grad=True)
    output = layer(x).sum()
    slept.clear()
    torch.autograd.grad(output, x if towards == "input" else layer.linear.weight)
    assert slept == pytest.approx([0.02])


def test_a_first_layer_takes_its_whole_backward_for_the_weights(slept: list[float]) -> None:
    layer = SleepingLinear(4, 4, 0.002)
    layer(torch.randn(10, 4)).sum().backward()
    assert slept == pytest.approx([0.02, 0.04])


def test_it_learns() -> None:
    cascade = emulated(3, refiner_seconds=0.0, extractor_seconds=0.0)
    stage = Stage(cascade, Runtime.single("cpu"))
    engine = LocalEngine(stage, Objective())
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.5)
    x, y = torch.randn(64, 32), torch.randint(0, 10, (64,))
    losses = []
    for _ in range(20):
        losses.append(engine.step(x, y).loss[-1].item())
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("width", "hidden"), [(128, [256]), (1024, [1024, 1024]), (64, [32, 32, 32])])
def test_plain_blocks_cost_what_refiners_do(width: int, hidden: list[int]) -> None:
    """Multiplications per sample, within 2 percent."""
    sizes = [10 + width, *hidden, 10]
    refiner = sum(a * b for a, b in pairwise(sizes))
    block = [width, *equal_cost(width, hidden, 10), width]
    assert sum(a * b for a, b in pairwise(block)) == pytest.approx(refiner, rel=0.02)
