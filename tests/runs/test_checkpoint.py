"""Checkpoints on disk: whole or not there, the newest ones kept, and what a failure leaves."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sidpar.distributed.runtime import Runtime
from sidpar.errors import RunError
from sidpar.runs.checkpoint import Checkpoints, find_newest
from sidpar.runs.snapshot import Snapshot
from sidpar.train import parse
from sidpar.training.run import train
from tests.harness import RankError, run_ranks
from tests.training.test_resume import SMALL, difference, run

ALONE = Runtime.single("cpu")
TENSORS = {"model/a": torch.arange(6.0).view(2, 3), "optimizer/a/step": torch.tensor(7.0)}


def progress(step: int) -> dict[str, Any]:
    return {"step": step, "data": {"classes": 3}, "seconds": 1.5, "images": 10, "resumed_at": []}


def write(runtime: Runtime, folder: str, steps: list[int], asynchronous: bool) -> list[str]:
    """Each rank a tensor of its own; what is there at the end."""
    checkpoints = Checkpoints(Path(folder), runtime, keep=2, asynchronous=asynchronous)
    tensor = torch.zeros(3)
    for step in steps:
        tensor.fill_(10 * step + runtime.rank)
        checkpoints.save({f"model/{runtime.rank}": tensor}, progress(step))
        tensor.fill_(-1)  # the copy is what is written
    checkpoints.wait()
    return sorted(path.name for path in (Path(folder) / "checkpoints").iterdir())


@pytest.mark.processes
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_newest_are_kept(ranks: int, asynchronous: bool, tmp_path: Path) -> None:
    for names in run_ranks(write, ranks, str(tmp_path), [5, 10, 15, 20], asynchronous):
        assert names == ["step_0000000015", "step_0000000020"], "and nothing besides"
    stored, skipped = find_newest(tmp_path, ALONE)
    assert stored is not None
    assert (stored.progress, skipped) == (progress(20), [])
    tensors = stored.read([f"model/{rank}" for rank in range(ranks)])
    assert [tensor.tolist() for tensor in tensors.values()] == [[200.0 + rank] * 3 for rank in range(ranks)]


def test_writing_does_not_touch_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch sees a GPU, it would copy ahead, on GPU 0, and wait for what training has queued there."""

    def touched(*_: object) -> None:
        raise AssertionError("the thread that writes has asked for a stream")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", touched)
    alone(tmp_path).save(TENSORS, progress(5))


def test_a_snapshot_is_a_copy(tmp_path: Path) -> None:
    """The next one does not change what is still being written from this one."""
    tensor, snapshot = torch.ones(2), Snapshot(torch.device("cpu"))
    first = snapshot.take({"a": tensor})
    tensor.fill_(2)
    second = snapshot.take({"a": tensor})
    assert (first["a"].tolist(), second["a"].tolist()) == ([1, 1], [2, 2])


def alone(folder: Path, **options: Any) -> Checkpoints:
    return Checkpoints(folder, ALONE, **{"keep": 3, "asynchronous": False, **options})


def cut(file: Path) -> None:
    os.truncate(file, 50)


