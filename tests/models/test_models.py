"""The networks that ship with sidpar."""

import torch
from torch import nn

from sidpar.models.simple_cnn import simple_cnn
from sidpar.models.wide_mlp import wide_mlp


def test_simple_cnn_is_the_papers() -> None:
    """Appendix B.1.2, table 2, counted by hand for CIFAR-10."""
    cascade = simple_cnn((3, 32, 32), 10, 4)
    convolutions = (3 * 9 + 1) * 32 + (32 * 9 + 1) * 64 + (64 * 9 + 1) * 128 + (128 * 9 + 1) * 128
    assert sum(p.numel() for p in cascade.extractor.parameters()) == convolutions + (128 + 1) * 128
    for refiner in cascade.refiners:
        assert sum(p.numel() for p in refiner.parameters()) == (128 + 10 + 1) * 256 + (256 + 1) * 10
    kinds = [type(layer) for layer in cascade.extractor.children()]
    block = [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    assert kinds == [*block, *block, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]


def test_any_image_size_and_channel_count() -> None:
    for shape in ((1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)):
        for cascade in (simple_cnn(shape, 7, 2), wide_mlp(shape, 7, 2, width=16)):
            assert cascade(torch.zeros(2, *shape)).shape == (2, 7)


def test_weights_depend_on_seed_and_index_alone() -> None:
    """Not on how many refiners there are, nor on the global generator."""
    short, torch_state = simple_cnn((1, 8, 8), 10, 3, seed=5), torch.get_rng_state()
    torch.rand(17)
    long = simple_cnn((1, 8, 8), 10, 6, seed=5)
    for name, tensor in short.state_dict().items():
        assert torch.equal(tensor, long.state_dict()[name]), name
    first, second = (refiner.layers[0].weight for refiner in list(long.refiners)[:2])
    assert not torch.equal(first, second), "refiners differ from each other"
    assert not torch.equal(simple_cnn((1, 8, 8), 10, 1, seed=6).refiners[0].layers[0].weight, first)
    torch.set_rng_state(torch_state)
    simple_cnn((1, 8, 8), 10, 1)
    assert torch.equal(torch.get_rng_state(), torch_state), "building does not disturb the user's generator"


def test_wide_mlp_widths() -> None:
    cascade = wide_mlp((1, 8, 8), 10, 2, width=32, depth=3)
    shapes = [tuple(p.shape) for p in cascade.refiners[0].parameters() if p.dim() == 2]
    assert shapes == [(32, 42), (32, 32), (32, 32), (10, 32)]
