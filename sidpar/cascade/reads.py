"""Which features a refiner reads, and what takes the place of those that it does not.

A rank whose refiners do not read a feature is not sent it. They are still called with as many features as ever: with
its shape, without its numbers.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sidpar.errors import UsageError

TensorTuple = tuple[Tensor, ...]

_SHAPE_ONLY = frozenset(
    {
        Tensor.size,
        Tensor.dim,
        Tensor.numel,
        Tensor.stride,
        Tensor.__len__,
        Tensor.is_floating_point,
        Tensor.is_complex,
        Tensor.is_contiguous,
        Tensor.is_inference,
        Tensor.new_empty,
        Tensor.new_zeros,
        Tensor.new_ones,
        Tensor.new_full,
        torch.empty_like,
        torch.zeros_like,
        torch.ones_like,
        torch.full_like,
        torch.is_floating_point,
        torch.is_complex,
        *(
            getattr(Tensor, name).__get__
            for name in (
                "shape",
                "ndim",
                "dtype",
                "device",
                "layout",
                "requires_grad",
                "is_leaf",
                "is_meta",
                "is_nested",
            )
        ),
    }
)
"""What may be asked of a tensor without reading its numbers."""


class _Marked(Tensor):
    """A tensor all of whose uses are seen."""

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        return tensor.detach().as_subclass(cls)

    def used(self) -> None:
        """Its numbers are about to be read."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = (args, dict(kwargs or {}))
        if func not in _SHAPE_ONLY:
            for value in pytree.tree_leaves(given):
                if isinstance(value, _Marked):
                    value.used()
        with torch._C.DisableTorchFunctionSubclass():
            plain_args, plain_kwargs = pytree.tree_map_only(_Marked, _plain, given)
            return func(*plain_args, **plain_kwargs)


def _plain(marked: Tensor) -> Tensor:
    return marked.as_subclass(Tensor)


class _Watched(_Marked):
    """Tells whether its numbers have been read."""

    was_read = False

    def used(self) -> None:
        self.was_read = True


class Absent(_Marked):
    """A feature that has not been sent here: its shape, without its numbers.

    Raises UsageError for whatever would read them.
    """

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]  # torch's is untyped
        return f"Absent({list(self.shape)}, {self.dtype})"

    @classmethod
    def like(cls, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Self:
        """One that takes no memory."""
        return cls.of(torch.zeros((), dtype=dtype, device=device).expand(*shape))

    def used(self) -> None:
        raise UsageError(
            "a refiner of this rank, a hook on it, or the rule reads a feature that none of them read when the shapes "
            "were inferred, so it has not been sent to this rank: let each forward read the same features, set "
            "loss_reads_features of a rule of your own, or use extractor=replicated, where nothing is sent"
        )


def rows_of(feature: Tensor, rows: slice) -> Tensor:
    """Some rows of a feature, sent or not."""
    return Absent.of(feature.as_subclass(Tensor)[rows]) if isinstance(feature, Absent) else feature[rows]


class _Transforms(TorchFunctionMode):
    """Tells whether a transform of torch.func was under way: it wraps tensors, and then their uses are not seen."""

    seen = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        self.seen |= torch._C._functorch.maybe_current_level() is not None
        return func(*args, **(kwargs or {}))


def watch(features: Sequence[Tensor], call: Callable[[TensorTuple], TensorTuple]) -> list[bool] | None:
    """Of each feature, whether `call` reads it, returns it, or keeps it; None if that cannot be seen."""
    watched = tuple(map(_Watched.of, features))
    with _Transforms() as transforms:
        returned = set(map(id, call(watched)))
    if transforms.seen:
        return None
    found = [feature.was_read or id(feature) in returned for feature in watched]
    alive = [weakref.ref(feature) for feature in watched]
    del watched
    return [read or feature() is not None for read, feature in zip(found, alive, strict=True)]


@torch.no_grad()
def find_reads(
    refiners: Iterable[nn.Module],
    refine: Callable[..., TensorTuple],
    features: TensorTuple,
    *states: TensorTuple,
) -> tuple[frozenset[int], ...] | None:
    """Of each feature, the refiners that read it in training or in evaluation mode; `states[i]` is what refiner i
    receives. None where that is not found out: a module need not take tensors of another class."""
    readers: list[set[int]] = [set() for _ in features]
    for i, (refiner, state) in enumerate(zip(refiners, states, strict=True)):
        modes = {module: module.training for module in refiner.modules()}
        try:
            for training in (True, False):
                refiner.train(training)
                read = watch(features, partial(refine, refiner, state=state))
                if read is None:
                    return None
                for feature in range(len(features)):
                    readers[feature] |= {i} if read[feature] else set()
        except Exception:
            return None
        finally:
            for module, training in modes.items():
                module.training = training
    return tuple(map(frozenset, readers))
