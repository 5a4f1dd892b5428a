"""Costs are measured where placement by cost needs them."""

import torch

from sidpar.calibration.pieces import measure_costs
from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.compute import Compute
from sidpar.models.concat_refiner import ConcatRefiner
from tests import networks


def test_a_heavy_refiner_costs_more_and_nothing_is_left_behind() -> None:
    refiners = [ConcatRefiner(4, [8], 3), ConcatRefiner(4, [2048, 2048], 3), ConcatRefiner(4, [8], 3)]
    cascade = Cascade(networks.noisy(1).extractor.float(), refiners, 3)
    before = {name: tensor.clone() for name, tensor in cascade.state_dict().items()}
    costs = measure_costs(cascade, torch.randn(64, networks.INPUTS), Compute(), rows=[16, 64], apart=True)
    assert len(costs.layers) == len(list(cascade.extractor.children()))
    assert all(seconds > 0 for layer in costs.layers for seconds in layer.forward.seconds)
    light, heavy, other = (piece.forward(64) + piece.backward(64) for piece in costs.refiners)
    assert heavy > 3 * max(light, other)
    assert costs.refiners[1].forward.rows == (16, 64)
    assert all(torch.equal(tensor, before[name]) for name, tensor in cascade.state_dict().items())
    assert all(parameter.grad is None for parameter in cascade.parameters())
    assert cascade.training


def test_sizes_are_counted() -> None:
    """Features [B, 4], beliefs [B, 3], float64; a refiner saves its two inputs (joined), and what its layers need."""
    cascade = networks.plain(2)
    costs = measure_costs(cascade, networks.batch(8)[0], Compute(), apart=True)
    assert costs.feature_bytes == 8 * 4
    assert costs.state_bytes == [8 * 3] * 3
    assert costs.layer_bytes == [8 * 6, 8 * 6, 8 * 4]
    assert costs.input_bytes == 8 * 5
    assert costs.extractor_parameter_bytes == 8 * (5 * 6 + 6 + 6 * 4 + 4)
    assert [piece.trained_bytes for piece in costs.refiners] == [8 * (7 * 7 + 7 + 7 * 3 + 3)] * 2
    assert [layer.saved_bytes for layer in costs.layers] == [0, 8 * 6, 0], "the images, tanh's output, and that again"
    # Of each row: exp of the belief [3], the joined input [7], the ReLU's output [7], log_softmax's [3].
    assert costs.refiners[0].saved_bytes == costs.refiners[1].saved_bytes - 8 * 3 == 8 * (7 + 7 + 3)
