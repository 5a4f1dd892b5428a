"""The paper's processing module, at any size."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class ConcatRefiner(nn.Module):
    """concat(belief, features) -> [Linear -> ReLU] per hidden size -> Linear C: logits [B, C]."""

    def __init__(self, feature_width: int, hidden: Sequence[int], num_classes: int) -> None:
        super().__init__()
        sizes = [num_classes + feature_width, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        logits: Tensor = self.layers(torch.cat([log_belief.exp(), features], dim=-1))
        return logits
