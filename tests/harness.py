"""The one way tests start ranks: K real processes that talk over gloo, each calling a function or running a command.

They are forked from a server that has already imported torch, so a group of ranks starts in a tenth of a second, where
torchrun takes seconds of every core; `torchrun` is for tests of what it does itself. The store that ranks meet in is
the test's own, on a free port, so that tests never collide; timeouts are short; every rank's traceback is shown.
"""

import multiprocessing
import os
import pickle
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

import torch
import torch.distributed as dist

from sidpar.config.groups.choices import DeviceKind
from sidpar.config.schema import Config
from sidpar.distributed.runtime import Runtime
from sidpar.runs.run_folder import find_run_folder
from sidpar.training.run import Run

ROOT = Path(__file__).parent.parent
DEVICE: DeviceKind = "cpu"
"""Where ranks compute: on the CPU, or all on one GPU (`pytest --device cuda`)."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "sidpar.train", "tests.harness", "tests.warm"])


class RankError(AssertionError):
    """Some rank failed; the message holds every traceback, and `errors` maps ranks to theirs."""

    def __init__(self, errors: dict[int, str]) -> None:
        self.errors = errors
        super().__init__("\n".join(f"--- rank {rank} ---\n{text}" for rank, text in sorted(errors.items())))


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 120.0,
    step_timeout: float = 30.0,
    replicas: int = 1,
) -> list[Any]:
    """`function(runtime, *args)` on every rank of a gloo world, which computes on `DEVICE`; the results in rank order.
    Raises RankError."""
    store, results = _store(), _context.Queue()
    arguments = (results, function, args, world_size, store.port, step_timeout, replicas, DEVICE)
    processes = [_context.Process(target=_rank_main, args=(rank, *arguments)) for rank in range(world_size)]
    for process in processes:
        process.start()
    try:
        return _collect(results, processes, timeout)
    finally:
        for process in processes:
            process.kill()
            process.join()


def compute_on(device: DeviceKind) -> None:
    """The ranks of later calls, and the oracles that they are compared with."""
    global DEVICE
    DEVICE = device


def alone() -> Runtime:
    """One process, on the same device as the ranks."""
    return Runtime.single(DEVICE)


def _store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _rank_main(
    rank: int,
    results: Any,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    world_size: int,
    port: int,
    step_timeout: float,
    replicas: int,
    device: DeviceKind,
) -> None:
    compute_on(device)
    torch.set_num_threads(1)
    try:
        store = dist.TCPStore("127.0.0.1", port)
        runtime = Runtime.start(
            backend="gloo",
            device=device,
            init_timeout=step_timeout,
            step_timeout=step_timeout,
            replicas=replicas,
            rendezvous=(store, rank, world_size),
        )
        with runtime:
            # As bytes: torch would pass tensors as shared memory of a process that is about to end.
            results.put((rank, True, pickle.dumps(function(runtime, *args))))
    except BaseException:
        results.put((rank, False, traceback.format_exc()))
    results.close()
    results.join_thread()


def _collect(results: Any, processes: list[Any], timeout: float) -> list[Any]:
    deadline = time.monotonic() + timeout
    values: dict[int, Any] = {}
    errors: dict[int, str] = {}
    while len(values) + len(errors) < len(processes):
        try:
            rank, ok, value = results.get(timeout=0.2)
            if ok:
                values[rank] = pickle.loads(value)
            else:  # the others have a little time to show how they noticed
                errors[rank] = value
                deadline = min(deadline, time.monotonic() + 3)
        except Empty:
            for rank, process in enumerate(processes):
                if process.exitcode not in (None, 0) and rank not in values | errors:
                    errors[rank] = f"the process ended with exit code {process.exitcode}"
            if time.monotonic() > deadline:
                missing = set(range(len(processes))) - set(values) - set(errors)
                errors |= dict.fromkeys(missing, f"no answer within {timeout} s")
    if errors:
        raise RankError(errors)
    return [values[rank] for rank in range(len(processes))]


def make_run(config: Config, runtime: Runtime) -> Run:
    """What `sidpar.train` makes of a configuration before it trains."""
    return Run(config, runtime, find_run_folder(config, runtime))


def run_command(
    world_size: int, *arguments: str, timeout: float = 300.0, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """A module (`-m NAME ...`) or a script on ranks, in the environment that torchrun would give them. As there, the
    first rank to fail ends the others; all of them write to the same two streams."""
    store = _store()
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        given = (world_size, store.port, arguments, cwd, streams)
        processes = [_context.Process(target=_command_main, args=(rank, *given)) for rank in range(world_size)]
        for process in processes:
            process.start()
        deadline = time.monotonic() + timeout
        while any(process.exitcode is None for process in processes) and time.monotonic() < deadline:
            if any(process.exitcode for process in processes):
                deadline = min(deadline, time.monotonic() + 30)  # torchrun's patience after SIGTERM
                for process in processes:
                    process.terminate()
            time.sleep(0.02)
        for process in processes:
            process.kill()
            process.join()
        failed = any(process.exitcode for process in processes)
        return subprocess.CompletedProcess(arguments, int(failed), *(stream.read_text() for stream in streams))


def _command_main(
    rank: int, world_size: int, port: int, arguments: tuple[str, ...], cwd: Path, streams: list[Path]
) -> None:
    for descriptor, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(cwd)
    torch.set_num_threads(1)
    sizes = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "GROUP_WORLD_SIZE": 1}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ |= {name: str(value) for name, value in (sizes | ranks | where).items()}
    if arguments[0] == "-m":
        sys.path.insert(0, str(cwd))
        sys.argv = list(arguments[1:])
        warnings.filterwarnings("ignore", module="runpy")  # the module has been imported already, which is the point
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(cwd, arguments[0]).parent))
        sys.argv = list(arguments)
        runpy.run_path(str(Path(cwd, arguments[0])), run_name="__main__")


def torchrun(
    world_size: int, *arguments: str, timeout: float = 300.0, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """`torchrun --standalone --nproc_per_node=K` of a module or script, as a user would start it."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={world_size}",
    ]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(
        [*command, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
