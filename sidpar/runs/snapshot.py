"""A copy of a run's tensors in host memory, from which a checkpoint is written while training goes on."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sidpar.distributed.device import wait_for_queued


class Snapshot:
    """Of tensors on a GPU, its memory is pinned, which makes the copies fast. Pinning is slow, so that memory is kept
    for the next snapshot."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pinned = device, device.type == "cuda"
        self._kept: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies by name, valid until the next snapshot. Returns once the tensors may change: waits for the device
        once, not for every tensor."""
        copies = {name: self._memory_for(name, tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            copies[name].copy_(tensor.detach(), non_blocking=True)
        wait_for_queued(self._device)
        if self._pinned:
            self._kept = copies
        return dict(copies)

    def _memory_for(self, name: str, tensor: Tensor) -> Tensor:
        kept = self._kept.get(name)
        if kept is not None and kept.shape == tensor.shape and kept.dtype == tensor.dtype:
            return kept
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pinned)
