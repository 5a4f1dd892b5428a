"""By how much the clocks of hosts differ."""

import platform
import time

import torch
import torch.distributed as dist

from sidpar.distributed.device import synchronize
from sidpar.distributed.runtime import Runtime

_ROUND_TRIPS = 20


def clock_offset(runtime: Runtime) -> float:
    """Seconds to add to this rank's `time.perf_counter` to get rank 0's. All ranks call it.

    Processes of one host share that clock. For other hosts, of several round trips the fastest is taken, and its answer
    to be from the middle, as NTP does.
    """
    if runtime.groups is None:
        return 0.0
    hosts = runtime.exchange("host", platform.node())
    group = runtime.groups.world
    token = torch.zeros(1, dtype=torch.float64, device=runtime.wire_device)
    offset = 0.0
    for rank in [rank for rank, host in enumerate(hosts) if host != hosts[0]]:
        if runtime.rank == 0:
            for _ in range(_ROUND_TRIPS):
                dist.recv(token, group=group, group_src=rank)
                synchronize(runtime.device)  # on NCCL a receive returns before the message is there
                token.fill_(time.perf_counter())
                dist.send(token, group=group, group_dst=rank)
        elif runtime.rank == rank:
            best = float("inf")
            for _ in range(_ROUND_TRIPS):
                sent = time.perf_counter()
                dist.send(token, group=group, group_dst=0)
                dist.recv(token, group=group, group_src=0)
                theirs = token.item()
                received = time.perf_counter()
                if received - sent < best:
                    best, offset = received - sent, theirs - (sent + received) / 2
    return offset
