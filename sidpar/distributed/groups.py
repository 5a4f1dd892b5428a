"""The process groups of a world of R x K ranks: R replicas of a cascade, each of which lies on K ranks."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

FEW_CTAS = 4
"""For a group whose messages are small. A kernel of NCCL that waits for a peer holds as many SMs as it has CTAs, by
default 16 to 24 where there is NVLink, and ours are meant to start early and wait."""
SUMMING_CTAS = 8
"""For the group that sums the extractor's gradients, whose messages are larger."""
BYTES_PER_CTA = 20 * 2**20
"""Of NCCL's buffers on a GPU, for a neighbour in its ring and one in its tree: 4 MiB for long messages (NCCL_BUFFSIZE)
and 5 MiB for short ones each, and what it rounds. From NCCL's sources, not measured."""


@dataclass(frozen=True)
class CascadeGroups:
    """The K ranks of this rank's cascade, K > 1, once for each kind of traffic."""

    features: dist.ProcessGroup
    feature_gradients: dist.ProcessGroup
    chain: tuple[dist.ProcessGroup, dist.ProcessGroup]

    def edge(self, rank: int, peer: int) -> dist.ProcessGroup:
        """The group of the messages between two neighbours in a cascade."""
        return self.chain[min(rank, peer) % 2]


@dataclass(frozen=True)
class ReplicaGroups:
    """The R ranks at this rank's place, one in each cascade, R > 1: they hold the same refiners."""

    refiner_gradients: dist.ProcessGroup
    root_gradients: dist.ProcessGroup
    """Parameter gradients of an extractor that only the first rank of each cascade holds."""
    statistics: dist.ProcessGroup
    """Of batch norms that see each replica's part of the same rows."""


@dataclass(frozen=True)
class Groups:
    """One process group per kind of traffic, so that none queues behind another.

    NCCL runs the messages of one group in order, on one stream. A receive that is posted ahead would hold up every
    later send of the same group, so neighbouring edges of the belief chain use different groups. And a reduction waits
    for the last rank: features of the next batch, which the first rank needs before that, have a group of their own.

    A group costs NCCL nothing until its first message: groups that a job does not use have no buffers on the device.
    """

    default: dist.ProcessGroup
    """All ranks, with as many channels as NCCL likes: for torch's own data parallelism and pipelines, which our
    settings must not slow down."""
    world: dist.ProcessGroup
    """All ranks: parameter gradients of an extractor that all of them hold, and what is not part of a step."""
    cascade: CascadeGroups | None
    """None for K = 1."""
    replicas: ReplicaGroups | None
    """None for R = 1."""
    statistics: dist.ProcessGroup
    """All ranks: statistics of batch norms whose rows lie on all of them. Apart from the gradients, which leave during
    a backward that waits for these messages."""
    requests: dist.ProcessGroup
    """All ranks, in host memory on any backend: whether a rank has been asked to stop."""
    checkpoints: dist.ProcessGroup
    """The same for checkpoints, which a thread of its own may be writing."""

    @classmethod
    def make(cls, num_replicas: int, timeout: timedelta, patience: timedelta) -> Self:
        """All ranks call it, once torch's default group is there. Every one of them makes all groups of more than one
        rank, its own and those of others, in the same order.

        `timeout` is for a message, `patience` for one that may wait for the disks of all ranks.
        """
        ranks = torch.arange(dist.get_world_size()).view(num_replicas, -1)
        default = dist.group.WORLD
        assert default is not None

        def group(rows: Tensor, max_ctas: int = FEW_CTAS, *, urgent: bool = False) -> dist.ProcessGroup:
            """The group of the row that holds this rank."""
            mine: list[dist.ProcessGroup] = []
            for row in rows.tolist():
                options = nccl_options(timeout, max_ctas, urgent=urgent) if dist.get_backend() == "nccl" else None
                made = dist.new_group(row, timeout=timeout, pg_options=options)
                mine += [made] if isinstance(made, dist.ProcessGroup) else []
            return mine[0]

        def host_group(timeout: timedelta) -> dist.ProcessGroup:
            made = dist.new_group(backend="gloo", timeout=timeout)
            assert isinstance(made, dist.ProcessGroup)
            return made

        cascade = replicas = None
        if ranks.size(1) > 1:
            # Everyone downstream waits for states and features; for feature gradients only the end of the step.
            chain = group(ranks, urgent=True), group(ranks, urgent=True)
            cascade = CascadeGroups(group(ranks, urgent=True), group(ranks), chain)
        if num_replicas > 1:
            replicas = ReplicaGroups(group(ranks.T), group(ranks.T), group(ranks.T, urgent=True))
        return cls(
            default,
            group(ranks.view(1, -1), SUMMING_CTAS),
            cascade,
            replicas,
            statistics=group(ranks.view(1, -1), urgent=True),
            requests=host_group(timeout),
            checkpoints=host_group(max(timeout, patience)),
        )

    def connect(self, device: torch.device) -> None:
        """Send a first message along every connection of a cascade and of its replicas, in an order in which nobody
        waits for two at once. All ranks call it.

        NCCL makes connections at first use and blocks the host until the peer comes, also in an `irecv` that is meant
        to be posted ahead. Gloo does not need this, and takes the same path so that it is tested.
        """
        token = torch.zeros(1, device=device)
        groups = [self.world]
        if self.cascade is not None:
            groups += [self.cascade.features, self.cascade.feature_gradients]
        if self.replicas is not None:
            groups += [self.replicas.refiner_gradients, self.replicas.root_gradients]
        for group in groups:
            dist.all_reduce(token, group=group)
        if self.cascade is not None:
            rank, size = self.cascade.features.rank(), self.cascade.features.size()
            for first, second in neighbours(size):
                if rank == first:
                    dist.send(token, group=self.cascade.edge(first, second), group_dst=second)
                elif rank == second:
                    dist.recv(token, group=self.cascade.edge(first, second), group_src=first)

    def connect_pipeline(self, device: torch.device) -> None:
        """The same for a pipeline of torch's, which sends both ways, from the last rank to the first too, and messages
        of both ways in one batch, for which NCCL uses the connections of the whole group."""
        token, group = torch.zeros(1, device=device), self.default
        dist.all_reduce(token, group=group)
        rank, size = group.rank(), group.size()
        for first, second in [*neighbours(size), (size - 1, 0)]:
            for source, target in ((first, second), (second, first)):
                if rank == source:
                    dist.send(token, group=group, group_dst=target)
                elif rank == target:
                    dist.recv(token, group=group, group_src=source)


