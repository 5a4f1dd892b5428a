"""What a person sees of a training: what runs where, how far it is, what it has reached, and what comes next."""

import io
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from sidpar.config.units import human_duration
from sidpar.distributed.runtime import Runtime
from sidpar.train import parse
from sidpar.training.introduction import accuracies, how_to_resume, introduction, next_commands
from sidpar.training.pace import Pace
from sidpar.training.progress import Progress
from sidpar.training.run import Run
from tests.harness import make_run, run_command, run_ranks

CONFIG = ["--config", "configs/digits.yaml", "--run.dir"]


def test_durations() -> None:
    shown = [human_duration(s) for s in (0.0123, 9.4, 42.4, 59.6, 200, 3599.6, 7500, 100_000)]
    assert shown == ["12.3 ms", "9.4 s", "42 s", "1 min 00 s", "3 min 20 s", "1 h 00 min", "2 h 05 min", "1 d 03 h"]


def test_the_first_step_does_not_count() -> None:
    pace = Pace()
    pace.trained(60.0, 100)
    assert not pace.is_known
    pace.trained(61.0, 200)
    pace.trained(62.0, 300)
    assert pace.images_per_second == pytest.approx(100)
    assert pace.seconds_for(500) == pytest.approx(5)
    pace.evaluated(3.0)
    assert pace.seconds_for(500, evaluations=2) == pytest.approx(11)


class Terminal(io.StringIO):
    """One that says that it is."""

    def isatty(self) -> bool:
        return True


def progress(*, enabled: bool = True, epochs: int = 20, done: int = 0, eval_every: int = 1) -> Progress:
    return Progress(epochs=epochs, images=1000, steps=10, done=done, eval_every=eval_every, enabled=enabled)


def train(shown: Progress, batches: int, start: int = 0) -> None:
    """At 100 images in half a second."""
    for k in range(start, batches):
        shown.pace.trained(0.5 * (k + 1), 100 * (k + 1))
        shown.trained(100)


