"""Help on one screen, and every setting's own help behind it."""

import re
from collections.abc import Callable, Sequence

import pytest

from sidpar.config.schema import Config
from sidpar.plan import main as plan
from sidpar.train import parse

GROUPS = sorted({name.split(".")[0] for name in Config().flat() if "." in name})
SCREEN = (24, 80)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(SCREEN[1]))


@pytest.fixture
def help_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines that a program prints before it ends with exit code 0."""

    def lines(program: Callable[[Sequence[str]], object], *flags: str) -> list[str]:
        with pytest.raises(SystemExit) as ended:
            program(list(flags))
        assert ended.value.code == 0
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.mark.parametrize(("program", "more"), [(parse, 0), (plan, 16)], ids=["train", "plan"])
def test_the_overview_fits_a_screen(
    program: Callable[..., object], more: int, help_of: Callable[..., list[str]]
) -> None:
    """With room for the command and the next prompt; plan has more arguments of its own."""
    found = help_of(program, "--help")
    assert max(map(len, found)) <= SCREEN[1]
    assert len(found) <= SCREEN[0] - 2 + more
    text = "\n".join(found)
    assert [name for name in GROUPS if f"--{name}.help " not in text] == []
    assert "--method.help " in text
    assert "--optim.lr " not in text
    assert help_of(program, "-h") == found


def test_the_setting_without_a_group(help_of: Callable[..., list[str]]) -> None:
    found = help_of(parse, "--method.help")
    assert found[:2][0] == "How the network learns:"
    assert "ddp: data-parallel" in " ".join(" ".join(found).split())
    assert "--optim" not in "".join(found)


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_explains_its_settings(name: str, help_of: Callable[..., list[str]]) -> None:
    found = help_of(parse, f"--{name}.help")
    assert max(map(len, found)) <= SCREEN[1]
    shown = set(re.findall(r"^  --([a-z_.0-9]+)", "\n".join(found), re.MULTILINE))
    own = {key for key in Config().flat() if key.startswith(f"{name}.")}
    assert own <= shown
    assert {key for key in shown if "." in key} == own


def test_everything_at_once(help_of: Callable[..., list[str]]) -> None:
    text = "\n".join(help_of(parse, "--help.all"))
    assert [key for key in Config().flat() if f"--{key} " not in text] == []
    assert "--print_config" in text
    assert "Largest gradient norm" in " ".join(text.split()), "settings are explained by their docstrings"
    assert "--ranks" in "\n".join(help_of(plan, "--help.all"))


def test_a_group_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--optimizer.help"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --optimizer.help" in capsys.readouterr().err