def nccl_bytes(num_replicas: int, cascade_size: int) -> int:
    """What a rank's groups occupy on its GPU once they are used, about: those of `Groups.make`, but for the statistics
    of batch norms, which few jobs send."""
    in_cascade = 4 * FEW_CTAS if cascade_size > 1 else 0
    over_replicas = 2 * FEW_CTAS if num_replicas > 1 else 0
    return BYTES_PER_CTA * (SUMMING_CTAS + in_cascade + over_replicas)


def make_default_group(backend: str, store: Store, rank: int, world_size: int, timeout: timedelta) -> None:
    """Torch's default group, of all ranks, before any other."""
    dist.init_process_group(
        backend,
        store=PrefixStore("group", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        # Never `device_id`. With it, NCCL makes the connections of every group at once, by splits in which all ranks
        # take part. And it runs all messages of a group one after the other, instead of in one stream for each pair of
        # ranks: a receive that is posted ahead then holds up every send. Torch's pipelines take up to 1.9 times as long
        # (simulated: interleaved and zero bubble on 8 ranks).
        pg_options=nccl_options(timeout, None, urgent=True) if backend == "nccl" else None,
    )


def neighbours(size: int) -> Iterable[tuple[int, int]]:
    """The edges of a chain of `size` ranks, first every other one, then those between: if each is used in its turn, two
    rounds will do."""
    return ((first, first + 1) for parity in (0, 1) for first in range(parity, size - 1, 2))


def nccl_options(timeout: timedelta, max_ctas: int | None, *, urgent: bool) -> Any:
    """What NCCL is told about one group, an object that no other group may share.

    Args:
        max_ctas: how many SMs its kernels may hold at most; None leaves it to NCCL.
        urgent: its kernels go before those of compute that wait for an SM, too.
    """
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=urgent)
    options._timeout = timeout  # torch compares it with the group's own, and warns
    if max_ctas is not None:
        options.config.max_ctas = max_ctas
    return options
