"""Runs laid over each other: which values are drawn, in whose colours, under which names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from sidpar.config.schema import Config
from sidpar.methods import complete
from sidpar.plots.comparison import draw_comparison, looks_of
from sidpar.plots.style import METHODS, series
from sidpar.runs.record_reader import MetricRows, Recorded
from sidpar.train import parse


def run(
    name: str, *flags: str, refiners: int = 3, evaluations: int = 4, first: float = 0.1, kl: bool = True
) -> Recorded:
    """One with rows that tell evaluation and refiner."""
    steps = np.arange(1, evaluations + 1)
    values = first + 0.01 * steps[:, None] + 0.001 * np.arange(refiners)
    columns = {"accuracy": values, "loss": values} | ({"kl": 1 / values} if kl else {})
    config = parse([*flags, "--model.num_refiners", str(refiners)])
    return Recorded(Path(name), config, {"test": MetricRows(6.0 * steps, 1.0 * steps, columns)})


BP = ["--method", "bp"]
DDP = ["--method", "ddp"]
STREAM = ["--parallel.schedule", "streaming"]


def test_by_epoch_and_by_depth() -> None:
    """The last refiner over epochs; all of them at the last evaluation, from a guess on."""
    figure = draw_comparison([run("a"), run("b", *BP, refiners=5, evaluations=2)], [10, None])
    accuracy, accuracy_by_depth, kl, kl_by_depth = figure.axes
    first, second = accuracy.lines
    assert np.allclose(first.get_xdata(), [1, 2, 3, 4])
    assert np.allclose(first.get_ydata(), [11.2, 12.2, 13.2, 14.2])
    assert np.allclose(second.get_ydata(), [11.4, 12.4])
    first, second, chance = accuracy_by_depth.lines
    assert np.allclose([first.get_xdata(), first.get_ydata()], [[0, 1, 2, 3], [10, 14, 14.1, 14.2]])
    assert np.allclose(second.get_xdata(), [1, 2, 3, 4, 5])
    assert set(chance.get_ydata()) == {10}
    assert np.allclose(kl.lines[0].get_ydata(), 1 / np.array([0.112, 0.122, 0.132, 0.142]))
    assert np.allclose(kl_by_depth.lines[1].get_ydata(), 1 / (0.12 + 0.001 * np.arange(5)))


def test_a_rule_that_measures_no_kl() -> None:
    """It is left out, and where none does, the row is."""
    figure = draw_comparison([run("a", kl=False), run("b")], [10, 10])
    assert [len(axes.lines) for axes in figure.axes] == [2, 3, 1, 1]
    assert len(draw_comparison([run("a", kl=False), run("b", kl=False)], [10, 10]).axes) == 2


def test_different_methods_have_their_colours() -> None:
    runs = [run("stream", *STREAM), run("pipe", *BP), run("whole", *DDP)]
    assert looks_of(runs) == [METHODS[name] for name in ("SID streaming", "BP pipeline", "DDP")]
    drawn = [to_hex(line.get_color()).upper() for line in draw_comparison(runs, [10] * 3).axes[0].lines]
    assert drawn == ["#D55E00", "#0072B2", "#009E73"]
    assert looks_of([*runs, run("again", *BP)]) == [series(k) for k in range(4)], "two of them are of one method"


def labels(runs: list[Recorded]) -> tuple[str, list[str]]:
    """What is said above and below."""
    figure = draw_comparison(runs, [10] * len(runs))
    (legend,) = figure.legends
    return figure.get_suptitle(), [text.get_text() for text in legend.get_texts()]


def test_what_runs_have_in_common_is_said_once() -> None:
    title, names = labels([run("a", *STREAM), run("b", *BP, "--optim.lr", "0.5"), run("c", *DDP)])
    assert title == "3 runs: simple_cnn, 3 refiners, digits, batch 128, seed 0"
    rate = "adam with learning rate 0.001"
    assert names == [f"a: sid streaming, {rate}", "b: bp 1f1b, adam with learning rate 0.5", f"c: ddp, {rate}"]
    title, names = labels([run("x/a"), run("y/a")])
    assert title.startswith("2 runs: sid fused, ")
    assert names == ["x/a", "y/a"], "by their paths, where folders have the same name"


@pytest.mark.parametrize("evaluations", [1, 40])
def test_few_and_many_evaluations(evaluations: int) -> None:
    """One alone is marked, many are not."""
    (line, _) = draw_comparison([run("a", evaluations=evaluations), run("b")], [10, 10]).axes[0].lines
    assert (line.get_marker() == "") == (evaluations == 40)


def test_settings_may_be_incomplete() -> None:
    """As those of a run by the library."""
    config = complete(replace(Config()))
    assert "sid" in Recorded(Path("a"), config, {}).traits["method"]
