"""A local rule of your own: the loss that every refiner learns by.

    python examples/own_rule.py
    torchrun --standalone --nproc_per_node=2 examples/own_rule.py

This one is SID with squared distances in place of KL divergences. For refiner i it is the mean over the batch of

    alpha * |p_i - p_y|^2 + (1 - alpha) * |p_i - p_{i-1}|^2.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sidpar

Tensors = tuple[Tensor, ...]


class SquaredDistance(sidpar.LocalRule):
    """Pulls each belief towards the label, and towards the belief before it."""

    name = "squared_distance"
    reads = ("alpha", "label_smoothing", "extractor_update")  # the settings of `sidpar.Objective` that have an effect

    def loss(self, i: int, features: Tensors, state: Tensors, following: Tensors, target: Tensor) -> Tensor:
        """The loss of each row, [B]. `state` is what refiner i was given, detached; `following` is what it returned.
        Both begin with a log-belief [B, C]; `target` holds the probabilities of the label [B, C]."""
        belief, teacher = following[0].exp(), state[0].exp()
        alpha = self.objective.alpha_of(i)
        to_target, to_teacher = (belief - target).square().sum(-1), (belief - teacher).square().sum(-1)
        return alpha * to_target + (1 - alpha) * to_teacher


class Refiner(nn.Module):
    """Features [B, 64] and a log-belief [B, 10] to new logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64 + 10, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        return self.layers(torch.cat([features, log_belief.exp()], dim=1))


digits = load_digits()
x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
with sidpar.Runtime.start() as runtime:
    torch.manual_seed(0)  # every rank builds the same cascade and draws the same batches
    cascade = sidpar.Cascade(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), [Refiner() for _ in range(4)], num_classes=10)
    stage = sidpar.Stage(cascade, runtime)
    engine = sidpar.ParallelEngine(stage, SquaredDistance(sidpar.Objective(alpha=0.5)), microbatches=4)
    optimizer = torch.optim.Adam(stage.parameters(), lr=1e-3)
    for _ in range(20):
        for rows in torch.randperm(1500).view(-1, 125):  # the last 297 images are for testing
            engine.step(x[rows], y[rows])
            optimizer.step()
    result = engine.evaluate(x[1500:], y[1500:])
    print(f"rank {runtime.rank}: refiners {list(result.refiners)}, accuracy {result.accuracy.tolist()}")
