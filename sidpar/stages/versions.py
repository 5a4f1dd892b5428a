"""Extractors as of a step: where an update may come between a batch's forward and its backward, each batch in flight
needs the weights that it began with."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sidpar.config.groups.compute import Compute
from sidpar.messages.gradients import GradientBuckets
from sidpar.messages.transport import Pending


class Version:
    """An extractor that features come from, and the gradients of the batches that they belong to."""

    def __init__(self, module: nn.Module, send: Callable[[Tensor], Pending] | None) -> None:
        """`send`: for `GradientBuckets`, where gradients are summed over ranks."""
        self.module = module
        self.parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self.buckets = GradientBuckets(self.parameters, send) if send is not None else None

    def open(self) -> None:
        """A batch begins: no gradients."""
        self.module.zero_grad()
        if self.buckets is not None:
            self.buckets.reset()


class Versions:
    """The S + 1 versions that batches in flight use in turn; the extractor itself is only updated and evaluated.

    A version has weights of its own, and the buffers of the extractor, so statistics count every batch once. That is
    exact (the gradient of a batch is taken at the weights that made its features) and costs S + 1 times the weights and
    gradients.

    Args:
        ahead: steps by which a version's weights are ahead of the extractor's, by continuing its last movement: where
            it is expected when the gradient is applied (SpecTrain, Chen et al. 2018). Costs its weights once more.
    """

    def __init__(
        self,
        extractor: nn.Module,
        count: int,
        send: Callable[[Tensor], Pending] | None,
        compute: Compute,
        *,
        ahead: int = 0,
    ) -> None:
        self._extractor = extractor
        self._ahead = ahead
        self.movement = list[Tensor]()
        """Of the last update; empty before the first, and where nothing is predicted."""
        self._parameters: list[Tensor] = [p for p in extractor.parameters() if p.requires_grad]
        self._versions = [Version(_copy(extractor, compute), send) for _ in range(count)]

    @property
    def present(self) -> list[Tensor]:
        """The extractor's own weights, those that are trained."""
        return self._parameters

    @property
    def expected(self) -> list[Tensor]:
        """The weights that a batch would begin with now."""
        if not self.movement:
            return self._parameters
        with torch.no_grad():
            return list(torch._foreach_add(self._parameters, self.movement, alpha=self._ahead))

    @torch.no_grad()
    def open(self, step: int, weights: list[Tensor] | None = None) -> Version:
        """For the batch of `step`: the weights expected at this moment, or those given."""
        version = self.of(step)
        torch._foreach_copy_(version.parameters, self.expected if weights is None else weights)
        version.open()
        return version

    def hand_over(self, step: int) -> None:
        """The gradients of the batch of `step` become those of the extractor."""
        for parameter, gradient in zip(self._parameters, self.of(step).parameters, strict=True):
            parameter.grad = gradient.grad

    @contextmanager
    def updating(self, step: int) -> Iterator[None]:
        """Within, the extractor has the gradients of the batch of `step`, to be updated by them."""
        before = [weight.detach().clone() for weight in self._parameters] if self._ahead else []
        self.hand_over(step)
        yield
        if self._ahead:
            self.movement = [now.detach() - old for now, old in zip(self._parameters, before, strict=True)]

    def resume(self, movement: list[Tensor]) -> None:
        """Predict from this movement, if at all."""
        if self._ahead:
            self.movement = movement

    @property
    def weights(self) -> list[Tensor]:
        """Of all versions."""
        return [parameter for version in self._versions for parameter in version.parameters]

    def of(self, step: int) -> Version:
        """The version that the batch of `step` uses."""
        return self._versions[step % len(self._versions)]


def _copy(extractor: nn.Module, compute: Compute) -> nn.Module:
    shared: dict[int, object] = {id(buffer): buffer for buffer in extractor.buffers()}
    duplicate = copy.deepcopy(extractor, shared)
    if compute.compile:
        duplicate.compile()  # a copy of a compiled module is not compiled
    return duplicate
