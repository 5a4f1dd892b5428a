"""Versions of the extractor's weights: where an update may come between a batch's forward and its backward, each batch
in flight needs the weights that it began with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from sidpar.messages.gradients import GradientBuckets
from sidpar.messages.wire import Pending

Send = Callable[[Tensor], Pending]


class Version:
    """One version of the extractor's weights, and the gradients of the batch that uses it.

    The module itself, its hooks and its buffers are the user's. While a version is in use, its weights and gradients
    are put into the module's parameters.

    Args:
        parameters: those of the extractor that are trained.
        weights: one for each; None for those that the parameters have.
        send: for `GradientBuckets`, where gradients are summed over ranks.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], weights: Sequence[Tensor] | None, send: Send | None) -> None:
        self.weights = weights
        self._parameters = parameters
        self.buckets = GradientBuckets(parameters, send) if send is not None else None
        self.gradients: Sequence[Tensor | None] = []
        """Of a version with weights of its own."""
        self._counts: list[int] = []

    @classmethod
    def as_it_is(cls) -> Self:
        """For inference, and where nothing of the extractor is trained: what its parameters are."""
        return cls([], None, None)

    def open(self) -> None:
        """Remove all gradients at the start of a batch."""
        if self.buckets is not None:
            self.buckets.reset()
        if self.weights is not None:
            self.gradients = [None] * len(self._parameters) if self.buckets is None else self.buckets.gradients
            self._counts = [parameter._version for parameter in self._parameters]
        elif self.buckets is not None:
            self.buckets.attach()
        else:
            for parameter in self._parameters:
                parameter.grad = None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, the extractor has these weights, and its gradients are collected here."""
        if self.weights is None:
            yield
            return
        own = [(parameter.data, parameter.grad) for parameter in self._parameters]
        with self._uncounted():
            for parameter, weight, gradient in zip(self._parameters, self.weights, self.gradients, strict=True):
                parameter.data, parameter.grad = weight, gradient
            try:
                yield
            finally:
                self.gradients = [parameter.grad for parameter in self._parameters]
                for parameter, (weight, gradient) in zip(self._parameters, own, strict=True):
                    parameter.data, parameter.grad = weight, gradient

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """Autograd refuses to go back through weights that were written since the forward, by torch's count of writes.
        But what updates write are the parameters' own weights, never those of a version in flight: within, the count
        is what it was when the batch began."""
        counts = [parameter._version for parameter in self._parameters]
        torch._C._autograd._unsafe_set_version_counter(tuple(self._parameters), tuple(self._counts))
        try:
            yield
        finally:
            torch._C._autograd._unsafe_set_version_counter(tuple(self._parameters), tuple(counts))


class Versions:
    """The S + 1 versions that batches in flight use in turn; the extractor's own weights are only updated and
    evaluated.

    That is exact (the gradient of a batch is taken at the weights that made its features) and costs S + 1 times the
    weights and gradients. Buffers there are once, so statistics count every batch once.

    Args:
        ahead: steps by which a version's weights are ahead of the extractor's, by continuing its last movement: where
            it is expected when the gradient is applied (SpecTrain, Chen et al. 2018). Costs its weights once more.
    """

    def __init__(self, extractor: nn.Module, count: int, send: Send | None, *, ahead: int = 0) -> None:
        self._ahead = ahead
        self.movement = list[Tensor]()
        """Of the last update; empty before the first, and where nothing is predicted."""
        self._parameters = trained(extractor)
        self._versions = [
            Version(self._parameters, [p.detach().clone() for p in self._parameters], send) for _ in range(count)
        ]

    @property
    def present(self) -> Sequence[Tensor]:
        """The extractor's own weights, those that are trained."""
        return self._parameters

    @property
    def expected(self) -> Sequence[Tensor]:
        """The weights that a batch would begin with now."""
        if not self.movement:
            return self._parameters
        with torch.no_grad():
            return list(torch._foreach_add(list[Tensor](self._parameters), self.movement, alpha=self._ahead))

    @torch.no_grad()
    def open(self, step: int, weights: Sequence[Tensor] | None = None) -> Version:
        """For the batch of `step`: the weights expected at this moment, or those given."""
        version = self.of(step)
        assert version.weights is not None
        torch._foreach_copy_(list(version.weights), list(self.expected if weights is None else weights))
        version.open()
        return version

    def hand_over(self, step: int) -> None:
        """The gradients of the batch of `step` become those of the extractor."""
        for parameter, gradient in zip(self._parameters, self.of(step).gradients, strict=True):
            parameter.grad = gradient

    @contextmanager
    def updating(self, step: int) -> Iterator[None]:
        """Within, the extractor has the gradients of the batch of `step`, to be updated by them."""
        before = self._copies() if self._ahead else []
        self.hand_over(step)
        yield
        if self._ahead:
            self.movement = self._movement_since(before)

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Within, versions are opened as they are after an update, though there was none."""
        movement = self.movement
        if self._ahead:
            self.movement = self._movement_since(self._copies())
        try:
            yield
        finally:
            self.movement = movement

    def _copies(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self._parameters]

    def _movement_since(self, before: Sequence[Tensor]) -> list[Tensor]:
        return [now.detach() - old for now, old in zip(self._parameters, before, strict=True)]

    def resume(self, movement: list[Tensor]) -> None:
        """Predict from this movement, if at all."""
        if self._ahead:
            self.movement = movement

    @property
    def weights(self) -> list[Tensor]:
        """Of all versions."""
        return [weight for version in self._versions for weight in version.weights or ()]

    def of(self, step: int) -> Version:
        """The version that the batch of `step` uses."""
        return self._versions[step % len(self._versions)]


def trained(module: nn.Module) -> list[nn.Parameter]:
    """Its parameters that get gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
