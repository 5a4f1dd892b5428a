"""What MkDocs calls while it builds: puts the committed results beside the pages, so that these can show them."""

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("", "docs", "profiling")]  # before the macros are imported

SHOWN = (".png", ".json", ".txt")
NOT_FOUND = "---\nsearch:\n  exclude: true\n---\n\n"
"""Before a report in Markdown, which is linked as a page: the search is for the pages of the navigation."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All of `profiling/results`, under that name."""
    for path in sorted((ROOT / "profiling" / "results").rglob("*")):
        name, kind = path.relative_to(ROOT).as_posix(), InclusionLevel.NOT_IN_NAV
        if path.suffix in SHOWN:
            files.append(File.generated(config, name, abs_src_path=str(path), inclusion=kind))
        elif path.suffix == ".md":
            files.append(File.generated(config, name, content=NOT_FOUND + path.read_text(), inclusion=kind))
    return files
