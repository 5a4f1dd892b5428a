"""How long a forward and its backward take: on the device, and on the host that queues them there."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch

from sidpar.cascade.cascade import TensorTuple
from sidpar.distributed import device

_REPEATS = 5
_AHEAD = 2.0
"""Head start of the host, in times of what it takes to queue the work."""


class Seconds(NamedTuple):
    """Of one piece of work."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        return self.forward + self.backward


class Timed(NamedTuple):
    """What was seen of one piece."""

    device: Seconds
    """While it never waits for the host."""
    launch: Seconds
    """The host, until the work is queued; on CPU, where it computes itself, the same as `device`."""
    outputs: TensorTuple
    """Of the last forward."""


def time_piece(forward: Callable[[], TensorTuple], place: torch.device) -> Timed:
    """Medians of a few runs after one that is not counted.

    An idle GPU begins with the first kernel at once and then waits for each further one: its events would tell how long
    the host takes to launch them. So the host's seconds are those of runs on an idle GPU, and the GPU's own of runs
    that it may not begin before the host has queued them.
    """
    _once(forward, place)
    own, launch, outputs = _medians(forward, place)
    if place.type == "cuda":
        own, _, outputs = _medians(forward, place, ahead=_AHEAD * launch.both)
    return Timed(own, launch, outputs)


def limiting(pieces: Sequence[Timed]) -> list[Seconds]:
    """Of pieces that follow each other, the seconds that limit the whole: where the host queues ahead, the device's;
    the host's, where all launches together take longer than all the work."""
    if sum(piece.launch.both for piece in pieces) > sum(piece.device.both for piece in pieces):
        return [piece.launch for piece in pieces]
    return [piece.device for piece in pieces]


def _medians(
    forward: Callable[[], TensorTuple], place: torch.device, *, ahead: float = 0.0
) -> tuple[Seconds, Seconds, TensorTuple]:
    """Of a few runs."""
    devices, hosts = [], []
    outputs: TensorTuple = ()
    for _ in range(_REPEATS):
        own, host, outputs = _once(forward, place, ahead=ahead)
        devices.append(own)
        hosts.append(host)
    own, host = (Seconds(*map(median, zip(*seconds, strict=True))) for seconds in (devices, hosts))
    return own, host, outputs


def _once(
    forward: Callable[[], TensorTuple], place: torch.device, *, ahead: float = 0.0
) -> tuple[Seconds, Seconds, TensorTuple]:
    """The device's seconds, the host's, and what the forward returns; with a head start for the host, in seconds."""
    device.synchronize(place)
    device.head_start(place, ahead)
    marks, moments = [device.mark(place)], [perf_counter()]
    outputs = forward()
    marks.append(device.mark(place))
    moments.append(perf_counter())
    trained = [tensor for tensor in outputs if tensor.requires_grad]
    if trained:
        torch.autograd.backward(trained, [torch.ones_like(tensor) for tensor in trained])
    marks.append(device.mark(place))
    moments.append(perf_counter())
    device.synchronize(place)
    own = Seconds(*(device.seconds_between(*pair) for pair in pairwise(marks)))
    host = Seconds(*(end - start for start, end in pairwise(moments)))
    return own, host if place.type == "cuda" else own, outputs
