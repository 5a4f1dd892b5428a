"""The inputs of modules, which some modules write into: `log_belief.exp_()`, `hidden += ...`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from sidpar.cascade.reads import Absent
from sidpar.errors import UsageError

Tensors = Tensor | tuple[Tensor, ...]
"""What modules take and return: a tensor or a tuple of tensors, each with the batch as its first dimension."""


class Inputs:
    """Calls modules with tensors that others read too, as if each had a copy of its own.

    Only modules that write into their inputs get one. The first call of each module in each mode gets a copy, and shows
    whether it writes; from then on, torch's version counters of the tensors tell.
    """

    def __init__(self) -> None:
        self._writes: dict[tuple[nn.Module, bool, bool], bool] = {}

    def of(self, name: str, module: nn.Module) -> Callable[..., Tensors]:
        """The module, to be called with tensors and tuples of tensors. `name` is its name in messages.

        The call raises UsageError if the module writes into them although it did not in its first call.
        """
        return partial(self._call, name, module)

    @contextmanager
    def unlearned(self) -> Iterator[None]:
        """Calls inside do not count as a module's first call, since their inputs may not be typical."""
        writes = dict(self._writes)
        try:
            yield
        finally:
            self._writes = writes

    def written_by(self, module: nn.Module) -> bool:
        """Whether it has been seen to write into its inputs, in any mode."""
        return any(writes for (known, *_), writes in self._writes.items() if known is module)

    def _call(self, name: str, module: nn.Module, *given: Tensors) -> Tensors:
        if torch.compiler.is_compiling() or not _watchable(given):
            return _call(module, _copies(given))
        key = (module, module.training, torch.is_grad_enabled())
        writes = self._writes.get(key)
        if writes:
            return _call(module, _copies(given))
        if writes is None:
            copies = _copies(given)
            before = _counts(copies)
            result = _call(module, copies)
            # Some writes are not counted (`x.data.mul_(2)`, `x.numpy()[0] = 1`), but seen in the numbers.
            self._writes[key] = _counts(copies) != before or not all(map(_equal, _flat(copies), _flat(given)))
            return result
        before = _counts(given)
        try:
            result = _call(module, given)
        except RuntimeError as error:
            if "in-place operation" in str(error):  # autograd refuses writes into the beginning of a graph
                raise UsageError(_late(name)) from error
            raise
        if _counts(given) != before:
            raise UsageError(_late(name))
        return result


def _call(module: nn.Module, given: tuple[Tensors, ...]) -> Tensors:
    result: Tensors = module(*given)
    return result


def _flat(given: tuple[Tensors, ...]) -> list[Tensor]:
    """All that are here: of a feature that has not been sent, nothing can be read, and nothing written."""
    found = [tensor for tensors in given for tensor in ((tensors,) if isinstance(tensors, Tensor) else tensors)]
    return [tensor for tensor in found if not isinstance(tensor, Absent)]


def _copies(given: tuple[Tensors, ...]) -> tuple[Tensors, ...]:
    return tuple(_copy(tensors) if isinstance(tensors, Tensor) else tuple(map(_copy, tensors)) for tensors in given)


def _copy(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, Absent) else tensor.clone()


def _watchable(given: tuple[Tensors, ...]) -> bool:
    """Whether it can be seen who writes into these: not in inference mode, where writes are not counted; not under
    `torch.func`, nor while torch traces (and leaves out the copies that nobody needs), where numbers cannot be read."""
    if torch.is_inference_mode_enabled() or _get_current_dispatch_mode() is not None:
        return False
    return not any(tensor.is_inference() or is_functorch_wrapped_tensor(tensor) for tensor in _flat(given))


def _counts(given: tuple[Tensors, ...]) -> list[int]:
    return [tensor._version for tensor in _flat(given)]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.is_meta or torch.equal(one, other)


def _late(name: str) -> str:
    return (
        f"{name} writes into what it is given, which it did not in its first forward, and which others read too: let "
        "its forward clone() its inputs before it writes"
    )
