"""Pictures of runs: what is drawn from which rows, which samples are chosen, and every mistake."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image

from sidpar.analysis.samples import Samples, story, telling
from sidpar.data.datasets import load
from sidpar.errors import UsageError
from sidpar.plot import main
from sidpar.plots.curves import draw_curves, draw_depth, few
from sidpar.runs.record_reader import MAX_ROWS, Recorded
from sidpar.runs.run_folder import CONFIG, METRICS, WEIGHTS
from tests.training.test_train import SMALL, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of four refiners on digits; copies of it may be changed."""
    return train(1, tmp_path_factory.mktemp("plot") / "digits", *SMALL, "--optim.epochs", "2")


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("plots")))


def drawn(path: Path) -> bool:
    """Whether a picture is there and is not blank."""
    return len({tuple(pixel) for row in image.imread(path)[::5] for pixel in row[::5]}) > 10


def record(folder: Path, rows: list[dict[str, Any]]) -> Recorded:
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recorded.read(folder)


def row(kind: str, step: int, size: int = 3) -> dict[str, Any]:
    """Of `size` refiners; the numbers tell kind, step and refiner."""
    base = 1000 * (kind == "test") + step
    values = {name: [base + k + i / 100 for i in range(size)] for k, name in enumerate(("loss", "kl", "accuracy"))}
    rate = {"learning_rate": step / 8, "images_per_second": step * 2.0} if kind == "train" else {}
    return {"kind": kind, "step": step, "epoch": step // 2, **values, **rate}


@pytest.mark.processes
def test_pictures_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run)])
    assert capsys.readouterr().out == f"drawn: curves.png, depth.png, beliefs.png in {run / 'plots'}\n"
    assert all(drawn(run / "plots" / name) for name in ("curves.png", "depth.png", "beliefs.png"))


