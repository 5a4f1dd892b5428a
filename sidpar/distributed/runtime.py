"""What one rank knows of the job: process groups, device, store."""

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous as read_rendezvous

from sidpar.config.groups.checks import at_least
from sidpar.config.groups.choices import Backend, DeviceKind
from sidpar.distributed.backends import choose_backend, choose_device, gpu_identity
from sidpar.distributed.device import set_arithmetic, synchronize, usable_memory
from sidpar.distributed.environment import Launch, read_environment
from sidpar.distributed.exchange import Exchange
from sidpar.distributed.failures import failure_elsewhere, has_failed, tell_failure
from sidpar.distributed.groups import Groups, make_default_group, nccl_bytes
from sidpar.distributed.launcher import end_launcher_if_cut_off
from sidpar.distributed.progress import Progress, end_when_late
from sidpar.distributed.rendezvous import meet
from sidpar.distributed.signals import Signals
from sidpar.errors import UsageError
from sidpar.version import __version__


@dataclass(frozen=True)
class Runtime(Exchange):
    """One rank's context, passed to whatever needs it. Made by `start` or `single`, and used as a context manager:

        with sidpar.Runtime.start() as runtime: ...

    The process group is destroyed on a clean exit only: destroying it after an exception would close connections and
    make *other* ranks fail first, with errors that hide the real one.

    A world of R x K ranks holds R replicas of a cascade, each on K ranks. `rank` and `world_size` are of the whole
    world; `cascade_rank` and `cascade_size` (K) are of this rank's cascade, which is number `replica` of R.
    """

    device: torch.device
    """Where this rank computes."""
    backend: str
    """nccl, gloo, or none in a world of one process."""
    local_rank: int = 0
    """This rank's number on its machine."""
    groups: Groups | None = None
    """The process groups; None in a world of one process."""
    step_timeout: float = 100.0
    """Seconds that one message may take."""
    num_replicas: int = 1
    """R."""
    sharers: int = 1
    """How many ranks compute on this rank's GPU, this one included."""
    signals: Signals | None = None
    """The requests to stop that have come."""
    progress: Progress | None = None
    """What a GPU has completed; None on a CPU."""
    launch: Launch = field(default_factory=Launch)
    """How the job was started."""
    _doing: list[Any] = field(default_factory=lambda: ["start", None], repr=False)

    @classmethod
    def single(cls, device: DeviceKind = "auto", *, tf32: bool = False, cudnn_benchmark: bool = False) -> Self:
        """One process without a process group, for the local engine or for inference.

        Args:
            device: `auto` is a GPU if there is one, else the CPU.
            tf32: as for `start`.
            cudnn_benchmark: as for `start`.
        """
        chosen = choose_device(device, 0)
        set_arithmetic(chosen, tf32=tf32, cudnn_benchmark=cudnn_benchmark)
        return cls(rank=0, world_size=1, device=chosen, backend="none")

    @classmethod
    def start(
        cls,
        *,
        backend: Backend = "auto",
        device: DeviceKind = "auto",
        init_timeout: float = 300.0,
        step_timeout: float = 100.0,
        replicas: int = 1,
        tf32: bool = False,
        cudnn_benchmark: bool = False,
        rendezvous: tuple[Store, int, int] | None = None,
    ) -> Self:
        """Join the job that torchrun's environment describes; without one, a world of one process.

        Args:
            backend: `auto` is nccl where every rank has a GPU of its own, else gloo, also for CUDA tensors.
            device: `auto` is a GPU if there is one, else the CPU.
            init_timeout: seconds to wait for all ranks to start.
            step_timeout: seconds to wait for one message.
            replicas: R, a divisor of the number of ranks.
            tf32: compute fp32 products in TF32 on GPUs, with a mantissa of 10 bits; for the whole process.
            cudnn_benchmark: let cuDNN choose its algorithms by timing them; for the whole process.
            rendezvous: (store, rank, world size) instead of the environment's.

        Raises:
            UsageError: ranks have other versions, devices or replicas, or R does not divide their number.
        """
        environment = read_environment()
        if backend == "nccl" and choose_device(device, 0).type != "cuda":
            raise UsageError("backend=nccl moves tensors between GPUs, but these ranks compute on the CPU: use gloo")
        if rendezvous is None and environment.world_size == 1:
            _check_replicas(replicas, 1)
            alone = cls.single(device, tf32=tf32, cudnn_benchmark=cudnn_benchmark)
            return replace(alone, launch=environment.launch)._listening()
        if rendezvous is None:
            store, rank, world_size = next(read_rendezvous("env://", timeout=timedelta(seconds=init_timeout)))
            local_rank = environment.local_rank
        else:
            store, rank, world_size = rendezvous
            local_rank = rank
        store = meet(store, rank, world_size, init_timeout)
        chosen = choose_device(device, local_rank)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)  # before any group exists, or contexts open on GPU 0
        set_arithmetic(chosen, tf32=tf32, cudnn_benchmark=cudnn_benchmark)
        alone = cls(
            rank,
            world_size,
            chosen,
            "none",
            local_rank,
            store=store,
            init_timeout=init_timeout,
            step_timeout=step_timeout,
            launch=environment.launch,
        )

        # Before anything else: nodes with other software or other devices would wait for each other for ever.
        versions = {"python": platform.python_version(), "torch": torch.__version__, "sidpar": __version__}
        settings = {"device": chosen.type, "backend": backend, "replicas": replicas}
        arithmetic = {"tf32": tf32, "cudnn_benchmark": cudnn_benchmark}
        alone.agree("versions, devices and replicas", versions | settings | arithmetic)
        _check_replicas(replicas, world_size)
        gpus = alone.exchange("GPUs", gpu_identity(chosen))
        name, sharers = choose_backend(backend, gpus), gpus.count(gpus[rank]) if chosen.type == "cuda" else 1
        # What is late is told by `_end_late`, before NCCL ends the process without a word of ours.
        timeout = timedelta(seconds=step_timeout + (_NCCL_PATIENCE if name == "nccl" else 0.0))
        make_default_group(name, store, rank, world_size, timeout)
        runtime = replace(alone, backend=name, num_replicas=replicas, sharers=sharers)
        groups = Groups.make(replicas, timeout, timedelta(seconds=init_timeout))
        runtime = replace(runtime, groups=groups)
        runtime.exchange("groups", "made")  # a rank that went on and failed would cut off one that still connects
        return runtime._listening()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self.store is not None:
            reason = failure_elsewhere(self.store, error)
            if reason is not None:
                print(f"{self._moment('ended')}: {reason}", file=sys.stderr, flush=True)
                raise SystemExit(1)
            tell_failure(self.store, self.rank, error)
            if isinstance(error, Exception) and (cut_off := end_launcher_if_cut_off(self.store, self.launch.hosts)):
                error.add_note(f"rank {self.rank}: {cut_off}")
        if kind is None and self.groups is not None:
            dist.destroy_process_group()
        if kind is None and self.signals is not None:
            self.signals.rest()

    def _listening(self) -> Self:
        """The same runtime, which now handles signals."""
        # Signals are heard in another thread, so on a connection of its own.
        store = None if self.store is None else self.store.clone()
        progress = Progress(torch.cuda.Event) if self.device.type == "cuda" else None
        heard = replace(self, progress=progress)
        hangs = None if progress is None else progress.hangs
        signals = Signals(heard._moment, lambda: store is not None and has_failed(store), hangs)
        signals.listen()
        if progress is not None and self.backend == "nccl":
            end_when_late(progress, self.step_timeout, heard._end_late)
        return replace(heard, signals=signals)

    def _end_late(self, seconds: float) -> None:
        """NCCL's messages block the device, not the host, so no call on the host raises an error."""
        reason = f"its GPU has completed nothing for {seconds:.0f} s; another rank is probably lost"
        print(f"{self._moment('ends')}: {reason}", file=sys.stderr, flush=True)
        os._exit(1)

    def sum(self, what: str, table: torch.Tensor) -> torch.Tensor:
        """The sum of a small table [...] over all ranks, on every rank: metrics."""
        return self.start_sum(what, table)()

    def start_sum(self, what: str, table: torch.Tensor) -> Callable[[], torch.Tensor]:
        """The sum of a small table [...], without waiting for ranks that are behind; what is returned waits and gives
        it."""
        total = table.to(self.wire_device, copy=True)
        if self.groups is None:
            return lambda: total
        work = dist.all_reduce(total, group=self.groups.world, async_op=True)
        assert work is not None

        def finish() -> torch.Tensor:
            with self.during(f"sum {what} over all ranks"):
                work.wait()
            return total

        return finish

    def start_request(self, asks: bool) -> Callable[[], bool]:
        """Whether any rank asks, the same on every rank, which all call it; what is returned waits for them. Costs the
        device nothing."""
        if self.groups is None:
            return lambda: asks
        flag = torch.tensor([float(asks)])
        work = dist.all_reduce(flag, group=self.groups.requests, async_op=True)
        assert work is not None

        def finish() -> bool:
            with self.during("ask all ranks whether to stop"):
                work.wait()
            return bool(flag)

        return finish

    def barrier(self) -> None:
        """Wait until all ranks are here, and their devices are done: the edge of a timed window."""
        synchronize(self.device)
        if self.groups is not None:
            with self.during("barrier"):
                dist.all_reduce(torch.zeros(1, device=self.wire_device), group=self.groups.world)
                synchronize(self.device)

    @contextmanager
    def during(self, action: object, step: int | None = None) -> Iterator[None]:
        """Add this rank and what it was doing to any error that passes."""
        self._doing[:] = [action, step]
        try:
            yield
        except Exception as error:
            error.add_note(self._moment("failed"))
            raise
        if self.progress is not None:
            self.progress.mark(lambda: self._spoken(action, step))

    def _moment(self, verb: str) -> str:
        """What this rank was doing. Actions speak of the ranks of one cascade, so its place there is told too."""
        place = f" (rank {self.cascade_rank} of replica {self.replica})" if self.num_replicas > 1 else ""
        passed = None if self.progress is None else self.progress.passed()
        device = "" if passed is None else f"; its device has completed {passed}"
        return f"rank {self.rank}{place} {verb} in {self._spoken(*self._doing)}{device}"

    @staticmethod
    def _spoken(action: object, step: int | None) -> str:
        when = "" if step is None else f"step {step}, in "
        return f"{when}the action: {action}"

    def connect(self, *, pipeline: bool = False) -> None:
        """Make all connections by a first message along each (`Groups.connect`), or those of a pipeline of torch's. All
        ranks call it, once they agree on everything that they can compare without a message."""
        if self.groups is not None:
            with self.during("first message to every neighbour"):
                self.groups.connect(self.wire_device)
                if pipeline:
                    self.groups.connect_pipeline(self.wire_device)

    @property
    def cascade_size(self) -> int:
        """K."""
        return self.world_size // self.num_replicas

    @property
    def cascade_rank(self) -> int:
        """This rank's place in its cascade, 0..K-1."""
        return self.rank % self.cascade_size

    @property
    def replica(self) -> int:
        """The number of this rank's cascade, 0..R-1."""
        return self.rank // self.cascade_size

    @property
    def usable_memory(self) -> float | None:
        """Bytes of its GPU that this rank may plan with: its share of what is free, without NCCL's buffers. None on
        CPU."""
        free = usable_memory(self.device, self.sharers)
        if free is None or self.backend != "nccl":
            return free
        return free - nccl_bytes(self.num_replicas, self.cascade_size)

    @property
    def posts_receives_ahead(self) -> bool:
        """Whether a receive may wait without holding up anything else. To NCCL it is a kernel: until the message comes,
        it keeps the device from being idle, which a host may wait for (`simulation/first_use.py`)."""
        return self.backend != "nccl"

    @property
    def loads_lazily(self) -> bool:
        """Whether the first use of a kernel may wait for messages under way, which are kernels too."""
        return self.backend == "nccl"

    @property
    def wire_device(self) -> torch.device:
        """Where messages must lie: gloo sends from host memory, also when the ranks compute on a GPU they share."""
        return self.device if self.backend == "nccl" else torch.device("cpu")


_NCCL_PATIENCE = 10.0
"""Seconds by which NCCL's own watchdog is later than ours."""


def _check_replicas(replicas: int, world_size: int) -> None:
    at_least("replicas", replicas, 1)
    if world_size % replicas:
        raise UsageError(
            f"replicas={replicas} needs {replicas} x K ranks, K for each copy of the cascade, but there are "
            f"{world_size}: start a multiple of {replicas} ranks, or choose replicas that divide {world_size}"
        )
