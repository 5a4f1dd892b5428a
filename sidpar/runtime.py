"""The machine as one rank sees it: process group, device, store. The environment is read here and nowhere else."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from types import TracebackType
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous as read_rendezvous

Backend = Literal["auto", "nccl", "gloo"]
DeviceKind = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Groups:
    """One process group per kind of traffic, so that none queues behind another.

    NCCL runs the messages of one group in order, on one stream. A receive that is posted ahead would hold up every
    later send of the same group, so neighbouring edges of the belief chain use different groups: rank r receives on
    `chain[(r - 1) % 2]` and sends on `chain[r % 2]`.
    """

    collectives: dist.ProcessGroup
    chain: tuple[dist.ProcessGroup, dist.ProcessGroup]


@dataclass(frozen=True)
class Runtime:
    """One rank's context, passed to whatever needs it. Use it as a context manager:

        with Runtime.start() as runtime: ...

    The process group is destroyed on a clean exit only: destroying it after an exception would close connections and
    make *other* ranks fail first, with errors that hide the real one.
    """

    rank: int
    world_size: int
    device: torch.device
    backend: str
    groups: Groups | None = None
    store: Store | None = None
    init_timeout: float = 300.0
    step_timeout: float = 100.0
    _sequence: "count[int]" = field(default_factory=count, repr=False)

    @classmethod
    def single(cls, device: DeviceKind = "auto") -> Self:
        """One process without a process group: the oracle, or inference."""
        return cls(rank=0, world_size=1, device=_choose_device(device, 0), backend="none")

    @classmethod
    def start(
        cls,
        *,
        backend: Backend = "auto",
        device: DeviceKind = "auto",
        init_timeout: float = 300.0,
        step_timeout: float = 100.0,
        rendezvous: tuple[Store, int, int] | None = None,
    ) -> Self:
        """Join the job that torchrun's environment describes; without one, a world of one process.

        Args:
            backend: `auto` is nccl with one GPU per local rank, else gloo, also for CUDA tensors.
            init_timeout: seconds for all ranks to appear.
            step_timeout: seconds that any one message may take.
            rendezvous: (store, rank, world size) instead of the environment's.
        """
        environment = _environment()
        if rendezvous is None and environment.world_size == 1:
            return cls.single(device)
        local_rank, local_world_size = environment.local_rank, environment.local_world_size
        if rendezvous is not None:
            store, rank, world_size = rendezvous
            local_rank, local_world_size = rank, world_size
        chosen_device = _choose_device(device, local_rank)
        chosen_backend = _choose_backend(backend, chosen_device, local_world_size)
        if chosen_device.type == "cuda":
            torch.cuda.set_device(chosen_device)  # before any group exists, or contexts open on GPU 0
        if rendezvous is None:
            store, rank, world_size = next(read_rendezvous("env://", timeout=timedelta(seconds=init_timeout)))
        alone = cls(
            rank,
            world_size,
            chosen_device,
            chosen_backend,
            store=PrefixStore("sidpar", store),
            init_timeout=init_timeout,
            step_timeout=step_timeout,
        )
        # Nodes with different numbers of GPUs may choose differently, and would wait for each other for ever.
        alone.agree("backend", {"backend": chosen_backend})
        timeout = timedelta(seconds=step_timeout)
        dist.init_process_group(
            chosen_backend,
            store=PrefixStore("default", store),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=chosen_device if chosen_backend == "nccl" else None,
        )
        return replace(alone, groups=Groups(_new_group(timeout), (_new_group(timeout), _new_group(timeout))))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self.groups is not None:
            dist.destroy_process_group()

    def agree(self, what: str, mine: Mapping[str, Any], timeout: float | None = None) -> None:
        """Fail on every rank, with the same error, unless all ranks call this with the same values.

        Goes through the store, so it works before the first message. Raises ValueError naming what differs.
        """
        everyone = self.exchange(what, dict(mine), timeout)
        differences = [
            f"{key}: " + ", ".join(f"rank {rank} has {values.get(key)!r}" for rank, values in enumerate(everyone))
            for key in sorted(set().union(*everyone))
            if any(values.get(key) != everyone[0].get(key) for values in everyone)
        ]
        if differences:
            raise ValueError(f"the ranks disagree on the {what}; start them all alike. " + "; ".join(differences))

    def exchange(self, what: str, mine: Any, timeout: float | None = None) -> list[Any]:
        """Every rank's value (plain data), in rank order, through the store; all ranks call it in the same order.

        Waits `timeout` seconds for each rank, by default the initial timeout: another rank may be reading a dataset.
        """
        plain = json.loads(json.dumps(mine))
        if self.store is None:
            return [plain]
        key = f"{next(self._sequence)}/{what}"
        self.store.set(f"{key}/{self.rank}", json.dumps(plain))
        patience = self.init_timeout if timeout is None else timeout
        values = []
        for rank in range(self.world_size):
            try:
                self.store.wait([f"{key}/{rank}"], timedelta(seconds=patience))
            except dist.DistError as error:
                raise RuntimeError(
                    f"rank {self.rank} waited {patience:g} s for rank {rank} to tell its {what}, in vain"
                ) from error
            values.append(json.loads(self.store.get(f"{key}/{rank}")))
        return values

    def from_root(self, what: str, mine: Any) -> Any:
        """Rank 0's value on every rank."""
        return self.exchange(what, mine if self.rank == 0 else None)[0]

    def sum(self, table: torch.Tensor) -> torch.Tensor:
        """The sum of a small table over all ranks, on every rank: metrics."""
        if self.groups is None:
            return table
        total = table.to(self.wire_device, copy=True)
        dist.all_reduce(total, group=self.groups.collectives)
        return total

    @property
    def wire_device(self) -> torch.device:
        """Where messages must lie: gloo sends from host memory, also when the ranks compute on a GPU they share."""
        return self.device if self.backend == "nccl" else torch.device("cpu")


@dataclass(frozen=True)
class _Environment:
    world_size: int
    local_rank: int
    local_world_size: int


def _environment() -> _Environment:
    """What torchrun sets; all absent means one process."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    return _Environment(
        world_size=world_size,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size))),
    )


def _choose_device(kind: DeviceKind, local_rank: int) -> torch.device:
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no CUDA device here: use device=cpu, or run on a GPU machine")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def _choose_backend(backend: Backend, device: torch.device, local_world_size: int) -> str:
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if backend == "nccl" and gpus < local_world_size:
        raise ValueError(
            f"backend=nccl needs one GPU per local rank, but there are {local_world_size} local ranks and {gpus} "
            f"usable GPUs: start {gpus or 'no'} ranks per node, or use backend=gloo"
        )
    if backend == "auto":
        return "nccl" if gpus and gpus >= local_world_size else "gloo"
    return backend


def _new_group(timeout: timedelta) -> dist.ProcessGroup:
    group = dist.new_group(timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group
