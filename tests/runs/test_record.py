"""The record of a run: what TensorBoard reads back, one consistent record after a resume, a disk without room."""

import json
import math
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sidpar.errors import StorageError
from sidpar.runs.record import METRICS, TENSORBOARD, Record
from tests.harness import ROOT, run_ranks
from tests.training.test_train import SMALL, STREAM, rows, train

Series = dict[str, list[tuple[int, float]]]


def row(kind: str, step: int, **measures: Any) -> dict[str, Any]:
    """Two refiners; every number tells its step."""
    return {"kind": kind, "step": step, "epoch": 1, "loss": [step + 0.25, step + 0.5], **measures}


def write(folder: Path, *given: dict[str, Any], after_step: int | None = None) -> None:
    record = Record(folder, after_step=after_step)
    for one in given:
        record.write(one)
    record.close()


def series(folder: Path) -> Series:
    """Every tag with its steps and values, as TensorBoard shows them."""
    events = EventAccumulator(str(folder / TENSORBOARD), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tags(tmp_path: Path) -> None:
    write(
        tmp_path,
        row("train", 10, learning_rate=0.5, images_per_second=7.0, memory_bytes=[2**30, 3 * 2**29]),
        row("test", 12, bound_slack=0.125, images_per_second=8.0, memory_bytes=[2**29, 2**29]),
        {"kind": "diagnosis", "step": 12, "epoch": 1, "teacher_drift": [0.0, 0.75], "extractor_staleness": 0.375},
    )
    assert series(tmp_path) == {
        "train/loss/refiner_0": [(10, 10.25)],
        "train/loss/refiner_1": [(10, 10.5)],
        "learning_rate": [(10, 0.5)],
        "images_per_second/train": [(10, 7.0)],
        "memory/rank_0 GiB": [(10, 1.0)],
        "memory/rank_1 GiB": [(10, 1.5)],
        "test/loss/refiner_0": [(12, 12.25)],
        "test/loss/refiner_1": [(12, 12.5)],
        "test/bound_slack": [(12, 0.125)],
        "images_per_second/test": [(12, 8.0)],
        "memory/test/rank_0 GiB": [(12, 0.5)],
        "memory/test/rank_1 GiB": [(12, 0.5)],
        "diagnosis/teacher_drift/refiner_0": [(12, 0.0)],
        "diagnosis/teacher_drift/refiner_1": [(12, 0.75)],
        "diagnosis/extractor_staleness": [(12, 0.375)],
    }


@pytest.mark.processes
def test_a_run_shows_in_tensorboard_what_metrics_hold(tmp_path: Path) -> None:
    """Two ranks, with diagnosis: every measure of every row, and nothing else."""
    folder = train(2, tmp_path / "run", *STREAM, "--parallel.diagnose_every", "5")
    found = series(folder)
    kinds = set()
    expected: Series = {}
    for one in rows(folder):
        kinds.add(one["kind"])
        for name in set(one) - {"kind", "step", "epoch", "memory_bytes", "learning_rate", "images_per_second"}:
            values = one[name] if isinstance(one[name], list) else [one[name]]
            for i, value in enumerate(values):
                suffix = f"/refiner_{i}" if isinstance(one[name], list) else ""
                tag = f"{one['kind']}/{name}{suffix}"
                expected.setdefault(tag, []).append((one["step"], pytest.approx(value, rel=1e-6)))
    assert kinds == {"train", "test", "diagnosis"}
    assert expected.keys() <= found.keys()
    assert all(found[tag] == values for tag, values in expected.items())
    for kind in ("train", "test"):
        for measure in ("loss", "kl", "accuracy", "premise_failures", "descent_failures"):
            assert {f"{kind}/{measure}/refiner_{i}" for i in range(4)} <= found.keys()
    groups = {"learning_rate", "images_per_second/train", "memory/rank_0 GiB", "memory/rank_1 GiB"}
    groups |= {"images_per_second/test", "memory/test/rank_0 GiB", "memory/test/rank_1 GiB"}
    assert found.keys() - expected.keys() == groups
    assert [step for step, _ in found["learning_rate"]] == [4, 8]


@pytest.mark.processes
def test_without_tensorboard(tmp_path: Path) -> None:
    folder = train(1, tmp_path / "run", *SMALL, "--optim.epochs", "1", "--run.tensorboard", "false")
    assert rows(folder)
    assert not (folder / TENSORBOARD).exists()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    record = Record(tmp_path, enabled=False, after_step=3)
    record.write(row("train", 1))
    record.close()
    assert not list(tmp_path.iterdir())


def test_a_run_that_diverged_shows_null(tmp_path: Path) -> None:
    write(tmp_path, row("train", 1, kl=[math.nan, math.inf]))
    assert rows(tmp_path)[0]["kl"] == [None, None]
    assert math.isnan(series(tmp_path)["train/kl/refiner_0"][0][1])


def test_a_resumed_run_has_one_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Killed while it wrote the row of step 30, and resumed from step 20, twice; step 20 is evaluated again."""
    write(tmp_path, row("train", 10), row("train", 20), row("test", 20), row("train", 25))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "train", "step": 30, "loss": [0.2')
    for _ in range(2):
        write(tmp_path, row("test", 20, again=1.0), row("train", 30), after_step=20)
    assert [(r["kind"], r["step"]) for r in rows(tmp_path)] == [
        ("train", 10),
        ("train", 20),
        ("test", 20),
        ("train", 30),
    ]
    assert rows(tmp_path)[2] == row("test", 20), "the first evaluation is kept"
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path / METRICS}: removed 1 incomplete lines of a run that was killed"
    ]
    assert series(tmp_path) == {
        f"{kind}/loss/refiner_{i}": [(step, step + x) for step in steps]
        for kind, steps in (("train", (10, 20, 30)), ("test", (20,)))
        for i, x in enumerate((0.25, 0.5))
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS, TENSORBOARD]


def test_a_run_that_starts_again_from_the_beginning_keeps_nothing(tmp_path: Path) -> None:
    write(tmp_path, row("train", 10))
    write(tmp_path, row("train", 5), after_step=0)
    assert rows(tmp_path) == [row("train", 5)]
    assert series(tmp_path)["train/loss/refiner_0"] == [(5, 5.25)]


ADVICE = (
    "free space there, or make the folder writable, and start the same command again; what the run folder holds is kept"
)


def fill(limit: int, folder: Path, tensorboard: bool) -> int:
    """In a child whose files may not grow beyond `limit` bytes: the number of rows that it has written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    record = Record(folder, tensorboard=tensorboard)
    for step in range(10_000):
        record.write(row("train", step))
    return 10_000


def fill_as_rank(_: Any, *args: Any) -> int:
    return fill(*args)


@pytest.mark.processes
@pytest.mark.parametrize(("tensorboard", "name"), [(False, METRICS), (True, TENSORBOARD)])
def test_a_full_disk_has_one_clear_error(tensorboard: bool, name: str, tmp_path: Path) -> None:
    """TensorBoard's events are the larger file, and fail first; the rows that were written stay, and a resume mends
    the one that was cut."""
    with pytest.raises(AssertionError, match="StorageError") as failure:
        run_ranks(fill_as_rank, 1, 4096, tmp_path, tensorboard)
    text = str(failure.value)
    assert f"StorageError: {tmp_path / name} cannot be written (File too large): {ADVICE}" in text
    assert text.count("StorageError: ") == 1
    Record(tmp_path, after_step=10_000).close()
    found = rows(tmp_path)
    assert len(found) > 10
    assert [r["step"] for r in found] == list(range(len(found)))


def test_no_space_left(tmp_path: Path) -> None:
    """As the system says it; seen when the row is closed, not lost in a buffer."""
    (tmp_path / METRICS).symlink_to("/dev/full")
    record = Record(tmp_path)
    with pytest.raises(StorageError, match=r"metrics.jsonl cannot be written \(No space left on device\): free space"):
        record.write(row("train", 1))


def test_a_removed_file_of_events_is_no_obstacle(tmp_path: Path) -> None:
    write(tmp_path, row("train", 1))
    write(tmp_path, row("train", 2))
    first, _ = sorted((tmp_path / TENSORBOARD).iterdir())
    first.unlink()
    write(tmp_path, row("train", 3))
    assert len(list((tmp_path / TENSORBOARD).iterdir())) == 2


def test_an_unwritable_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere/tensorboard cannot be written \(No such file or directory\)"):
        Record(tmp_path / "nowhere")
    (tmp_path / METRICS).mkdir()
    with pytest.raises(StorageError, match=r"metrics.jsonl cannot be written \(Is a directory\)"):
        Record(tmp_path, after_step=1)


@pytest.mark.processes
def test_a_resume_without_room_keeps_what_was_there(tmp_path: Path) -> None:
    write(tmp_path, *(row("train", step) for step in range(200)))
    before = (tmp_path / METRICS).read_bytes()
    with pytest.raises(AssertionError, match="metrics.jsonl cannot be written"):
        run_ranks(resume_without_room, 1, 4096, tmp_path)
    assert (tmp_path / METRICS).read_bytes() == before


def resume_without_room(_: Any, limit: int, folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    Record(folder, after_step=150)


@pytest.mark.processes
def test_importing_sidpar_leaves_tensorboard_and_matplotlib_alone() -> None:
    check = "import sidpar, sys; print(sorted({m.split('.')[0] for m in sys.modules} & {'tensorboard', 'matplotlib'}))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_rows_are_on_disk_when_write_returns(tmp_path: Path) -> None:
    """A SIGKILL loses nothing: nobody has closed the record here."""
    record = Record(tmp_path)
    record.write(row("train", 1))
    assert [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()] == [row("train", 1)]
    assert series(tmp_path)["train/loss/refiner_1"] == [(1, 1.5)]
    record.close()
