"""The README's examples run as printed, its tables are those of the committed results, its file tree is complete."""

import ast
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import sidpar
from sidpar.predict import main as predict_main
from sidpar.train import main as train_main
from tests import networks
from tests.harness import ROOT, run_command, torchrun

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "profiling" / "results"


def block(sign: str) -> str:
    """The one block of Python that holds some text."""
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if sign in code]
    return str(found)


def examples() -> list[str]:
    """The library example, and the same with the lines that stream."""
    example, streaming = block("sidpar.ParallelEngine(stage, sidpar.Objective("), block("sidpar.StreamingEngine(")
    before, loop = example.split("    engine = ")
    after = loop[loop.index("    result = engine.evaluate") :]
    return [example, before + textwrap.indent(streaming, "    ") + after]


def test_the_rule_of_ones_own_learns() -> None:
    stage = sidpar.Stage(networks.plain(3), sidpar.Runtime.single("cpu"))
    names = {"sidpar": sidpar, "stage": stage}
    exec(block("class Squares("), names)
    engine: Any = names["engine"]
    x, y = networks.batch(32)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        losses.append(float(engine.step(x, y).loss.sum()))
        optimizer.step()
    assert losses == sorted(losses, reverse=True)


def test_every_file_that_the_readme_names_exists() -> None:
    """Files of the project, that is: those of a user's own stand for any."""
    own, folders = {"mynet.py", "config.yaml"}, ("", "sidpar", "tests", "launch")
    for name in set(re.findall(r"`([\w./-]+\.(?:py|sh|sbatch|yaml))`", README)) - own:
        assert any((ROOT / folder / name).exists() for folder in folders), name


@pytest.mark.processes
@pytest.mark.parametrize(("ranks", "k"), [(1, 0), (4, 0), (4, 1)])
def test_the_library_example_runs(ranks: int, k: int, tmp_path: Path) -> None:
    """Modules, data and optimizer of one's own; the ranks print what their refiners have learned."""
    script = tmp_path / "example.py"
    script.write_text(examples()[k])
    done = run_command(ranks, str(script))
    assert done.returncode == 0, done.stderr
    # Two ranks may write at the same moment, and so on one line.
    found = re.findall(r"rank (\d): refiners \[[^]]*\], accuracy \[([^]]*)\]", done.stdout)
    assert sorted(rank for rank, _ in found) == [str(rank) for rank in range(ranks)]
    assert min(float(accuracy) for _, numbers in found for accuracy in numbers.split(", ")) > 0.9


@pytest.mark.processes
@pytest.mark.parametrize("ranks", [1, 4])
def test_the_builder_example_runs(ranks: int, tmp_path: Path) -> None:
    """In a folder of its own, by the command as printed, which names 4 ranks."""
    (tmp_path / "mynet.py").write_text(block("def build("))
    (command,) = re.findall(r"torchrun --standalone --nproc_per_node=4 (-m sidpar.train --model.builder .*)", README)
    done = (torchrun if ranks > 1 else run_command)(ranks, *command.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"8 refiners on {ranks} ranks" in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    accuracies = json.loads((folder / "summary.json").read_text())["refiner_test_accuracy"]
    assert min(accuracies) > 0.8


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
