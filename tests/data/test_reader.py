"""Batches from files: the same with any number of workers, which outlive no one and are ended by no one else."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from sidpar.data.dataset import Dataset
from sidpar.data.datasets import load
from sidpar.data.loader import Loader
from sidpar.data.splits import Images
from tests.data.image_files import digits_folder
from tests.harness import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training images of 4 classes, 20 test images."""
    return digits_folder(tmp_path_factory.mktemp("images"), train=15, val=5)


def batches(dataset: Dataset) -> Loader:
    return Loader(dataset, batch_size=8, eval_batch_size=8, augment=True, seed=3, device=torch.device("cpu"))


def from_files(folder: Path, workers: int = 0) -> Loader:
    return batches(load("image_folder", str(folder), image_size=12, workers=workers))


def same(found: Iterator[tuple[torch.Tensor, ...]], expected: Iterator[tuple[torch.Tensor, ...]]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def in_memory(folder: Path) -> Loader:
    """The same images as a dataset that lies in memory."""
    dataset = load("image_folder", str(folder), image_size=12)
    splits = {name: getattr(dataset, name) for name in ("train", "test")}
    kept = {name: Images(split.first(len(split)), split.labels) for name, split in splits.items()}
    return batches(replace(dataset, **kept))


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_do_not_depend_on_workers(workers: int, folder: Path, in_memory: Loader) -> None:
    """Bit for bit those of images in memory: two epochs, one from its middle, one that was left, and the test set."""
    state = torch.get_rng_state()
    loader = from_files(folder, workers)
    assert loader.preprocessing == in_memory.preprocessing
    assert loader.steps_per_epoch == 8
    assert torch.equal(loader.sample, in_memory.sample)
    for epoch in (0, 1):
        assert same(loader.train_batches(epoch), in_memory.train_batches(epoch))
    left = loader.train_batches(5)
    next(left)
    assert same(loader.train_batches(1, start=5), in_memory.train_batches(1, start=5))
    assert len(list(loader.train_batches(1, start=8))) == 0
    assert same(loader.test_batches(), in_memory.test_batches())
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator plays no part"
    if workers:
        with pytest.raises(RuntimeError, match="another iteration over the same files has begun before this one ended"):
            next(left)


def test_statistics_of_many_files_are_of_a_sample_from_all_classes(
    folder: Path, in_memory: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidpar.data.splits.STATISTICS_SAMPLE", 20)
    train = load("image_folder", str(folder), image_size=12).train
    seen = torch.arange(20) * 60 // 20
    assert torch.bincount(train.labels[seen]).tolist() == [5, 5, 5, 5]
    sample = Images(torch.cat([x for x, _ in train.batches(seen, 20)]), train.labels[seen])
    assert torch.equal(train.count_values(), sample.count_values())
    mean = from_files(folder).preprocessing.mean
    assert mean != in_memory.preprocessing.mean
    assert mean == pytest.approx(in_memory.preprocessing.mean, rel=0.1)


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_in_mid_epoch_is_named(workers: int, tmp_path: Path) -> None:
    root = digits_folder(tmp_path)
    loader = from_files(root, workers)
    (root / "train" / "digit 2" / "005.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"^/[^\n]*digit 2/005.png cannot be read as an image [^\n]*remove it$"):
        list(loader.train_batches(0))


def kill_and_read(folder: Path) -> None:
    """Kill the one worker in the middle of an epoch."""
    before = set(children(os.getpid()))
    loader = from_files(folder, workers=1)
    epoch = loader.train_batches(0)
    next(epoch)
    (worker,) = set(children(os.getpid())) - before
    os.kill(worker, signal.SIGKILL)
    time.sleep(1)  # torch's handler for the end of a child raises wherever the main thread is then: here, not later
    list(epoch) + list(loader.train_batches(1))


@pytest.mark.processes
def test_a_worker_that_is_killed_is_an_error(folder: Path) -> None:
    message = r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)"
    with pytest.raises(RuntimeError, match=message):
        kill_and_read(folder)


def children(pid: int) -> list[int]:
    """The forked workers of a process; not the servers of multiprocessing, which are programs of their own."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [child for child in found if Path(f"/proc/{child}/cmdline").read_bytes() == command]


def train_for_ever(folder: Path, epochs: Any) -> None:
    """A rank that answers to SIGTERM in its own time."""
    signal.signal(signal.SIGTERM, lambda number, frame: epochs.put("told to stop"))
    loader = from_files(folder, workers=2)
    for epoch in count():
        list(loader.train_batches(epoch))
        epochs.put(epoch)


def gone(pids: list[int], within: float) -> bool:
    deadline = time.monotonic() + within
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.processes
def test_workers_leave_signals_to_the_main_process(folder: Path) -> None:
    """What SLURM and torchrun send reaches every process of a rank. Its workers go on, since a rank that is told to end
    has a step to finish; they end with it, also where it had no chance to tell them."""
    context = multiprocessing.get_context("forkserver")
    epochs = context.Queue()
    process = context.Process(target=train_for_ever, args=(folder, epochs))
    process.start()
    try:
        epochs.get(timeout=60)
        workers = children(process.pid)
        assert len(workers) == 2
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            for worker in workers:
                os.kill(worker, number)
        os.kill(process.pid, signal.SIGTERM)
        while epochs.get(timeout=60) != "told to stop":
            continue
        seen = [epochs.get(timeout=60) for _ in range(3)]
        assert seen[2] == seen[0] + 2
        assert children(process.pid) == workers, "the same ones"
    finally:
        process.kill()
        process.join()
    assert gone(workers, 4)


SCRIPT = """
import sys
from pathlib import Path
from tests.data.test_reader import from_files

loader = from_files(Path(sys.argv[1]), workers=2)
list(loader.train_batches(0))
list(loader.test_batches())
next(loader.train_batches(1))
raise ValueError("in the middle of an epoch")
"""


@pytest.mark.processes
def test_workers_do_not_hold_up_the_end(folder: Path) -> None:
    """An interpreter that ends waits for its workers, even those that leave SIGTERM to others."""
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "ValueError: in the middle of an epoch" in done.stderr
