"""The README's examples run as printed, its tables are those of the committed results, its file tree is complete."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import sidpar
from sidpar.predict import main as predict_main
from sidpar.train import main as train_main
from tests.harness import ROOT

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "profiling" / "results"


def block(sign: str) -> str:
    """The one block of Python that holds some text."""
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if sign in code]
    return str(found)


def test_every_file_that_the_readme_names_exists() -> None:
    """Files of the project, that is: those of a user's own stand for any."""
    own, folders = {"mynet.py", "config.yaml"}, ("", "sidpar", "tests", "launch")
    for name in set(re.findall(r"`([\w./-]+\.(?:py|sh|sbatch|yaml))`", README)) - own:
        assert any((ROOT / folder / name).exists() for folder in folders), name


@pytest.mark.processes
def test_the_inference_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images as printed, through the three lines; they stand beside a run of a moment."""
    monkeypatch.chdir(tmp_path)
    train = ["--config", str(ROOT / "configs" / "digits.yaml"), "--run.dir", "runs/digits", "--optim.epochs", "1"]
    train_main([*train, "--parallel.device", "cpu"])
    names: dict[str, Any] = {}
    exec(block("from PIL import Image"), names)
    names |= {"sidpar": sidpar, "images": torch.from_numpy(names["images"].numpy()[:, None] * 16 / 255)}
    exec(block("sidpar.load("), names)
    assert names["beliefs"].shape == (9, 360, 10)
    (command,) = re.findall(r"python -m sidpar.predict (runs/.*)", README)
    (tmp_path / "docs").mkdir()
    predict_main(command.split())
    assert (tmp_path / "docs" / "predict.png").stat().st_size > 10_000


def test_the_tree_names_every_package_in_its_own_words() -> None:
    tree = " ".join(README.split("## Where things are")[1].split("## Contributing")[0].split())
    for init in (ROOT / "sidpar").rglob("*/__init__.py"):
        summary = str(ast.get_docstring(ast.parse(init.read_text()))).splitlines()[0]
        assert f" {init.parent.relative_to(ROOT / 'sidpar')}/ {summary} " in tree
    for path in [*(ROOT / "sidpar").glob("*.py"), *(ROOT / "profiling").glob("*.py")]:
        assert path.name == "__init__.py" or path.name in tree, f"{path.name} is missing from the README's tree"


def test_pictures_are_there() -> None:
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", README):
        assert (ROOT / picture).stat().st_size > 10_000, picture
