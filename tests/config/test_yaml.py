"""Configuration files as people write them, and what they get wrong."""

from pathlib import Path

import pytest
import yaml

from sidpar.config.command_line import from_yaml, to_yaml
from sidpar.errors import UsageError
from sidpar.train import parse


def read(text: str, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_whole_numbers_may_have_an_exponent(tmp_path: Path) -> None:
    optim = parse(["--config", str(read("optim: {epochs: 1e2, lr: 1e-2, clip: 2e0}", tmp_path))]).optim
    assert (optim.epochs, optim.lr, optim.clip) == (100, 0.01, 2.0)
    assert isinstance(optim.epochs, int)


@pytest.mark.parametrize("text", ["010", "1:30", "0x10", "0b1", "1_000", "-010", "1:30.5", "'7'", "1 000"])
def test_texts_that_others_take_for_numbers(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """YAML 1.1 makes 8 of 010, and 90 of 1:30. In a file and on the command line alike."""
    file = read(f"data:\n  batch_size: {text}", tmp_path)
    for arguments in (["--config", str(file)], ["--data.batch_size", text]):
        with pytest.raises(SystemExit):
            parse(arguments)
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"data.batch_size: expected int, got {text.strip(chr(39))}" in last


@pytest.mark.parametrize(("text", "number"), [("1e2", 100), ("+12", 12), ("0", 0), ("2E3", 2000)])
def test_a_number_is_the_same_on_the_command_line(text: str, number: int, tmp_path: Path) -> None:
    file = read(f"run: {{seed: {text}}}", tmp_path)
    assert parse(["--run.seed", text]).run.seed == parse(["--config", str(file)]).run.seed == number


@pytest.mark.parametrize("name", ["1e2", "010", "1:30", "5", "0x10", "yes", "2026-11-28", "null"])
def test_a_run_folder_keeps_names_that_look_like_something_else(name: str) -> None:
    written = to_yaml(parse(["--run.name", name]))
    assert from_yaml(written).run.name == name
    assert yaml.safe_load(written)["run"]["name"] == name, "also to those who read YAML 1.1"


def test_keys_that_hold_anchors_are_left_out(tmp_path: Path) -> None:
    text = """
        x-fast: &fast {lr: 0.5, epochs: 3}
        _other: [&seed 7]
        optim:
          <<: *fast
          epochs: 4
        run: {seed: *seed}
    """
    config = parse(["--config", str(read(text, tmp_path))])
    assert (config.optim.lr, config.optim.epochs, config.run.seed) == (0.5, 4, 7)


def test_what_is_merged_may_be_given_again(tmp_path: Path) -> None:
    text = """
        x-first: &first {lr: 0.5, clip: 1.0}
        x-others: {second: &second {<<: *first, lr: 0.25}}
        optim: {<<: *second, clip: 2.0}
    """
    optim = parse(["--config", str(read(text, tmp_path))]).optim
    assert (optim.lr, optim.clip) == (0.25, 2.0)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00", b"optim: {lr: \x01}"])
def test_a_file_that_is_no_text(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(SystemExit):
        parse(["--config", str(path)])
    assert "config.yaml: " in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.yaml: expected settings by name, such as optim: {lr: 0.001}, got nothing"),
        ("3", "config.yaml: expected settings by name, such as optim: {lr: 0.001}, got 3"),
        ("- a\n- b", "config.yaml: expected settings by name, such as optim: {lr: 0.001}, got ['a', 'b']"),
        ("optim: 3", "config.yaml: optim: expected settings by name, such as optim.name, got 3"),
        ("optim: null", "config.yaml: optim: expected settings by name, such as optim.name, got null"),
        ("optim:\n- lr", "config.yaml: optim: expected settings by name, such as optim.name, got ['lr']"),
        ("optim: fast", "config.yaml: optim: expected settings by name, such as optim.name, got 'fast'"),
        ("optim: {lr: null}", "optim.lr: expected float, got null"),
        ("optim:\n  lr: 0,1", "optim.lr: expected float, got 0,1: write 0.1, with a decimal point, not a comma"),
        (
            "optim: {lr: 0,1}",
            "but 1 is not a name; a number has a decimal point, not a comma",
        ),
        ("optim: {lr: '0.1'}", "optim.lr: expected float, got 0.1, a string: write it without quotes"),
        ("data: {workers: many}", "data.workers: expected int or null, got many"),
        ("parallel: {placement: [010, 2]}", "parallel.placement: expected int, got 010"),
        ("optim: {lr: [1, 2]}", "optim.lr: expected float, got [1, 2]"),
        ("optim: {lr: {a: 1}}", "optim.lr: expected float, got {'a': 1}"),
        ("run: {name: [1]}", "run.name: expected str, got [1]"),
        ("model: {options: 3}", "model.options: expected dict or null, got 3"),
        ("objective: {options: [1]}", "objective.options: expected dict or null, got [1]"),
        ("method: null", "method: expected str, got null"),
        ("method: [1]", "method: expected str, got [1]"),
        ("nothing: 3", "Option 'nothing' is not accepted"),
        ("optim: {speed: 3}", "Group 'optim' does not accept option 'speed'"),
        ("optim: {lr: 1}\nrun: {}\noptim: {lr: 2}", "config.yaml: optim is given twice, in line 1 and in line 3: remo"),
        ("optim:\n  lr: 1\n  lr: 1", "config.yaml: lr is given twice, in line 2 and in line 3: remove one"),
        ("optim: {lr: 1, lr: 1}", "config.yaml: lr is given twice, in line 1 and in line 1: remove one"),
        ("? [a, b]\n: 3", "config.yaml: line 1, column 3: found unhashable key"),
        ("optim: &a {lr: 1}\nrun: *b", "config.yaml: line 2, column 6: found undefined alias 'b'"),
        ("optim: [", "config.yaml: line 1, column 9: expected the node content, but found '<stream end>'"),
        ("parallel: {step_timeout: .inf}", "parallel.step_timeout must be a finite number, got inf: give a large"),
        ("parallel: {schedule: slow}", "parallel.schedule: expected one of 'two_phase', 'fused', 'streaming', 'naive'"),
    ],
)
def test_one_line_says_what_is_wrong(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--config", str(read(text, tmp_path))])
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_a_group_given_as_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--optim", "3"])
    assert "optim" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_run_folders_configuration_is_checked_alike() -> None:
    with pytest.raises(UsageError, match="optim: expected settings by name, such as optim.name, got null"):
        from_yaml("optim: null")
    with pytest.raises(UsageError, match="lr: expected float, got fast"):
        from_yaml("optim: {lr: fast}")