ROW: dict[str, Any] = {"kind": "train", "step": 4, "epoch": 1, "loss": [2.0, 1.25], "images_per_second": 210.0}


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_has_a_bar(columns: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """And no line for a row."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")
    caplog.set_level(logging.INFO, "sidpar")
    shown = progress(done=7000)
    train(shown, 4)
    shown.show(ROW)
    assert shown._bar is not None
    train(shown, 8, start=4)
    shown._bar.refresh()
    lines = [line for line in terminal.getvalue().split("\r") if line.strip()]
    assert max(map(len, lines)) <= columns
    assert re.fullmatch(r"epoch  8/20  200 images/s  1 min 01 s left  loss 1.25 \|[^|]+\|  39 %\s*", lines[-1])
    shown.evaluates()
    assert "epoch  8/20  evaluation" in terminal.getvalue().split("\r")[-1]
    shown.close()
    assert not terminal.getvalue().split("\r")[-1].strip(), "the bar is gone"
    assert caplog.messages == ["by the first steps: 500 ms a step, 5 s an epoch, 1 min 03 s left"]


def test_elsewhere_there_is_a_line_for_a_row(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """And no bar."""
    caplog.set_level(logging.INFO, "sidpar")
    shown = progress()
    train(shown, 1)
    shown.show(ROW)
    train(shown, 10, start=1)
    shown.pace.evaluated(2.0)
    shown.show(ROW)
    shown.show(ROW)
    shown.close()
    assert capsys.readouterr().err == ""
    line = "epoch  1/20  step      4  train loss 1.25  210 images/s"
    assert caplog.messages == [
        line,
        "by the first steps: 500 ms a step, 5 s an epoch, 2 min 13 s left",
        *[f"{line}  2 min 18 s left"] * 2,
    ], "98 s of training after step 4, and 20 evaluations"


def test_other_ranks_show_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    caplog.set_level(logging.INFO, "sidpar")
    shown = progress(enabled=False)
    train(shown, 4)
    shown.show(ROW)
    shown.close()
    assert (terminal.getvalue(), caplog.messages) == ("", [])


def said(run: Run) -> list[str]:
    """The lines of the introduction."""
    parameters = sum(p.numel() for p in run.stage.parameters())
    return list(
        introduction(
            run.config, run.stage, run._loader, parameters=parameters, choice=run.choice, folder=run.folder.path
        )
    )


def introduced(runtime: Runtime, flags: list[str]) -> list[str]:
    run = make_run(parse(flags), runtime)
    run.folder.close()
    return said(run)


@pytest.mark.processes
def test_the_introduction_says_what_runs_where(tmp_path: Path) -> None:
    flags = [*CONFIG, str(tmp_path / "run"), "--parallel.schedule", "streaming", "--parallel.microbatches", "2"]
    first, _ = run_ranks(introduced, 2, flags)
    found = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in first)
    assert found.pop("device").endswith("; gloo")
    assert re.fullmatch(r"simple_cnn, 8 refiners, [\d,]+ parameters", found.pop("network"))
    assert found == {
        "run folder": str(tmp_path / "run"),
        "data": "digits: 1,437 training and 360 test images, 10 classes",
        "training": "50 epochs of 6 steps, batch 256, sgd",
        "method": "sid, schedule streaming, extractor sharded, M = 2, staleness 1",
        "placement": "8 refiners on 2 ranks: 4, 4",
        "prediction": "told after the first steps",
    }


@pytest.mark.processes
def test_the_plans_prediction_is_in_the_introduction(tmp_path: Path) -> None:
    first, _ = run_ranks(introduced, 2, [*CONFIG, str(tmp_path / "run"), "--parallel.auto", "true"])
    (method,) = [line for line in first if line.startswith("method")]
    assert method.endswith(", chosen by the plan")
    number = r"[\d.]+ (us|ms|s)"
    assert re.fullmatch(rf"prediction  {number} a step, {number} an epoch, by the plan", first[-1])


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        (["--method", "local"], "local, one process"),
        (["--method", "bp"], "bp, one process"),
        (["--method", "ddp", "--parallel.microbatches", "4"], "ddp, one process, M = 4"),
        (["--parallel.refiner_execution", "stacked"], "sid, schedule fused, extractor sharded, M = 1, stacked"),
    ],
)
def test_one_process(flags: list[str], method: str, tmp_path: Path) -> None:
    lines = introduced(Runtime.single("cpu"), [*CONFIG, str(tmp_path / "run"), *flags])
    assert f"method      {method}" in lines
    assert "placement   8 refiners on 1 rank: 8" in lines


def test_accuracy_by_depth_fits_a_terminal() -> None:
    lines = list(accuracies([k / 100 for k in range(1, 25)]))
    assert len(lines) == 6
    assert max(map(len, lines)) <= 80
    assert lines[:2] == [
        "after refiner      1     2     3     4     5     6     7     8     9    10",
        "accuracy, %      1.0   2.0   3.0   4.0   5.0   6.0   7.0   8.0   9.0  10.0",
    ]
    assert lines[4].split()[2:] == ["21", "22", "23", "24"]


def test_what_comes_next() -> None:
    assert list(next_commands(Path("runs/a b"))) == [
        "run folder: runs/a b",
        "pictures:   python -m sidpar.plot 'runs/a b'",
        "predict:    python -m sidpar.predict 'runs/a b' IMAGE...",
        "compare:    python -m sidpar.plot 'runs/a b' ANOTHER_RUN...",
    ]
    assert how_to_resume(parse(["--run.dir", "x"]), Path("x")) == "the same command goes on"
    assert how_to_resume(parse([]), Path("runs/sid-1")) == "the same command goes on, with --run.dir runs/sid-1"


@pytest.mark.processes
def test_the_command_tells_all_of_it_in_order(tmp_path: Path) -> None:
    """In a pipe: lines of 80 columns, one for each log interval and each evaluation."""
    flags = ["--optim.epochs", "2", "--run.log_every", "3"]
    done = run_command(2, "-m", "sidpar.train", *CONFIG, str(tmp_path / "run"), *flags)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80, done.stdout
    kinds = [line.split("  ")[0] for line in lines]
    assert kinds[:8] == ["run folder", "network", "data", "training", "method", "placement", "device", "prediction"]
    rows = [re.sub(r"\d+\.\d+", "*", line) for line in lines if line.startswith("epoch")]
    assert [re.match(r"epoch \d/2  step +\d+  t\w+ \w+", row)[0] for row in rows] == [  # type: ignore[index]
        "epoch 1/2  step      3  train loss",
        "epoch 1/2  step      6  train loss",
        "epoch 1/2  step      6  test accuracy",
        "epoch 2/2  step      9  train loss",
        "epoch 2/2  step     12  train loss",
        "epoch 2/2  step     12  test accuracy",
    ]
    assert sum(line.startswith("by the first steps: ") for line in lines) == 1
    assert re.fullmatch(r"test accuracy [\d.]+ % after .* of training \(\d+ images/s\)", lines[-7])
    assert lines[-4:] == list(next_commands(tmp_path / "run"))
    assert "FutureWarning" not in done.stdout
    assert " |" not in done.stderr
