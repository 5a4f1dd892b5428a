"""Parameter gradients summed over ranks in buckets, each of which leaves as soon as the backward has completed it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from sidpar.errors import UsageError
from sidpar.messages.wire import Pending

BUCKET_BYTES = 4 * 2**20


class GradientBuckets:
    """Flat buffers for the gradients of `parameters`; `gradients` are views into them, one for each.

    Buckets follow the reverse order of registration, which is about the order in which a backward completes them.
    They leave strictly in bucket order, also where a later one is complete first, so that all ranks start the same
    collectives in the same order. The hooks run inside `backward`, on autograd's thread for CUDA, while the main
    thread waits for it: at no time do two threads issue messages.

    A bucket leaves within the backward only if each of its parameters got its gradient at once in the first step. One
    that is used in several checkpointed pieces (`use_reentrant=True`) gets it in as many parts, and nobody knows which
    is the last one: it leaves at the end of the backward.

    Args:
        send: starts the sum of one bucket over the ranks that hold these parameters, in place.
    """

    def __init__(self, parameters: Sequence[Tensor], send: Callable[[Tensor], Pending]) -> None:
        self._send = send
        self._parameters = list(parameters)
        self._buffers: list[Tensor] = []
        self._parts: list[list[int]] = []
        """For each bucket, the number of parts in which each parameter's gradient has arrived since the release."""
        self._early: list[bool] = []
        """Whether each bucket is sent as soon as it is complete; not known before the end of the first step."""
        self._pending: list[Pending] = []
        self._released = False
        views = []
        for bucket, members in enumerate(_group(self._parameters[::-1])):
            buffer = torch.zeros(sum(p.numel() for p in members), dtype=members[0].dtype, device=members[0].device)
            start = 0
            for member, parameter in enumerate(members):
                # The parameter's own strides (channels_last weights), or every accumulation would permute.
                views.append(buffer[start : start + parameter.numel()].as_strided(parameter.size(), parameter.stride()))
                start += parameter.numel()
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, bucket, member))  # type: ignore[no-untyped-call]
            self._buffers.append(buffer)
            self._parts.append([0] * len(members))
        self.gradients = views[::-1]

    def reset(self) -> None:
        """Zero all gradients: the start of a step."""
        self._released = False
        self._pending = []
        for buffer in self._buffers:
            buffer.zero_()

    def attach(self) -> None:
        """Let backwards add to these gradients."""
        for parameter, gradient in zip(self._parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def release(self) -> None:
        """The next backward of each parameter is its last one of the step: from now on buckets leave when complete."""
        self._released = True
        self._parts = [[0] * len(parts) for parts in self._parts]

    def complete(self) -> None:
        """If released, all gradients are complete, also those that no backward has added to (this rank had no samples,
        say)."""
        if not self._released:
            return
        while len(self._pending) < len(self._buffers):
            self._send_next()
        self._early = self._early or [max(parts) <= 1 for parts in self._parts]
        self._released = False

    def wait(self) -> None:
        """Wait for all sums."""
        self.complete()
        for pending in self._pending:
            pending.wait()

    def send_first(self) -> None:
        """A sum of zeros in each size, one after the other."""
        for buffer in {(buffer.numel(), buffer.dtype): buffer for buffer in self._buffers}.values():
            self._send(torch.zeros_like(buffer)).wait()

    @contextmanager
    def unlearned(self) -> Iterator[None]:
        """Gradients that arrive inside do not count for the rules that the first step has shown."""
        early = list(self._early)
        try:
            yield
        finally:
            self._early = early

    def _arrived(self, bucket: int, member: int, parameter: Tensor) -> None:
        if not self._released:
            return
        self._parts[bucket][member] += 1
        if not self._early:
            return
        if self._parts[bucket][member] > 1:
            if bucket < len(self._pending):
                raise UsageError(
                    f"a parameter of shape {list(parameter.shape)} got a part of its gradient after its sum over ranks "
                    "had begun, though it got all of it at once in the first step: checkpoint a module that is used "
                    "several times from the first step on, or set use_reentrant=False"
                )
            self._early[bucket] = False
        while (waiting := len(self._pending)) < len(self._buffers) and self._is_complete(waiting):
            self._send_next()

    def _is_complete(self, bucket: int) -> bool:
        return self._early[bucket] and min(self._parts[bucket]) == 1

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
