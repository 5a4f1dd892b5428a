"""What all pictures share: whole files, names as they are; and which runs `sidpar.plot` draws under which names."""

import shutil
from pathlib import Path

import pytest
import torch
from matplotlib import image
from matplotlib.figure import Figure

from sidpar.errors import StorageError, UsageError
from sidpar.plot import main
from sidpar.plots.beliefs import Prediction, draw_beliefs, draw_predictions
from sidpar.plots.comparison import draw_comparison
from sidpar.plots.pictures import free_name, is_picture, save_picture
from sidpar.runs.record_reader import Recorded
from tests.data.image_files import no_room
from tests.training.test_train import SMALL, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of four refiners on digits: not to be written to, but for its pictures."""
    return train(1, tmp_path_factory.mktemp("pictures") / "digits", *SMALL, "--optim.epochs", "1")


def copy(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to, ignore=shutil.ignore_patterns("plots")))


def drawn(path: Path) -> bool:
    """Whether a picture is there and is not blank."""
    return len({tuple(pixel) for row in image.imread(path)[::5] for pixel in row[::5]}) > 10


def figure() -> Figure:
    figure = Figure()
    figure.add_subplot().plot([0, 1], [0, 1])
    return figure


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "old.png").write_text("of an earlier time")
    for name in ("old.png", "new.png"):
        with no_room(), pytest.raises(StorageError, match=rf"{name} cannot be written \(File too large\): free space"):
            save_picture(figure(), tmp_path / name)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of an earlier time"]


@pytest.mark.parametrize(("suffix", "beginning"), [("png", b"\x89PNG"), ("PDF", b"%PDF"), ("svg", b"<?xml")])
def test_the_suffix_is_the_format(suffix: str, beginning: bytes, tmp_path: Path) -> None:
    """And the same picture is the same file, whenever it is drawn."""
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        save_picture(figure(), path)
    first, second = (path.read_bytes() for path in paths)
    assert first.startswith(beginning)
    assert first == second


def test_fonts_are_embedded(tmp_path: Path) -> None:
    """As outlines that journals accept: Type 42, not Type 3."""
    save_picture(figure(), tmp_path / "a.pdf")
    content = (tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "eps", "gif", "tiff"])
def test_other_formats_are_refused(suffix: str, tmp_path: Path) -> None:
    for check in (is_picture, lambda path: save_picture(figure(), path)):
        with pytest.raises(
            UsageError, match=rf"a\.{suffix} cannot be drawn as \.{suffix.lower()}: give a path that ends"
        ):
            check(tmp_path / f"a.{suffix}")
    assert not list(tmp_path.iterdir())


def test_what_is_no_picture_is_a_folder(tmp_path: Path) -> None:
    assert [is_picture(Path(name)) for name in ("a", "a.v2", "a.b/c", "a.png", "a.SVG")] == [False] * 3 + [True] * 2
    with pytest.raises(UsageError, match=r"a does not say how to draw: give a path that ends in .png, .pdf or .svg"):
        save_picture(figure(), tmp_path / "a")


def test_a_picture_that_may_not_be_written_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its permissions do not bind root, for whom they are played."""

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "old.png").write_text("of an earlier time")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=r"old.png cannot be written \(Permission denied\): free space"):
        save_picture(figure(), tmp_path / "old.png")
    monkeypatch.undo()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of an earlier time"]


def test_a_link_goes_on_leading_to_the_picture(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "elsewhere.PNG")
    save_picture(figure(), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert drawn(tmp_path / "elsewhere.PNG")


@pytest.mark.processes
@pytest.mark.parametrize("name", ["curves.png", "depth.png", "beliefs.png"])
def test_a_picture_that_cannot_be_written(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(run, tmp_path / "run")
    (folder / "plots" / name).mkdir(parents=True)
    with pytest.raises(SystemExit) as end:
        main([str(folder)])
    assert end.value.code == 1
    error = (
        f"sidpar.plot: error: {folder / 'plots' / name} cannot be written (Is a directory): free space there, or make"
    )
    assert capsys.readouterr().err.startswith(error)


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Of files, classes and runs: not as formulas, which these would not be; `_` does not hide a class."""
    names = ["_none", "$^^$", r"a\$b"]
    beliefs = torch.tensor([[1 / 3] * 3, [0.2, 0.5, 0.3]])
    axes = Figure().add_subplot()
    draw_beliefs(axes, beliefs, names)
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["$^^$  50.0 %", r"a\$b  30.0 %", "_none  20.0 %"]
    prediction = Prediction("$^^$", torch.zeros(3, 4, 4), beliefs)
    draw_predictions([prediction], names, tmp_path / "classes.png", top=3, caption="run $^^$")
    assert drawn(tmp_path / "classes.png")


@pytest.mark.processes
def test_names_of_runs_are_drawn_as_they_are(run: Path, tmp_path: Path) -> None:
    """In titles and in a legend, which leaves none out."""
    names = ["a_$5_$10", "_b$^^$"]
    folders = [copy(run, tmp_path / name) for name in names]
    main([str(folders[1])])
    assert drawn(folders[1] / "plots" / "curves.png")
    runs = [Recorded.read(folder) for folder in folders]
    comparison = draw_comparison(runs, [10, 10])
    save_picture(comparison, tmp_path / "comparison.png")
    assert drawn(tmp_path / "comparison.png")
    (legend,) = comparison.legends
    assert [text.get_text() for text in legend.get_texts()] == names


@pytest.mark.processes
def test_a_run_is_drawn_once(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By whatever names it is given."""
    (tmp_path / "link").symlink_to(run)
    main([str(run), str(tmp_path / "link"), str(run)])
    assert capsys.readouterr().out == f"drawn: curves.png, depth.png, beliefs.png in {run / 'plots'}\n"


def test_free_names() -> None:
    taken: list[str] = []
    for _ in range(3):
        taken.append(free_name("a", taken))
    assert taken == ["a.png", "a-2.png", "a-3.png"]