def flip(file: Path) -> None:
    """A bit of the last tensor."""
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flip])
def test_a_damaged_one_is_skipped_and_told(harm: Callable[[Path], None], tmp_path: Path) -> None:
    """By a disk, say; the one before it is taken. Saved again, it is whole again."""
    checkpoints = alone(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(TENSORS, progress(step))
    harm(tmp_path / "checkpoints" / "step_0000000003" / "__0_0.distcp")
    stored, skipped = find_newest(tmp_path, ALONE)
    assert stored is not None
    assert stored.progress == progress(2)
    assert skipped == ["step_0000000003: __0_0.distcp is damaged: its checksum differs"]
    checkpoints.save(TENSORS, progress(3))
    stored, skipped = find_newest(tmp_path, ALONE)
    assert stored is not None
    assert (stored.progress, skipped) == (progress(3), [])


def test_what_a_killed_run_has_left_half_written_is_removed(tmp_path: Path) -> None:
    """By the job whose folder it is, not by one that only looks: another may be writing there."""
    partial = tmp_path / "checkpoints" / ".partial_4"
    partial.mkdir(parents=True)
    find_newest(tmp_path, ALONE)
    assert partial.exists()
    alone(tmp_path)
    assert not partial.exists()


def test_copies_of_checkpoints_are_left_alone(tmp_path: Path) -> None:
    checkpoints = alone(tmp_path, keep=1)
    checkpoints.save(TENSORS, progress(1))
    first = tmp_path / "checkpoints" / "step_0000000001"
    copies = [first.with_name(name) for name in ("step_best", "step_0000000001.bak")]
    for copy in copies:
        shutil.copytree(first, copy)
    checkpoints.save(TENSORS, progress(2))
    assert not first.exists()
    assert all(copy.exists() for copy in copies)


def test_no_checkpoint_is_no_mistake(tmp_path: Path) -> None:
    assert find_newest(tmp_path, ALONE) == (None, [])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system of its own cannot be mounted here: needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(runtime: Runtime, folder: str) -> list[str]:
    """Two checkpoints that fit, then two that do not."""
    checkpoints = Checkpoints(Path(folder), runtime, keep=9, asynchronous=True)
    for step in (1, 2):
        checkpoints.save({f"model/{runtime.rank}": torch.ones(1000)}, progress(step))
    errors = []
    for step in (3, 4):
        checkpoints.save({f"model/{runtime.rank}": torch.ones(300_000)}, progress(step))
        with pytest.raises(RunError) as error:
            checkpoints.wait()
        errors.append(str(error.value))
    return errors


@pytest.mark.processes
def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    """Every rank is told, and what was there is still there and whole."""
    first, second = run_ranks(fill, 2, str(small_disk))
    assert first == second
    assert "the checkpoint of step 3 cannot be written to" in first[0]
    assert ", with 0.0 MiB free on the disk" in first[0]
    assert shutil.disk_usage(small_disk).free > 900_000, "what could not be written is no longer in the way"
    assert "The checkpoint step_0000000002 is kept: free space or repair the disk, and start the same" in first[1]
    stored, skipped = find_newest(small_disk, ALONE)
    assert stored is not None
    assert (stored.progress, skipped) == (progress(2), [])
    assert stored.read(["model/1"])["model/1"].tolist() == [1.0] * 1000


def limited(runtime: Runtime, arguments: list[str]) -> None:
    """A run that may not write files above 40 kB: the first checkpoint is small enough, as it has no second moments."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    train(parse(arguments), runtime)


@pytest.mark.processes
def test_a_run_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """The whole job: one error on every rank, and the same command once there is room."""
    flags = ["--model.width", "64"]
    arguments = [*SMALL, *flags, "--run.dir", str(tmp_path / "run")]
    with pytest.raises(RankError) as failure:
        run_ranks(limited, 2, arguments)
    for text in failure.value.errors.values():
        assert "sidpar.errors.RunError: the checkpoint of step 8 cannot be written to" in text
        assert "File too large" in text
        assert "There is no checkpoint yet: free space or repair the disk, and start the same" in text
    assert run(2, tmp_path / "run", *flags)
    assert run(2, tmp_path / "whole", *flags)
    assert difference(tmp_path / "run", tmp_path / "whole") == 0


def diverge(runtime: Runtime, arguments: list[str]) -> None:
    train(parse(arguments), runtime)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim.name", "sgd", "--optim.lr", "1e60", "--checkpoint.every", "1"], "the weights of extractor (rank 0)"),
        (
            ["--optim.name", "sgd", "--optim.lr", "1e30", "--checkpoint.every", "4", "--run.log_every", "50"],
            "the loss of refiner 0 (rank 0) is not finite at step 2",
        ),
        (
            ["--model.builder", "tests.own_networks:failing", "--checkpoint.every", "4"],
            "the loss of refiner 2 (rank 1) is not finite at step 6. The checkpoint step_0000000004 is kept.",
        ),
    ],
    ids=["weights", "loss before weights", "loss"],
)
def test_numbers_that_are_none_end_the_run(flags: list[str], message: str, tmp_path: Path) -> None:
    """Named alike on every rank; a checkpoint of them is never written."""
    arguments = [*SMALL, "--model.name", "null", "--model.width", "null"] if "--model.builder" in flags else SMALL
    with pytest.raises(RankError) as failure:
        run_ranks(diverge, 2, [*arguments, *flags, "--run.dir", str(tmp_path)])
    last = {text.splitlines()[-1] for text in failure.value.errors.values()}
    assert len(last) == 1
    assert message in failure.value.errors[0]
    assert (
        "Lower optim.lr, lengthen optim.warmup_epochs or set optim.clip, in a new run folder" in failure.value.errors[0]
    )
    stored, _ = find_newest(tmp_path, ALONE)
    if stored is not None:
        assert all(tensor.isfinite().all() for tensor in weights_of(stored.path).values())
    assert (tmp_path / "logs" / "rank_1.log").read_text().count("RunError: ") == 1, "with its traceback"


def weights_of(path: Path) -> dict[str, Tensor]:
    stored, _ = find_newest(path.parent.parent, ALONE)
    assert stored is not None
    return stored.read([name for name in stored.shapes if name.startswith("model/")])


@pytest.mark.processes
def test_the_weights_file_can_be_read_by_others(tmp_path: Path) -> None:
    """Whole, under its name alone, and with the permissions of its folder."""
    assert run(1, tmp_path / "run")
    path = tmp_path / "run" / "weights.safetensors"
    assert path.stat().st_mode & 0o777 == (tmp_path / "run").stat().st_mode & 0o666
    assert load_file(path)
    assert not list((tmp_path / "run").glob(".weights*"))
