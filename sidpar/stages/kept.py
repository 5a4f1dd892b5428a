"""What a part of a cascade keeps from one forward to the next, and whether it allows overlapping forwards."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sidpar.cascade.cascade import TensorTuple
from sidpar.cascade.history import TOLERANCE, History
from sidpar.cascade.module_state import undone
from sidpar.cascade.snapshots import close

Forward = Callable[[TensorTuple], TensorTuple]


@dataclass(frozen=True)
class Kept:
    """What a part of the cascade keeps from one forward to the next, by the names of buffers, attributes and parameters
    within it."""

    names: Sequence[str] = ()
    written: Sequence[str] = ()
    """Everything that its forward changes in the module, also what does not depend on earlier forwards."""
    statistics: Sequence[str] = ()
    """The running statistics of torch's batch norm, which are not among `names`."""
    parameters: Sequence[str] = ()
    """The parameters that its forward writes into."""
    trained: Sequence[str] = ()
    """Those of these parameters that get gradients."""
    overlaps: bool = True
    """Whether another forward may come between a forward and its backward."""
    draws: bool = False
    """Whether it draws random numbers from the host's generators, besides those of the device."""

    def __or__(self, other: "Kept") -> "Kept":
        """What either of two trials has seen."""
        names = ("names", "written", "statistics", "parameters", "trained")
        both = {name: tuple(dict.fromkeys((*getattr(self, name), *getattr(other, name)))) for name in names}
        return Kept(**both, overlaps=self.overlaps and other.overlaps, draws=self.draws or other.draws)


def what_is_kept(module: nn.Module, tried: History, forward: Forward, given: TensorTuple, *, draws: bool) -> Kept:
    """What a trial has shown of a module.

    Args:
        tried: its forwards on `given`.
        draws: whether these drew from the host's generators.
    """
    statistics = {
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        if isinstance(part, _NormBase)
        for name, _ in part.named_buffers(recurse=False)
    }
    parameters = dict(module.named_parameters())
    return Kept(
        names=tuple(name for name in tried.kept if name not in statistics),
        statistics=tuple(name for name in tried.kept if name in statistics),
        written=tuple(tried.written),
        parameters=tuple(name for name in tried.written if name in parameters),
        trained=tuple(name for name in tried.written if name in parameters and parameters[name].requires_grad),
        overlaps=not tried.written or _overlaps(module, forward, given),
        draws=draws,
    )


def _overlaps(module: nn.Module, forward: Forward, given: TensorTuple) -> bool:
    """Whether the backward of a forward finds what it needs where one of other rows came between."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    others = tuple(tensor.flip(0) for tensor in given)
    with _gradients_apart(parameters):
        try:
            alone, between = (_gradients(module, parameters, forward, given, then) for then in ((), (others,)))
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            return False
    return all(map(partial(close, tolerance=TOLERANCE), between, alone))


@contextmanager
def _gradients_apart(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within, the parameters' own gradients are not touched, nor the user's hooks called, which may step an optimizer.
    The hooks are taken out of torch's own dictionaries: those are what it looks into."""
    own = [parameter.grad for parameter in parameters]
    places = [hooks for p in parameters for hooks in (p._backward_hooks, p._post_accumulate_grad_hooks) if hooks]
    hooks = [dict(place) for place in places]
    for place in places:
        place.clear()
    try:
        yield
    finally:
        for place, kept in zip(places, hooks, strict=True):
            place.update(kept)
        for parameter, gradient in zip(parameters, own, strict=True):
            parameter.grad = gradient


def _gradients(
    module: nn.Module,
    parameters: Sequence[nn.Parameter],
    forward: Forward,
    given: TensorTuple,
    then: Sequence[TensorTuple],
) -> list[Tensor]:
    """Of a forward, taken after others."""
    for p in parameters:
        p.grad = None
    with undone(module, parameters=True):
        outputs = [tensor for tensor in forward(given) if tensor.requires_grad]
        for tensors in then:
            forward(tensors)
        torch.autograd.backward(outputs, [torch.ones_like(tensor) for tensor in outputs])
    return [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
