"""A cut network without heads but the last, and with nothing detached, is the network, bit for bit: every family."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sidpar import BPEngine, Objective, Stage, cut_backbone
from sidpar.schedules.placement import Copies
from tests.harness import alone
from tests.models.cutting.families import FAMILIES, batch, built, cuts, end_to_end, of_the_network
from tests.oracle import TOLERANCE


def passed(network: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits; gradients and buffers by name."""
    network.zero_grad()
    torch.manual_seed(3)
    logits = forward(x)
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=x.dtype).view_as(logits)).sum().backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    return logits.detach(), found | {name: buffer.clone() for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("cut", [0, 1], ids=["chosen points", "given points"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_network_is_the_network(name: str, cut: int) -> None:
    """Outputs, gradients and running statistics, in training (with dropout and stochastic depth) and in evaluation."""
    x, _ = batch(name)
    whole, cascade = built(name, 0.2), cut_backbone(built(name, 0.2), belief="none", **cuts(name)[cut])
    for training in (True, False):
        logits, expected = passed(whole.train(training), whole, x)
        found_logits, found = passed(cascade.train(training), lambda x: end_to_end(cascade, x), x)
        assert torch.equal(found_logits, logits)
        own = of_the_network(found)
        assert own.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(own[key], value), key


@pytest.mark.parametrize("name", FAMILIES)
def test_cutting_changes_nothing_of_a_network(name: str) -> None:
    """Neither weights and statistics nor modes nor attributes nor the user's random numbers."""
    network = built(name, 0.2).eval()
    list(network.modules())[-1].train()
    modes = [module.training for module in network.modules()]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    attributes, generator = set(vars(network)), torch.get_rng_state()
    cut_backbone(network, head=lambda shape, classes: Zero(classes), **cuts(name)[0])
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert set(vars(network)) == attributes


class Zero(nn.Module):
    """A head that draws no initial weights."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self._num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self._num_classes)


@pytest.mark.parametrize("name", FAMILIES)
def test_backpropagation_trains_it_as_the_network(name: str) -> None:
    """method=bp, whose gradients pass all cuts, against a plain loop."""
    x, y = batch(name)
    whole, cascade = built(name, 0.0), cut_backbone(built(name, 0.0), belief="none", **cuts(name)[0])
    nn.functional.cross_entropy(whole(x), y).backward()
    stage = Stage(cascade, alone(), placement=Copies(len(cascade.refiners), 1))
    BPEngine(stage, Objective()).step(x, y)
    found = of_the_network({key: parameter.grad for key, parameter in stage.named_parameters()})
    expected = {key: parameter.grad for key, parameter in whole.named_parameters()}
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert gradient is not None
        assert (found[key] - gradient).abs().max() < TOLERANCE, key
