"""Measures what messages cost on the ranks of this job, and fits latency and bandwidth to it."""

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.distributed as dist

from sidpar.distributed import device
from sidpar.distributed.runtime import Runtime
from sidpar.simulation.costs import Link, Links, fit_link

SIZES = (1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 22)
_REPEATS = 8
_IN_A_ROW = 4


def measure_links(runtime: Runtime) -> Links:
    """Ping-pong between ranks 0 and 1, and each collective on the ranks that run it in training, over a range of sizes.
    All ranks call it; all get rank 0's.

    A collective's size is that of the whole buffer: what all-gather returns, what reduce-scatter takes.
    """
    groups = runtime.groups
    if groups is None:
        return Links()
    runtime.connect()
    ranks = runtime.cascade_size
    fits = {"message": _fit(runtime, lambda tensor: _ping_pong(runtime, tensor), halves=True)}
    collectives: dict[str, Callable[[torch.Tensor], object]] = {
        "all_reduce": lambda t: dist.all_reduce(t, group=groups.world),
    }
    if groups.cascade is not None:
        group = groups.cascade.features
        collectives |= {
            "all_gather": lambda t: dist.all_gather_into_tensor(t, t[: len(t) // ranks].clone(), group=group),
            "reduce_scatter": lambda t: dist.reduce_scatter_tensor(t[: len(t) // ranks].clone(), t, group=group),
            "broadcast": lambda t: dist.broadcast(t, group_src=0, group=group),
            "reduce": lambda t: dist.reduce(t, group_dst=0, group=group),
        }
    if groups.replicas is not None:
        replicas = groups.replicas.refiner_gradients
        collectives["replica_all_reduce"] = lambda t: dist.all_reduce(t, group=replicas)
    for name, run in collectives.items():
        fits[name] = _fit(runtime, run)
    agreed = runtime.from_root("links", {name: [link.latency, link.seconds_per_byte] for name, link in fits.items()})
    return Links(**{name: Link(*values) for name, values in agreed.items()})


def _fit(runtime: Runtime, run: Callable[[torch.Tensor], object], *, halves: bool = False) -> Link:
    """The link that a message or collective of every size in SIZES shows."""
    sizes, seconds = [], []
    for size in SIZES:
        count = size // 4 // runtime.world_size * runtime.world_size
        tensor = torch.zeros(count, device=runtime.wire_device)
        times = []
        for _ in range(_REPEATS):
            runtime.barrier()
            start = time.perf_counter()
            for _ in range(_IN_A_ROW):  # so that leaving the barrier at different times hardly counts
                run(tensor)
            device.synchronize(runtime.device)
            times.append((time.perf_counter() - start) / _IN_A_ROW)
        sizes.append(4.0 * count)
        seconds.append(median(times[2:]) / (2 if halves else 1))
    return fit_link(sizes, seconds)


def _ping_pong(runtime: Runtime, tensor: torch.Tensor) -> None:
    """Ranks 0 and 1 exchange a message; the others wait at the next barrier."""
    assert runtime.groups is not None
    if runtime.rank > 1:
        return
    group = runtime.groups.world
    for sender in (0, 1):
        if runtime.rank == sender:
            dist.send(tensor, group=group, group_dst=1 - sender)
        else:
            dist.recv(tensor, group=group, group_src=sender)
