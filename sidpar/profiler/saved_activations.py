"""The tensors that autograd keeps for backwards, counted exactly."""

import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor


class SavedTensors:
    """Counts the bytes of the tensors that autograd keeps for backwards, now and at most, while it is entered.

    Exact on any device. A tensor that several operations save counts once (overlapping views of different sizes count
    each); tensors in `known` (parameters, the input batch), which are there in any case, do not count. Under autocast
    the copies of the weights in half precision do count: they are memory that a forward holds until its backward.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        self.now = self.peak = 0
        self._known = {_storage(tensor) for tensor in known}
        self._alive: dict[tuple[int, int], int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, traceback)

    def _pack(self, tensor: Tensor) -> "_Box | Tensor":
        if _storage(tensor) in self._known or tensor.device.type == "meta":
            return tensor
        # An expanded tensor has more elements than memory.
        size = min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
        key = (tensor.data_ptr(), size)
        if key not in self._alive:
            self._alive[key] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self._alive[key] += 1
        box = _Box(tensor)
        weakref.finalize(box, self._release, key)
        return box

    def _release(self, key: tuple[int, int]) -> None:
        self._alive[key] -= 1
        if self._alive[key] == 0:
            del self._alive[key]
            self.now -= key[1]


class _Box:
    """Lives as long as autograd keeps the tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _unpack(saved: "_Box | Tensor") -> Tensor:
    return saved.tensor if isinstance(saved, _Box) else saved


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
