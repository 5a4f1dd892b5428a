"""The README's library example runs as printed, and its file tree is complete."""

import re
from pathlib import Path

import pytest

from tests.harness import ROOT, torchrun

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("ranks", [1, 4])
def test_the_library_example_runs(ranks: int, tmp_path: Path) -> None:
    blocks: list[str] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 1
    script = tmp_path / "example.py"
    script.write_text(blocks[0])
    done = torchrun(ranks, str(script))
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"rank (\d): refiners", done.stdout)) == [str(rank) for rank in range(ranks)]


def test_the_file_tree_names_every_file() -> None:
    tree = README.split("## Where things are")[1].split("## Contributing")[0]
    for path in (ROOT / "sidpar").rglob("*.py"):
        name = str(path.relative_to(ROOT / "sidpar"))
        described = name if name.split("/")[0] not in ("models", "data") else f"{name.split('/')[0]}/"
        assert path.name == "__init__.py" or f" {described} " in tree, f"{name} is missing from the README's tree"
