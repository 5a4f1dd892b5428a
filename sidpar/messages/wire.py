"""What all messages have in common: buffers, the start of a message, and what counts as traffic."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sidpar.cascade.cascade import TensorTuple
from sidpar.cascade.specs import Spec
from sidpar.distributed.groups import CascadeGroups, Groups
from sidpar.distributed.runtime import Runtime
from sidpar.profiler.memory import bytes_of
from sidpar.profiler.traffic import Traffic


@dataclass
class Pending:
    """A started message. `tensors` are the buffers it reads or writes: they must live until `wait` returns."""

    works: list[dist.Work | None]
    """None for messages that are not sent."""
    tensors: TensorTuple
    traffic: Traffic
    finish: Callable[[TensorTuple], TensorTuple] = tuple

    def __post_init__(self) -> None:
        self.traffic.occupy(bytes_of(self.tensors))

    def wait(self) -> TensorTuple:
        for work in self.works:
            if work is not None:
                work.wait()
        self.traffic.occupy(-bytes_of(self.tensors))
        return self.finish(self.tensors)


class Wire:
    """One rank's end of all messages. Peers are ranks of its own cascade, of which there are K."""

    def __init__(self, runtime: Runtime) -> None:
        assert runtime.groups is not None, "a world of one process sends no messages"
        self._groups: Groups = runtime.groups
        self._rank = runtime.cascade_rank
        self._size = runtime.cascade_size
        self.device = runtime.device
        self._wire = runtime.wire_device
        self._others = (self._size - 1) / self._size
        self._silent = False
        self.traffic = Traffic()

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Messages inside do not count as traffic."""
        traffic, self.traffic = self.traffic, Traffic()
        try:
            yield
        finally:
            self.traffic = traffic

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, messages are prepared but not sent, and received data is made up: uniform beliefs, and zeros. So a
        rank can go through a list of actions alone."""
        self._silent = True
        try:
            with self.uncounted():
                yield
        finally:
            self._silent = False

    @property
    def is_silent(self) -> bool:
        return self._silent

    @property
    def _cascade(self) -> CascadeGroups:
        assert self._groups.cascade is not None, "a cascade on one rank sends no messages within it"
        return self._groups.cascade

    def _begin(self, call: Callable[..., dist.Work | None], *buffers: Tensor, **where: Any) -> dist.Work | None:
        """Start a message of contiguous buffers; None if it is not to leave."""
        if self._silent:
            return None
        work = call(*map(numbers, buffers), **where)
        assert work is not None, "an asynchronous call returns its Work on every rank of the group"
        return work

    def _room(self, specs: tuple[Spec, ...], rows: int) -> TensorTuple:
        """Buffers for what will come."""
        return tuple((spec.zeros if self._silent else spec.empty)(rows, self._wire) for spec in specs)

    def _to_wire(self, tensor: Tensor) -> Tensor:
        """Contiguous in the memory that messages are sent from."""
        return tensor.to(self._wire).resolve_conj().resolve_neg().contiguous()

    def _to_device(self, tensors: TensorTuple) -> TensorTuple:
        return tuple(tensor.to(self.device) for tensor in tensors)


def numbers(tensor: Tensor) -> Tensor:
    """A contiguous tensor as messages send it: a complex number, which NCCL does not know, as two real ones."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
