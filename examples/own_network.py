"""A network of your own, trained by sidpar's command. In the project's folder:

    python -m sidpar.train --model.builder examples.own_network:build
    torchrun --standalone --nproc_per_node=2 -m sidpar.train --model.builder examples.own_network:build

`--model.builder` takes MODULE:FUNCTION. The function builds a cascade: an extractor that computes features once, and a
chain of refiners. Each refiner takes the features and the state of the refiner before it, and returns new logits. It
is trained by a loss of its own, so every rank can train its refiners at the same time as the other ranks.
"""

import torch
from torch import Tensor, nn

import sidpar


class Extractor(nn.Module):
    """Images [B, channels, H, W] to two features: means [B, width] and maxima of 4 x 4 regions [B, 16 * width]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.convolution(x)
        return maps.mean((2, 3)), nn.functional.adaptive_max_pool2d(maps, 4).flatten(1)


class Refiner(nn.Module):
    """Features and a state to a new state: logits [B, C], and a hidden activation [B, width] for the next refiner."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width + 16 * width + width + num_classes, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, features: tuple[Tensor, Tensor], state: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        means, maxima = features
        if isinstance(state, tuple):  # from the refiner before; its logits arrive normalised, as a log-belief
            log_belief, hidden = state
        else:  # the first refiner is given the uniform log-belief and nothing else
            log_belief, hidden = state, torch.zeros_like(means)
        hidden = self.enter(torch.cat([means, maxima, hidden, log_belief.exp()], dim=1)).relu()
        return self.head(hidden), hidden


def build(
    image_shape: tuple[int, int, int], num_classes: int, num_refiners: int, seed: int, width: int = 32
) -> sidpar.Cascade:
    """Called with the shape and the number of classes of the dataset; `--model.options.width 48` sets `width`.

    torch's generator is seeded before the call, so all ranks get the same initial weights without using `seed`.
    """
    refiners = [Refiner(width, num_classes) for _ in range(num_refiners)]
    return sidpar.Cascade(Extractor(image_shape[0], width), refiners, num_classes)