@pytest.mark.processes
def test_a_run_that_goes_on(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No weights yet, and a row that is being written."""
    (copy / WEIGHTS).unlink()
    with (copy / METRICS).open("a") as file:
        file.write('{"kind": "train", "st')
    main([str(copy), "--out", str(tmp_path / "out")])
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"no beliefs.png: run {copy} is not complete, it has no weights.safetensors")
    assert last == f"drawn: curves.png, depth.png in {tmp_path / 'out'}"
    assert drawn(tmp_path / "out" / "depth.png")

    record(copy, [row("train", 1)])
    main([str(copy), "--out", str(tmp_path / "begun")])
    assert "no depth.png: copy has no evaluation yet" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "begun").iterdir()] == ["curves.png"]


@pytest.mark.processes
def test_a_format_for_all_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--out", str(tmp_path), "--format", "svg"])
    assert capsys.readouterr().out == f"drawn: curves.svg, depth.svg, beliefs.svg in {tmp_path}\n"
    assert all(path.read_text().startswith("<?xml") for path in tmp_path.iterdir())


@pytest.mark.processes
def test_the_same_samples_of_the_same_network(run: Path, copy: Path, tmp_path: Path) -> None:
    for folder in (run, copy):
        main([str(folder), "--out", str(tmp_path / folder.name), "--samples", "3", "14"])
    first, second = (image.imread(tmp_path / folder.name / "beliefs.png") for folder in (run, copy))
    assert (first == second)[:-60].all(), "only the caption names another run"


@pytest.mark.processes
def test_a_run_that_was_resumed_on_another_number_of_ranks(copy: Path) -> None:
    """Its rows tell the memory of four ranks, then of two."""
    rows = [{**row("train", step), "memory_bytes": [2**20] * ranks} for step, ranks in ((2, 4), (4, 2), (6, 2))]
    run = record(copy, rows)
    assert run.rows["train"].steps.tolist() == [2, 4, 6]
    assert draw_curves(run).axes[0].lines


@pytest.mark.processes
def test_curves_show_the_rows(copy: Path) -> None:
    """Each measure of each refiner in its panel."""
    run = record(copy, [row(kind, step) for step in (2, 4, 6) for kind in ("train", "test")])
    axes = draw_curves(run).axes
    for place in (0, 1):
        for k, scale in enumerate((1, 1, 100)):
            lines = axes[2 * k + place].lines
            assert [list(line.get_xdata()) for line in lines] == [[2, 4, 6]] * 3
            expected = [[scale * (1000 * place + step + k + i / 100) for step in (2, 4, 6)] for i in range(3)]
            assert np.allclose([line.get_ydata() for line in lines], expected)
    assert [list(axes[6].lines[0].get_ydata()), list(axes[7].lines[0].get_ydata())] == [[0.25, 0.5, 0.75], [4, 8, 12]]


@pytest.mark.processes
def test_depth_begins_at_chance(copy: Path) -> None:
    """The first and the last evaluation are among the epochs."""
    run = record(copy, [row("test", step) for step in range(2, 42, 2)])
    figure = draw_depth(run, 5)
    accuracy, kl = figure.axes
    curves = [line for line in accuracy.lines if len(line.get_xdata()) == 4]
    assert list(curves[0].get_xdata()) == [0, 1, 2, 3]
    for curve, step in ((curves[0], 2), (curves[-1], 40)):
        assert np.allclose(curve.get_ydata(), [20, *(100 * (1002 + step + i / 100) for i in range(3))])
    assert np.allclose(kl.lines[-1].get_ydata(), [1041 + i / 100 for i in range(3)])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][:: len(curves) - 1] == ["epoch 1", "epoch 20"]
    accuracy, _ = draw_depth(run, None).axes
    assert list(accuracy.lines[0].get_xdata()) == [1, 2, 3]


@pytest.mark.processes
def test_a_rule_need_not_measure_kl(copy: Path) -> None:
    rows = [{name: value for name, value in row("test", step).items() if name != "kl"} for step in (2, 4)]
    figure = draw_depth(record(copy, rows), 5)
    assert not figure.axes[1].lines
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["epoch 1", "epoch 2"]


@pytest.mark.processes
def test_long_runs_are_thinned_out(copy: Path) -> None:
    """The last row is among those that are left, and a colour bar stands for 64 names."""
    run = record(copy, [row("train", step, size=64) for step in range(2 * MAX_ROWS + 1)])
    steps = run.rows["train"].steps
    assert MAX_ROWS // 2 < len(steps) <= MAX_ROWS + 1
    assert steps[-1] == 2 * MAX_ROWS
    assert set(np.diff(steps)) == {3}
    figure = draw_curves(run)
    assert not figure.legends
    assert figure.axes[-1].get_ylabel() == "after refiner"


@pytest.mark.processes
def test_null_is_a_gap(copy: Path) -> None:
    run = record(copy, [row("train", 2), {**row("train", 4), "loss": [1.0, None, 3.0], "learning_rate": None}])
    assert [math.isnan(x) for x in run.rows["train"].columns["loss"][1]] == [False, True, False]
    assert math.isnan(run.rows["train"].columns["learning_rate"][1])
    draw_curves(run)


def test_few_indices() -> None:
    assert few(1, 6) == [0]
    assert few(2, 6) == [0, 1]
    chosen = few(100, 6)
    assert (chosen[0], chosen[-1]) == (0, 99)
    assert len(chosen) == 6
    assert sorted(np.diff(chosen)) == list(np.diff(chosen))


BELIEFS = torch.tensor(  # [i, sample, class]; label 0
    [
        [[0.50, 0.50]] * 6,
        [[0.90, 0.10], [0.60, 0.40], [0.40, 0.60], [0.30, 0.70], [0.20, 0.80], [0.30, 0.70]],
        [[0.99, 0.01], [0.70, 0.30], [0.80, 0.20], [0.40, 0.60], [0.10, 0.90], [0.60, 0.40]],
        [[0.99, 0.01], [0.75, 0.25], [0.90, 0.10], [0.80, 0.20], [0.05, 0.95], [0.40, 0.60]],
    ]
)


def test_telling_samples() -> None:
    """Surely right; longest on the wrong way and then right; surely wrong."""
    labels = torch.zeros(6, dtype=torch.int64)
    samples = Samples(list(range(6)), torch.zeros(6, 1, 2, 2), labels, BELIEFS)
    assert telling(samples, 1) == [0, 3, 4]
    assert telling(samples, 2) == [0, 1, 3, 2, 4, 5]
    right = samples.pick([0, 1])
    assert telling(right, 1) == [0, 1], "none has changed its mind: the one that came slowly"
    stories = [story(BELIEFS[:, k], 0) for k in range(6)]
    assert stories == [
        *("right", "right", "right from refiner 2 on", "right from refiner 3 on"),
        *("wrong", "wrong"),
    ]


@pytest.mark.processes
def test_beliefs_of_wanted_samples(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The pictures are of these test images, in this order, as the weights file's network sees them."""
    shown: list[Any] = []
    monkeypatch.setattr("sidpar.plot.draw_predictions", lambda predictions, *_, **__: shown.extend(predictions))
    main([str(run), "--out", str(tmp_path), "--samples", "300", "0"])
    test = load("digits").test
    for prediction, index in zip(shown, (300, 0), strict=True):
        assert torch.allclose(prediction.image * 16, test.images[index].float(), atol=1e-4)
        assert prediction.beliefs.shape == (5, 10)
        assert torch.allclose(prediction.beliefs[0], torch.full((10,), 0.1))
        assert prediction.name.startswith(f"test image {index}\nlabel {int(test.labels[index])}\n")


def mistake(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a program that ends with exit code 2."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sidpar.plot: error: ")
    return line.removeprefix("sidpar.plot: error: ")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "3", "360"], "--samples 360 is not in the test set, which has 360 images: give 0..359"),
        (["--samples", "-1"], "--samples -1 is negative: the test set is numbered from 0"),
        (
            ["--out", "a.pdf"],
            "--out a.pdf is one picture, but a run has several: give a folder, and the format by --format pdf",
        ),
        (["--out", "{run}/config.yaml"], "--out {run}/config.yaml cannot be made: File exists"),
    ],
    ids=["range", "negative", "picture", "out"],
)
def test_mistakes(flags: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake([str(run), *(flag.format(run=run) for flag in flags)], capsys) == message.format(run=run)


LINE = json.dumps(row("train", 1)) + "\n"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows yet: the first one is written after run.log_every steps"),
        (LINE[:30], "has no rows yet"),
        (LINE + LINE[:40] + "\n" + LINE, "line 2, is not JSON"),
        (LINE + "\0\0\n", "line 2, is not JSON"),
        (LINE + "7\n", "line 2, is not JSON"),
        (LINE + '{"kind": "test", "step": 3}\n', "line 2, has no kind, step and epoch: repair or remove this line"),
        (
            LINE + json.dumps(row("train", 2, size=4)) + "\n",
            "line 2, has other measures or another number of refiners than the lines before it: repair or",
        ),
    ],
    ids=["empty", "begun", "cut", "zeros", "number", "keys", "refiners"],
)
def test_broken_metrics(text: str, message: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / METRICS).write_text(text)
    line = mistake([str(copy)], capsys)
    assert line.startswith(str(copy / METRICS))
    assert message in line


@pytest.mark.processes
def test_no_metrics_and_no_settings(copy: Path) -> None:
    (copy / METRICS).unlink()
    with pytest.raises(UsageError, match=r"cannot be read \(No such file or directory\): the run has not measured"):
        Recorded.read(copy)
    (copy / CONFIG).write_text("optim: {lr: fast}")
    with pytest.raises(UsageError, match=r"config.yaml cannot be read: .*lr"):
        Recorded.read(copy)
