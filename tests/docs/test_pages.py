"""What pages print works: commands are understood, settings exist, code runs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sidpar import plan, plot, predict
from sidpar.config.schema import Config
from sidpar.train import main as train
from sidpar.train import parse
from tests.harness import ROOT

PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
SETTINGS = set(Config().flat())
GROUPS = {key.split(".")[0] for key in SETTINGS}
HELP = {f"{group}.help" for group in GROUPS}


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Page and code of every block in a language."""
    for name, text in TEXTS.items():
        yield from ((name, code) for code in re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def commands(program: str) -> list[list[str]]:
    """The arguments of every printed command that starts a program of sidpar."""
    found = []
    for _, code in blocks("bash"):
        for line in code.splitlines():
            words = shlex.split(line.rstrip("& "), comments=True)
            if f"sidpar.{program}" in words and "..." not in words:
                found.append(words[words.index(f"sidpar.{program}") + 1 :])
    return found


@pytest.mark.parametrize("arguments", [c for c in commands("train") if "--help" not in c], ids=" ".join)
def test_settings_of_a_printed_command_are_taken(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parse(arguments)


@pytest.mark.parametrize(("program", "least"), [("plan", 2), ("predict", 2), ("plot", 3)])
def test_flags_of_the_other_commands_are_taken(program: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    printed = [arguments for arguments in commands(program) if arguments]
    assert len(printed) >= least
    for arguments in printed:
        {"plan": plan, "predict": predict, "plot": plot}[program]._parser().parse_args(arguments)


def test_yaml_is_taken(tmp_path: Path) -> None:
    printed = list(blocks("yaml"))
    assert len(printed) >= 2
    for _, code in printed:
        (tmp_path / "page.yaml").write_text(code)
        parse(["--config", str(tmp_path / "page.yaml")])


@pytest.mark.parametrize("name", TEXTS)
def test_settings_exist(name: str) -> None:
    """Each `group.key` between backticks, and each flag; a group's help is a flag, too."""
    named = re.findall(r"`(?:--)?([a-z]+\.[a-z_]+)(?:[ :=][^`]*)?`", TEXTS[name])
    assert {key for key in named if key.split(".")[0] in GROUPS and not is_a_file(key)} <= SETTINGS | HELP


def is_a_file(name: str) -> bool:
    return name.endswith((".py", ".json", ".md", ".yaml"))


@pytest.mark.parametrize("name", TEXTS)
def test_files_exist(name: str) -> None:
    """Files of the project that are named by their path."""
    for path in re.findall(r"`((?:sidpar|tests|profiling|examples|configs|launch|docs)/[\w./-]+)`", TEXTS[name]):
        assert (ROOT / path).exists(), path


def test_code_is_python() -> None:
    """Where a page does not include a file."""
    printed = [code for _, code in blocks("python") if not code.startswith("--8<--")]
    assert len(printed) >= 3
    for code in printed:
        compile(code, "page", "exec")


@pytest.mark.processes
def test_getting_started_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images as printed, their prediction by command and in Python; they stand beside a run of a moment."""
    monkeypatch.chdir(tmp_path)
    short = ["--config", str(ROOT / "configs" / "digits.yaml"), "--run.dir", "runs/digits", "--optim.epochs", "1"]
    train([*short, "--parallel.device", "cpu", "--run.tensorboard", "false"])
    images, from_python = [code for name, code in blocks("python") if name == "docs/start.md"]
    exec(images, {})
    (command,) = [line for line in TEXTS["docs/start.md"].splitlines() if line.startswith("python -m sidpar.predict ")]
    predict.main(shlex.split(command)[3:])
    assert len(list(Path("runs/digits/predictions").glob("*.png"))) == 4
    names: dict[str, Any] = {}
    exec(from_python, names)
    assert names["beliefs"].shape == (9, 1, 10)
    torch.testing.assert_close(names["beliefs"].sum(-1), torch.ones(9, 1))
