"""The machine as one rank sees it: process group, device, store. The environment is read here and nowhere else."""

import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous as read_rendezvous

from sidpar.choices import Backend, DeviceKind
from sidpar.device import synchronize
from sidpar.errors import UsageError
from sidpar.version import __version__


@dataclass(frozen=True)
class Groups:
    """One process group per kind of traffic, so that none queues behind another.

    NCCL runs the messages of one group in order, on one stream. A receive that is posted ahead would hold up every
    later send of the same group, so neighbouring edges of the belief chain use different groups. And a reduction waits
    for the last rank: features of the next batch, which the first rank needs before that, have a group of their own.
    """

    collectives: dist.ProcessGroup
    """Parameter gradients, and what is not part of a step."""
    features: dist.ProcessGroup
    feature_gradients: dist.ProcessGroup
    chain: tuple[dist.ProcessGroup, dist.ProcessGroup]

    def edge(self, rank: int, peer: int) -> dist.ProcessGroup:
        """The group of the messages between two neighbours."""
        return self.chain[min(rank, peer) % 2]


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
    local_rank: int = 0
    groups: Groups | None = None
    store: Store | None = None
    init_timeout: float = 300.0
    step_timeout: float = 100.0
    _sequence: "count[int]" = field(default_factory=count, repr=False)
    _doing: list[Any] = field(default_factory=lambda: ["start", None], repr=False)

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
            backend: `auto` is nccl where every rank has a GPU of its own, else gloo, also for CUDA tensors.
            init_timeout: seconds for all ranks to appear.
            step_timeout: seconds that any one message may take.
            rendezvous: (store, rank, world size) instead of the environment's.
        """
        environment = _environment()
        if backend == "nccl" and _choose_device(device, 0).type != "cuda":
            raise UsageError("backend=nccl moves tensors between GPUs, but these ranks compute on the CPU: use gloo")
        if rendezvous is None and environment.world_size == 1:
            return cls.single(device)
        if rendezvous is None:
            store, rank, world_size = next(read_rendezvous("env://", timeout=timedelta(seconds=init_timeout)))
            local_rank = environment.local_rank
        else:
            store, rank, world_size = rendezvous
            local_rank = rank
        store = PrefixStore(f"sidpar/{next(_starts)}", store)
        chosen = _choose_device(device, local_rank)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)  # before any group exists, or contexts open on GPU 0
        alone = cls(rank, world_size, chosen, "none", local_rank, None, store, init_timeout, step_timeout)

        # Before anything else: nodes with other software or other devices would wait for each other for ever.
        versions = {"python": platform.python_version(), "torch": torch.__version__, "sidpar": __version__}
        alone.agree("versions and devices", versions | {"device": chosen.type, "backend": backend})
        name = _choose_backend(backend, alone.exchange("GPUs", _gpu_identity(chosen)))
        timeout = timedelta(seconds=step_timeout)
        dist.init_process_group(
            name,
            store=PrefixStore("group", store),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=chosen if name == "nccl" else None,
        )
        collectives, features, feature_gradients, *chain = (_new_group(timeout) for _ in range(5))
        groups = Groups(collectives, features, feature_gradients, (chain[0], chain[1]))
        runtime = replace(alone, backend=name, groups=groups)
        runtime._explain_sigterm()
        return runtime

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self.groups is not None:
            dist.destroy_process_group()

    def agree(self, what: str, mine: Mapping[str, Any], timeout: float | None = None) -> None:
        """Fail on every rank, with the same error, unless all ranks call this with the same values.

        Goes through the store, so it works before the first message. Raises UsageError naming what differs.
        """
        everyone = self.exchange(what, dict(mine), timeout)
        differences = [
            f"{key}: " + ", ".join(f"rank {rank} has {values.get(key)!r}" for rank, values in enumerate(everyone))
            for key in sorted(set().union(*everyone))
            if any(values.get(key) != everyone[0].get(key) for values in everyone)
        ]
        if differences:
            raise UsageError(f"the ranks disagree on the {what}; start them all alike. " + "; ".join(differences))

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
            except RuntimeError as error:  # DistError, or what a file store raises
                raise RuntimeError(
                    f"rank {self.rank} waited up to {patience:g} s for rank {rank} to tell its {what}, in vain"
                ) from error
            values.append(json.loads(self.store.get(f"{key}/{rank}")))
        return values

    def from_root(self, what: str, mine: Any) -> Any:
        """Rank 0's value on every rank."""
        return self.exchange(what, mine if self.rank == 0 else None)[0]

    def sum(self, what: str, table: torch.Tensor) -> torch.Tensor:
        """The sum of a small table over all ranks, on every rank: metrics."""
        return self.start_sum(what, table)()

    def start_sum(self, what: str, table: torch.Tensor) -> Callable[[], torch.Tensor]:
        """The same without waiting for ranks that are behind; what is returned waits and gives the sum."""
        total = table.to(self.wire_device, copy=True)
        if self.groups is None:
            return lambda: total
        work = dist.all_reduce(total, group=self.groups.collectives, async_op=True)
        assert work is not None

        def finish() -> torch.Tensor:
            with self.during(f"sum {what} over all ranks"):
                work.wait()
            return total

        return finish

    def barrier(self) -> None:
        """Wait until all ranks are here, and their devices are done: the edge of a timed window."""
        synchronize(self.device)
        if self.groups is not None:
            with self.during("barrier"):
                dist.all_reduce(torch.zeros(1, device=self.wire_device), group=self.groups.collectives)
                synchronize(self.device)

    @contextmanager
    def during(self, action: object, step: int | None = None) -> Iterator[None]:
        """Add this rank and what it was doing to any error that passes."""
        self._doing[:] = [action, step]
        try:
            yield
        except Exception as error:
            error.add_note(f"rank {self.rank} failed {self._place()}")
            raise

    def _place(self) -> str:
        action, step = self._doing
        return f"in the action: {action}" if step is None else f"in step {step}, in the action: {action}"

    def _explain_sigterm(self) -> None:
        """When another rank fails, the launcher ends this one by SIGTERM, often before it has noticed anything. Say
        what it was doing then: a rank that hangs, or waits for one that was killed, has no other way to be named.

        A handler alone would run only once the main thread is back from the message it waits for. So a thread of its
        own waits for the byte that the interpreter writes at once, speaks, and ends the process.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return  # the user's own handler knows better
        reader, writer = os.pipe()
        os.set_blocking(writer, False)

        def watch() -> None:
            while os.read(reader, 1) != bytes([signal.SIGTERM]):
                continue
            print(f"rank {self.rank} was ended {self._place()}", file=sys.stderr, flush=True)
            os._exit(128 + signal.SIGTERM)

        signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=watch, name="sidpar SIGTERM", daemon=True).start()

    def connect(self) -> None:
        """Send a first message along every connection, in an order in which nobody waits for two at once.

        NCCL makes connections at first use and blocks the host until the peer comes, also in an `irecv` that is meant
        to be posted ahead. Gloo does not need this, and takes the same path so that it is tested. All ranks call it,
        once they agree on everything that they can compare without a message.
        """
        if self.groups is None:
            return
        token = torch.zeros(1, device=self.wire_device)
        with self.during("first message to every neighbour"):
            for group in (self.groups.collectives, self.groups.features, self.groups.feature_gradients):
                dist.all_reduce(token, group=group)
            for parity in (0, 1):
                if self.rank % 2 == parity and self.rank + 1 < self.world_size:
                    dist.send(token, group=self.groups.edge(self.rank, self.rank + 1), group_dst=self.rank + 1)
                if self.rank % 2 != parity and self.rank > 0:
                    dist.recv(token, group=self.groups.edge(self.rank, self.rank - 1), group_src=self.rank - 1)

    @property
    def wire_device(self) -> torch.device:
        """Where messages must lie: gloo sends from host memory, also when the ranks compute on a GPU they share."""
        return self.device if self.backend == "nccl" else torch.device("cpu")


_starts = count()  # every start of this process in a namespace of its own, also on the same store


class _Environment(NamedTuple):
    world_size: int
    local_rank: int


def _environment() -> _Environment:
    """What torchrun sets; all absent means one process."""
    return _Environment(int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0")))


def _choose_device(kind: DeviceKind, local_rank: int) -> torch.device:
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError("device=cuda, but torch sees no CUDA device here: use device=cpu, or run on a GPU machine")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def _gpu_identity(device: torch.device) -> str | None:
    """What tells this rank's GPU from all others; a device index does not, where each task sees only its own GPU."""
    if device.type != "cuda":
        return None
    return f"{platform.node()} {torch.cuda.get_device_properties(device).uuid}"


def _choose_backend(backend: Backend, gpus: list[str | None]) -> str:
    """`gpus` is the identity of every rank's GPU. NCCL needs one GPU per rank."""
    shared = sorted({gpu for gpu in gpus if gpu is not None and gpus.count(gpu) > 1})
    if backend == "nccl" and shared:
        raise UsageError(
            f"backend=nccl needs one GPU per rank, but the {len(gpus)} ranks share {len(set(gpus))} GPUs ({shared[0]}, "
            "for one): start fewer ranks per node, or use backend=gloo"
        )
    if backend == "auto":
        return "gloo" if shared or None in gpus else "nccl"
    return backend


def _new_group(timeout: timedelta) -> dist.ProcessGroup:
    group = dist.new_group(timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group
