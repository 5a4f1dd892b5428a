"""Builds the site, and finds what its pages lead to."""

import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.harness import ROOT


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """`mkdocs build` of a project's folder."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--config-file", project / "mkdocs.yml", "--site-dir", site],
        capture_output=True,
        text=True,
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=900,
        check=False,
    )


def project_with(pages: dict[str, str], folder: Path) -> Path:
    """The project with other pages, in no order of a navigation."""
    for name in ("sidpar", "profiling", "examples", "CHANGELOG.md"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "docs").mkdir()
    for name in ("macros", "site.css"):
        (folder / "docs" / name).symlink_to(ROOT / "docs" / name)
    for name, text in pages.items():
        (folder / "docs" / name).write_text(text)
    settings = (ROOT / "mkdocs.yml").read_text()
    before, after = settings.split("\nnav:\n")
    (folder / "mkdocs.yml").write_text(before + "\nvalidation:\n" + after.split("\nvalidation:\n")[1])
    return folder


class Page(HTMLParser):
    """What a page of HTML leads to, and the anchors in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.loaded: list[str] = []
        """What the browser fetches to show the page: pictures, scripts, styles, fonts."""
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and "href" in found:
            self.loaded.append(found["href"])


def pages(site: Path) -> list[Page]:
    """All pages but the one that servers show for addresses that do not exist."""
    return [Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"]


def dead_ends(site: Path) -> Iterator[str]:
    """What pages link to or load on the site itself, and is not there."""
    known = {page.path: page for page in pages(site)}
    for page in known.values():
        for target in page.links + page.loaded:
            address = urlsplit(target)
            if address.scheme or address.netloc:
                continue
            path = (page.path.parent / unquote(address.path)).resolve() if address.path else page.path
            path = path / "index.html" if path.is_dir() else path
            anchor = unquote(address.fragment)
            if not path.exists() or (anchor and path in known and anchor not in known[path].anchors):
                yield f"{page.path.relative_to(site)}: {target}"
