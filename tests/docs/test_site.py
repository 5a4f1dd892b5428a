"""The site is built strictly: whatever its pages link to or show is there, and nothing of it comes from elsewhere."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.docs.building import build, dead_ends, pages, project_with
from tests.harness import ROOT

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site").resolve()
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_what_pages_lead_to_is_there(site: Path) -> None:
    assert not list(dead_ends(site))
    assert len(pages(site)) > 20


def test_pages_load_nothing_from_the_network(site: Path) -> None:
    """Who reads the built site may be offline."""
    for page in pages(site):
        assert not [target for target in page.loaded if urlsplit(target).netloc], page.path


def test_every_page_is_in_the_navigation(site: Path) -> None:
    """And only there: an entry without a page, or a page without an entry, would have failed the build."""
    listed = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1].split("\nvalidation:")[0])
    assert sorted(listed) == sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")
    )
    assert all((site / path).with_suffix(".html").stat().st_size > 5000 for path in listed)


def test_macros_have_left_nothing_open(site: Path) -> None:
    """Code shows `{{` nowhere."""
    assert not [page.path for page in pages(site) if "{{" in page.path.read_text()]


def test_the_search_finds_settings_and_names(site: Path) -> None:
    index = yaml.safe_load((site / "search" / "search_index.json").read_text())
    places = {entry["location"] for entry in index["docs"]}
    assert {"reference/settings.html#parallel.staleness", "reference/api.html#sidpar.Stage"} <= places
    assert not [place for place in places if place.startswith("profiling/")], "reports are not for the search"


FAULTS = {
    "[link](nowhere.md)": "nowhere.md",
    "[anchor](#nowhere)": "#nowhere",
    "![picture](pictures/nowhere.png)": "pictures/nowhere.png",
    '{{ result_picture("emulated_k8/nowhere.png", "timeline") }}': "profiling/results/emulated_k8/nowhere.png",
}


def test_a_dead_link_and_a_missing_picture_fail_the_build(tmp_path: Path) -> None:
    done = build(project_with({"index.md": "# Page\n\n" + "\n\n".join(FAULTS)}, tmp_path), tmp_path / "site")
    assert done.returncode != 0
    for fault in FAULTS.values():
        assert f"'{fault}'" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ('{{ figure("nowhere") }}', "there is no figure nowhere"),
        ("::: sidpar.Nowhere", "sidpar.Nowhere could not be found"),
        ('--8<-- "examples/nowhere.py"', "examples/nowhere.py"),
    ],
)
def test_what_a_page_cannot_include_fails_the_build(fault: str, message: str, tmp_path: Path) -> None:
    done = build(project_with({"index.md": f"# Page\n\n{fault}\n"}, tmp_path), tmp_path / "site")
    assert done.returncode != 0
    assert message in done.stderr, done.stderr
