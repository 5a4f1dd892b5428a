"""What memory a rank holds, and for what: saved activations counted exactly, the allocator's figure, the driver's."""

import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sidpar.distributed import device


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


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank. None: not measurable here."""

    parameters: int
    gradients: int
    optimizer_state: int
    versions: int
    """Weights and gradients of the extractor for batches in flight, besides its own (streaming)."""
    saved_activations: int
    """At most at any time of a step."""
    communication_buffers: int
    """Of messages under way, at most at any time of a step."""
    allocator_peak: int | None
    """torch's CUDA allocator: the most that tensors occupied."""
    allocator_reserved: int | None
    """The same: the most that it had taken from the device."""
    driver: int | None
    """NVML's figure for this process: with CUDA's context, libraries and NCCL's buffers."""
    resident: int
    """The process's resident set in host memory, at the end of a step."""


def measure_memory(
    module: nn.Module,
    optimizers: Iterable[Optimizer],
    saved: SavedTensors,
    where: torch.device,
    *,
    gradients: int,
    versions: int,
    communication_buffers: int,
) -> Memory:
    """What a rank holds after a step of `module` during which `saved` was entered; peaks were reset before it. The last
    three are known to the engine and to whoever updates."""
    states = [values for optimizer in optimizers for values in optimizer.state.values()]
    return Memory(
        parameters=bytes_of([*module.parameters(), *module.buffers()]),
        gradients=gradients,
        optimizer_state=bytes_of(value for values in states for value in values.values() if isinstance(value, Tensor)),
        versions=versions,
        saved_activations=saved.peak,
        communication_buffers=communication_buffers,
        allocator_peak=device.peak_memory(where) if where.type == "cuda" else None,
        allocator_reserved=device.peak_reserved(where),
        driver=device.driver_memory(where),
        resident=resident(),
    )


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """The sum of their sizes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def resident() -> int:
    """Bytes of host memory that this process occupies now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
