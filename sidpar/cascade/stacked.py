"""Refiners of one shape, run as one batched computation.

A refiner's local problem depends on the other refiners only through the state that it receives. So once the
gradient-free chain has produced the states of n refiners, their n forwards are one batched forward, and their n
backwards are one batched backward: as many kernels as one refiner needs. The price is the chain's own forwards, and
the activations of n refiners at a time.

Letters: k is a refiner's place among the n stacked ones, b the rows of a microbatch.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sidpar.cascade.cascade import TensorTuple, detach, refine
from sidpar.cascade.duplicate import duplicate
from sidpar.cascade.inputs import Tensors
from sidpar.cascade.stackable import check_results, check_states, check_structure
from sidpar.errors import UsageError


class StackedRefiners:
    """n refiners of equal structure whose parameters live in stacked storage, one tensor [n, *shape] per name.

    The parameters of each refiner keep their identity and names, and become views of the stacked storage. So
    optimizers, checkpoints and the refiners' own forwards see and change the same values. A backward through `forward`
    leaves the rows of one stacked gradient in the parameters' `.grad`, or adds them to what is there; hooks on a single
    refiner's parameters are not called.

    Build it once the refiners are on their device: moving or converting them afterwards takes them out of the stacked
    storage, and `forward` then refuses.

    Args:
        refiners: in cascade order, equal in everything but the values of their parameters and buffers.
        first: the number of the first of them in the cascade, for error messages.
        feature_gradients: for each refiner, whether it sends a gradient to the features; by default all do.
        compile: run the batched function through torch.compile.

    Raises UsageError naming the first refiner that differs, or that shares a parameter or buffer with another.
    """

    def __init__(
        self,
        refiners: Iterable[nn.Module],
        *,
        first: int = 0,
        feature_gradients: Sequence[bool] | None = None,
        compile: bool = False,
    ) -> None:
        self._refiners = list(refiners)
        self._first = first
        self._feature_gradients = [True] * len(self._refiners) if feature_gradients is None else list(feature_gradients)
        assert len(self._feature_gradients) == len(self._refiners) > 0
        check_structure(self._refiners, first)
        self._template = _template(self._refiners[0])
        self._modules = list(zip(self._template.modules(), self._refiners[0].modules(), strict=True))
        self._places: list[_Place] = []
        self.parameters: dict[str, Tensor] = {}
        """Stacked, [n, *shape], by the names that they have in a refiner."""
        self.buffers: dict[str, Tensor] = {}
        """The same for buffers."""
        for name, _ in self._refiners[0].named_parameters():
            own = [refiner.get_parameter(name) for refiner in self._refiners]
            self.parameters[name] = self._move(name, own)
            if own[0].requires_grad:
                stacked = self.parameters[name].requires_grad_()
                stacked.register_post_accumulate_grad_hook(partial(_hand_over, own))  # type: ignore[no-untyped-call]
        for name, _ in self._refiners[0].named_buffers():
            self.buffers[name] = self._move(name, [refiner.get_buffer(name) for refiner in self._refiners])
        self._run = torch.compile(_run) if compile else _run
        self._tried: set[tuple[bool, ...]] = set()

    def forward(self, features: TensorTuple, states: Sequence[TensorTuple]) -> TensorTuple:
        """All refiners at once: features [b, ...], and the state that each refiner receives, n tuples of [b, ...].

        Returns the n next states stacked: log-beliefs [n, b, C] (or [n, b, T, C]) and hidden activations [n, b, ...].
        The caller's autocast holds. The first call in each training mode compares all refiners, on a few rows, with
        themselves run one by one. Raises UsageError if a refiner then draws random numbers, writes buffers or gives
        another result, and whenever refiners receive states of different shapes.
        """
        for place in self._places:
            place.check()
        check_states(states, self._first)
        for part, own in self._modules:
            part.training = own.training
        mode = tuple(own.training for _, own in self._modules)
        if mode not in self._tried:
            check_results(self._refiners, self._probe, features, states, self._first)
            self._tried.add(mode)
        features_dim = None
        if not any(self._feature_gradients):
            features = detach(features)
        elif not all(self._feature_gradients):
            rows = [features if sends else detach(features) for sends in self._feature_gradients]
            features, features_dim = _stack(rows), 0
        return self._run(self._template, self.parameters, self.buffers, features, _stack(states), features_dim)

    def _probe(self, features: TensorTuple, states: Sequence[TensorTuple]) -> TensorTuple:
        """The same, never compiled: a probe has few rows, and compiling for them would be waste."""
        return _run(self._template, self.parameters, self.buffers, features, _stack(states), None)

    def _move(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """The tensors' numbers in one storage, of which they become views."""
        stacked = torch.stack([tensor.detach() for tensor in tensors])
        for k, (refiner, tensor, row) in enumerate(zip(self._refiners, tensors, stacked.unbind(), strict=True)):
            tensor.data = row
            self._places.append(_Place(refiner, name, f"refiner {self._first + k}"))
        return stacked


