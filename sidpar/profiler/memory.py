"""The memory of a rank: by kind, and the figures of the allocator and of the driver."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sidpar.distributed import device
from sidpar.profiler.saved_activations import SavedTensors


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank. None: not measurable here."""

    parameters: int
    gradients: int
    optimizer_state: int
    versions: int
    """Weights and gradients of the extractor for batches in flight, besides its own (streaming)."""
    saved_activations: int
    """The peak within a step."""
    communication_buffers: int
    """The peak within a step, for messages under way."""
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
