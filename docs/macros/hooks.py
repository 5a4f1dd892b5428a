"""What MkDocs calls while it builds: puts the committed results beside the pages, and links those that pages name."""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
AS_THEY_ARE = (".png", ".json", ".txt")
REPORTS = ("report.md", "projection.md")
NOT_FOUND = "---\nsearch:\n  exclude: true\n---\n\n"
"""Before a report in Markdown, which is a page of its own: the search is for the pages of the navigation."""


def on_startup(command: str, dirty: bool) -> None:
    """The macros and what they use can be imported."""
    sys.path[:0] = [str(ROOT / folder) for folder in ("", "docs", "profiling")]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All of `profiling/results`, under that name."""
    for path in sorted((ROOT / "profiling" / "results").rglob("*")):
        name, kind = path.relative_to(ROOT).as_posix(), InclusionLevel.NOT_IN_NAV
        if path.suffix in AS_THEY_ARE:
            files.append(File.generated(config, name, abs_src_path=str(path), inclusion=kind))
        elif path.suffix == ".md":
            files.append(File.generated(config, name, content=NOT_FOUND + path.read_text(), inclusion=kind))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """`profiling/results/NAME` in a text leads to that file, or to the report of that folder."""

    def linked(found: re.Match[str]) -> str:
        names = (found[1], *(f"{found[1].rstrip('/')}/{report}" for report in REPORTS))
        target = next((name for name in names if files.get_file_from_path(name)), None)
        if target is None:
            return found[0]
        return f"[{found[0]}]({posixpath.relpath(target, posixpath.dirname(page.file.src_uri))})"

    return re.sub(r"(?<!\[)`(profiling/results/[\w./-]+)`", linked, markdown)
