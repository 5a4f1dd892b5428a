"""The process groups of a world of R x K ranks: R replicas of a cascade, each of which lies on K ranks."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Groups:
    """One process group per kind of traffic, so that none queues behind another.

    NCCL runs the messages of one group in order, on one stream. A receive that is posted ahead would hold up every
    later send of the same group, so neighbouring edges of the belief chain use different groups. And a reduction waits
    for the last rank: features of the next batch, which the first rank needs before that, have a group of their own.
    """

    mesh: DeviceMesh
    """All ranks, [R, K], by the dimensions `replica` and `cascade`: neighbours in a cascade are neighbours in the
    world, since they exchange the most messages."""
    world: dist.ProcessGroup
    """All ranks: parameter gradients of an extractor that all of them hold, and what is not part of a step."""
    features: dist.ProcessGroup
    """The K ranks of this rank's cascade, as the next two."""
    feature_gradients: dist.ProcessGroup
    chain: tuple[dist.ProcessGroup, dist.ProcessGroup]
    refiner_gradients: dist.ProcessGroup
    """The R ranks that hold the same refiners as this one, one in each cascade."""
    root_gradients: dist.ProcessGroup
    """The same ranks: parameter gradients of an extractor that only the first rank of each cascade holds."""
    requests: dist.ProcessGroup
    """All ranks, in host memory on any backend: whether a rank has been asked to stop."""
    checkpoints: dist.ProcessGroup
    """The same for checkpoints, which a thread of its own may be writing."""

    @classmethod
    def make(cls, num_replicas: int, device_type: str, timeout: timedelta, patience: timedelta) -> Self:
        """All ranks call it. Every one of them makes all groups, its own and those of others, in the same order.

        `timeout` is for a message, `patience` for one that may wait for the disks of all ranks.
        """
        ranks = torch.arange(dist.get_world_size()).view(num_replicas, -1)

        def group(rows: Tensor) -> dist.ProcessGroup:
            """The group of the row that holds this rank."""
            mine, _ = dist.new_subgroups_by_enumeration(rows.tolist(), timeout=timeout)
            assert isinstance(mine, dist.ProcessGroup)
            return mine

        def host_group(timeout: timedelta) -> dist.ProcessGroup:
            mine = dist.new_group(backend="gloo", timeout=timeout)
            assert isinstance(mine, dist.ProcessGroup)
            return mine

        # Not `init_device_mesh`, whose groups would wait for as long as torch likes.
        dimensions = [group(ranks.T), group(ranks)]
        names = ("replica", "cascade")
        mesh = DeviceMesh.from_group(dimensions, device_type, mesh=ranks, mesh_dim_names=names)
        return cls(
            mesh,
            world=group(ranks.view(1, -1)),
            features=mesh.get_group("cascade"),
            feature_gradients=group(ranks),
            chain=(group(ranks), group(ranks)),
            refiner_gradients=mesh.get_group("replica"),
            root_gradients=group(ranks.T),
            requests=host_group(timeout),
            checkpoints=host_group(max(timeout, patience)),
        )

    def edge(self, rank: int, peer: int) -> dist.ProcessGroup:
        """The group of the messages between two neighbours in a cascade."""
        return self.chain[min(rank, peer) % 2]

    def connect(self, device: torch.device) -> None:
        """Send a first message along every connection, in an order in which nobody waits for two at once.

        NCCL makes connections at first use and blocks the host until the peer comes, also in an `irecv` that is meant
        to be posted ahead. Gloo does not need this, and takes the same path so that it is tested. All ranks call it.
        """
        token = torch.zeros(1, device=device)
        for group in (self.world, self.features, self.feature_gradients, self.refiner_gradients, self.root_gradients):
            dist.all_reduce(token, group=group)
        rank, last = self.mesh.get_local_rank("cascade"), self.mesh.size(1) - 1
        for parity in (0, 1):
            if rank % 2 == parity and rank < last:
                dist.send(token, group=self.edge(rank, rank + 1), group_dst=rank + 1)
            if rank % 2 != parity and rank > 0:
                dist.recv(token, group=self.edge(rank, rank - 1), group_src=rank - 1)
