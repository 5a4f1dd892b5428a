"""`sidpar.plot` with several runs: one picture, its place and format, and every mistake."""

from pathlib import Path

import pytest

from sidpar.plot import main
from sidpar.runs.run_folder import CONFIG
from tests.commands.test_plot import copy, drawn, mistake, record, row, run

__all__ = ["copy", "run"]  # fixtures


@pytest.mark.processes
def test_runs_are_laid_over_each_other(
    run: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a picture of any format, in a folder, or here."""
    monkeypatch.chdir(tmp_path)
    for flags, path in (
        ([], "comparison.png"),
        (["--out", "new/a.png"], "new/a.png"),
        (["--out", "b.png", "--format", "png"], "b.png"),
        (["--out", "folder"], "folder/comparison.png"),
    ):
        main([str(run), str(copy), str(run), *flags])
        assert capsys.readouterr().out == f"drawn: {path}\n"
        assert drawn(tmp_path / path)
    main([str(run), str(copy), "--out", "c.pdf"])
    main([str(run), str(copy), "--format", "pdf"])
    assert (tmp_path / "c.pdf").read_bytes() == (tmp_path / "comparison.pdf").read_bytes()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "3"], "--samples chooses test samples of one run, but 2 are compared: remove it"),
        (["--out", "a.jpg"], "a.jpg cannot be drawn as .jpg: give a path that ends in .png, .pdf or .svg"),
        (["--out", "a.pdf", "--format", "svg"], "--out a.pdf and --format svg contradict each other: remove one"),
        (["nowhere"], "there is no run folder nowhere"),
    ],
    ids=["samples", "suffix", "format", "nowhere"],
)
def test_mistakes_in_comparing(
    flags: list[str], message: str, run: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mistake([str(run), str(copy), *flags], capsys) == message


@pytest.mark.processes
def test_a_run_that_was_never_evaluated_is_not_compared(
    run: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(copy, [row("train", 1)])
    assert mistake([str(run), str(copy), "--out", str(tmp_path / "a.png")], capsys) == (
        f"run {copy} was never evaluated, so there is nothing to compare: leave it out, or wait for its first "
        "evaluation (run.eval_every=1 epoch)"
    )
    (copy / CONFIG).unlink()
    assert f"{copy} is not a run folder" in mistake([str(run), str(copy)], capsys)
    assert not (tmp_path / "a.png").exists()