class _Place:
    """Where a parameter or buffer of a refiner lies."""

    def __init__(self, refiner: nn.Module, name: str, owner: str) -> None:
        path, _, self._leaf = name.rpartition(".")
        self._module = refiner.get_submodule(path)
        self._address = getattr(self._module, self._leaf).data_ptr()
        self._name = f"{name} of {owner}"

    def check(self) -> None:
        """Raises UsageError if it has moved: training would go on with values that nothing else sees."""
        if getattr(self._module, self._leaf).data_ptr() != self._address:
            raise UsageError(
                f"{self._name} was moved, converted or replaced after the refiners were stacked: do it before"
            )


class _Linear(nn.Linear):
    """The same products, written so that vmap makes as little of them as a loop does.

    Of an nn.Linear, vmap computes the gradient of the transposed weight, and autograd then copies it into the weight's
    layout: for wide layers and few rows that copy takes nearly as long as all the products. And under autocast it adds
    the bias in fp32, so that all activations that follow take twice the memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight, self.bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = weight @ x.reshape(-1, x.shape[-1]).t()
    if bias is not None:
        product += bias.unsqueeze(1)  # in place, which keeps the product's dtype
    return product.t().reshape(*x.shape[:-1], product.shape[0])


def _template(refiner: nn.Module) -> nn.Module:
    """The refiner's code without its numbers. A copy, since the refiner itself may be compiled."""
    memo: dict[int, object] = {id(b): b.to("meta") for b in refiner.buffers()}
    memo |= {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in refiner.parameters()}
    template = duplicate(refiner, memo)
    for module in template.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear
    return template


def _run(
    template: nn.Module,
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
    features: TensorTuple,
    states: TensorTuple,
    features_dim: int | None,
) -> TensorTuple:
    """All n refiners. `features_dim` is None for features [b, ...] that all of them share, whose gradients are summed,
    and 0 for features [n, b, ...]."""

    def one(
        parameters: dict[str, Tensor], buffers: dict[str, Tensor], features: TensorTuple, state: TensorTuple
    ) -> TensorTuple:
        refiner: Callable[..., Tensors] = partial(_call, template, parameters | buffers)
        return refine(refiner, features, state)

    outputs: TensorTuple = vmap(one, in_dims=(0, 0, features_dim, 0))(parameters, buffers, features, states)
    return outputs


def _call(template: nn.Module, tensors: dict[str, Tensor], *arguments: Tensors) -> Tensors:
    output: Tensors = functional_call(template, tensors, arguments)
    return output


def _stack(rows: Sequence[TensorTuple]) -> TensorTuple:
    return tuple(torch.stack(tensors) for tensors in zip(*rows, strict=True))


def _hand_over(parameters: list[nn.Parameter], stacked: Tensor) -> None:
    """After a backward: the rows of the stacked gradient become the parameters' own, or are added to these.

    It is not added to one stacked gradient that is kept instead: to fill that with zeros and to add to it would write
    and read all of it three times more in each step, while a fresh one is handed over as it is.
    """
    assert stacked.grad is not None
    rows = stacked.grad.unbind()
    stacked.grad = None
    present = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if len(present) == len(parameters):
        torch._foreach_add_(present, rows)
        return
    for parameter, row in zip(parameters, rows, strict=True):
        parameter.grad = row if parameter.grad is None else parameter.grad + row
