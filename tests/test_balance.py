"""Costs are measured where placement by cost needs them."""

import torch

from sidpar.balance import measure_costs
from sidpar.cascade import Cascade
from sidpar.compute import Compute
from sidpar.models import ConcatRefiner
from tests import networks


def test_a_heavy_refiner_costs_more_and_nothing_is_left_behind() -> None:
    refiners = [ConcatRefiner(4, [8], 3), ConcatRefiner(4, [2048, 2048], 3), ConcatRefiner(4, [8], 3)]
    cascade = Cascade(networks.noisy(1).extractor.float(), refiners, 3)
    before = {name: tensor.clone() for name, tensor in cascade.state_dict().items()}
    costs = measure_costs(cascade, torch.randn(64, networks.INPUTS), Compute())
    assert costs.extractor > 0
    assert costs.refiners[1] > 3 * max(costs.refiners[0], costs.refiners[2])
    assert all(torch.equal(tensor, before[name]) for name, tensor in cascade.state_dict().items())
    assert all(parameter.grad is None for parameter in cascade.parameters())
    assert cascade.training
