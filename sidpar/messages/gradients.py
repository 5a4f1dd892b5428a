"""Parameter gradients summed over ranks in buckets, each of which leaves as soon as the backward has completed it."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from sidpar.messages.transport import Pending

BUCKET_BYTES = 4 * 2**20


class GradientBuckets:
    """Flat buffers that hold the gradients of `parameters`; every `.grad` is a view into one.

    Buckets follow the reverse order of registration, which is about the order in which a backward completes them.
    They leave strictly in bucket order, also where a later one is complete first, so that all ranks start the same
    collectives in the same order. The hooks run inside `backward`, on autograd's thread for CUDA, while the main
    thread waits for it: at no time do two threads issue messages.

    Args:
        send: starts the sum of one bucket over the ranks that hold these parameters, in place.
    """

    def __init__(self, parameters: Sequence[Tensor], send: Callable[[Tensor], Pending]) -> None:
        self._send = send
        self._buffers: list[Tensor] = []
        self._views: list[tuple[Tensor, Tensor]] = []
        self._members: list[int] = []
        self._missing: list[int] = []
        self._pending: list[Pending] = []
        self._released = False
        for bucket, members in enumerate(_group(list(reversed(parameters)))):
            buffer = torch.zeros(sum(p.numel() for p in members), dtype=members[0].dtype, device=members[0].device)
            start = 0
            for parameter in members:
                # The parameter's own strides (channels_last weights), or every accumulation would permute.
                view = buffer[start : start + parameter.numel()].as_strided(parameter.size(), parameter.stride())
                start += parameter.numel()
                self._views.append((parameter, view))
                parameter.register_post_accumulate_grad_hook(partial(self._completed, bucket))  # type: ignore[no-untyped-call]
            self._buffers.append(buffer)
            self._members.append(len(members))

    def reset(self) -> None:
        """Zero all gradients: the start of a step."""
        self._released = False
        self._pending = []
        for buffer in self._buffers:
            buffer.zero_()
        for parameter, view in self._views:
            parameter.grad = view

    def release(self) -> None:
        """The next backward of each parameter is its last one of the step: from now on buckets leave when complete."""
        self._released = True
        self._missing = list(self._members)

    def complete(self) -> None:
        """If released, all gradients are complete, also those whose hooks have not been called."""
        while self._released and len(self._pending) < len(self._buffers):
            self._send_next()

    def wait(self) -> None:
        """Send what no backward completed (this rank had no samples, say), and wait for all sums."""
        self.complete()
        for pending in self._pending:
            pending.wait()

    def _completed(self, bucket: int, _: Tensor) -> None:
        if not self._released:
            return
        self._missing[bucket] -= 1
        while len(self._pending) < len(self._buffers) and self._missing[len(self._pending)] == 0:
            self._send_next()

    def _send_next(self) -> None:
        self._pending.append(self._send(self._buffers[len(self._pending)]))


def _group(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Runs of parameters of one dtype, each of at most BUCKET_BYTES or one parameter."""
    groups: list[list[Tensor]] = []
    size = 0
    for parameter in parameters:
        weight = parameter.numel() * parameter.element_size()
        if not groups or groups[-1][0].dtype != parameter.dtype or size + weight > BUCKET_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += weight
    return groups
