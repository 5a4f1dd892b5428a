"""`two_phase` runs every refiner twice a batch; what a refiner keeps for itself moves once, as in one process."""

from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from sidpar import LocalEngine, Objective, ParallelEngine, Runtime, Stage
from sidpar.cascade.cascade import Cascade
from sidpar.engines.base import Engine
from sidpar.models.assembly import assemble
from sidpar.models.concat_refiner import ConcatRefiner
from tests import networks

SIZES = (4, 6, 8)


class Keeping(ConcatRefiner):
    """A refiner whose output depends on something that it keeps."""

    def __init__(self) -> None:
        super().__init__(4, [7], networks.CLASSES)

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        return super().forward(features, log_belief) * self.scale(features.detach())

    def scale(self, features: Tensor) -> Tensor:
        """What is kept moves on, and gives a factor."""
        raise NotImplementedError


class StartedAtTheFirstBatch(Keeping):
    mean: Tensor | None = None

    def scale(self, features: Tensor) -> Tensor:
        now = features.mean()
        self.mean = now if self.mean is None else 0.9 * self.mean + 0.1 * now
        return 1 + self.mean


class Maximum(Keeping):
    """One forward more with the same rows would not show."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("most", torch.zeros(()))

    def scale(self, features: Tensor) -> Tensor:
        self.most = torch.maximum(self.most, features.max())
        return 1 + self.most


class RareRows(Keeping):
    """Writes for some rows only, which the first batch need not have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def scale(self, features: Tensor) -> Tensor:
        if len(features) == SIZES[-1]:
            self.seen += features.abs().mean()
        return 1 + self.seen


class ZeroAtFirst(Keeping):
    """Moves a buffer that multiplies a weight of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))

    def scale(self, features: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(features.mean(), alpha=0.1)
        return 1 + self.weight * self.mean


class _Counter:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


class Slotted(Keeping):
    def __init__(self) -> None:
        super().__init__()
        self.counter = _Counter()

    def scale(self, features: Tensor) -> Tensor:
        self.counter.calls += 1
        return torch.as_tensor(1 + 0.1 * self.counter.calls)


class OldRandomState(Keeping):
    def __init__(self) -> None:
        super().__init__()
        self.noise = numpy.random.RandomState(3)

    def scale(self, features: Tensor) -> Tensor:
        return torch.as_tensor(1 + 0.1 * self.noise.rand())


class Spectral(Keeping):
    """Power iterations, in the buffers of a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = spectral_norm(nn.Linear(4, 1))

    def scale(self, features: Tensor) -> Tensor:
        scale: Tensor = self.layer(features)
        return 1 + scale


KINDS = (StartedAtTheFirstBatch, Maximum, RareRows, ZeroAtFirst, Slotted, OldRandomState, Spectral)


def trained(make: Callable[[Stage], Engine], kind: type[Keeping]) -> dict[str, Tensor]:
    """Weights and buffers after a step for each size of a batch."""
    cascade: Cascade = assemble(lambda: nn.Linear(networks.INPUTS, 4), kind, networks.CLASSES, 3, seed=1).double()
    stage = Stage(cascade, Runtime.single("cpu"))
    engine, optimizer = make(stage), torch.optim.SGD(stage.parameters(), lr=0.1)
    for size in SIZES:
        engine.step(*networks.batch(size))
        optimizer.step()
    return stage.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_refiner_keeps_moves_once_a_batch(kind: type[Keeping]) -> None:
    expected = trained(lambda stage: LocalEngine(stage, Objective()), kind)
    found = trained(lambda stage: ParallelEngine(stage, Objective(), schedule="two_phase"), kind)
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], rtol=1e-10, atol=1e-12), name
