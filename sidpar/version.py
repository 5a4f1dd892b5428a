"""The version, also read by pyproject.toml, and the commit of the source."""

import subprocess
from pathlib import Path

__version__ = "0.1.0"
"""The version of sidpar."""


def source_commit() -> str | None:
    """The commit of sidpar's source tree, with `+` where it has uncommitted changes; None outside of a checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "--verify", "--quiet", "HEAD")
    changed = git("status", "--porcelain", "--", ".", ":!profiling/results")  # results are not part of the program
    return f"{commit}+" if commit and changed else commit or None
