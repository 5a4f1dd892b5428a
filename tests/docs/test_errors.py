"""Every message that the page of errors quotes occurs in the source, with its words in this order."""

import ast
import re
from pathlib import Path

import pytest

from tests.harness import ROOT

PAGE = (ROOT / "docs" / "reference" / "errors.md").read_text()
QUOTED = re.findall(r"^- \*\*`(.+?)`\*\*", PAGE, re.MULTILINE)
VARIES = "…"
"""In a quotation, what differs from case to case; in the source, what is filled in."""


def messages(source: str) -> list[str]:
    """All string literals, in which what is filled in varies."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else VARIES for part in node.values]
            found.append("".join(str(part) for part in parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


SOURCE = [message for path in sorted(Path(ROOT / "sidpar").rglob("*.py")) for message in messages(path.read_text())]


def occurs(quoted: str, message: str) -> bool:
    """Whether the fixed words of a quotation stand in a message one after the other."""
    place = 0
    for words in filter(None, (part.strip() for part in quoted.split(VARIES))):
        found = message.find(words, place)
        if found < 0:
            return False
        place = found + len(words)
    return True


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_in_the_source(quoted: str) -> None:
    assert any(occurs(quoted, message) for message in SOURCE)


def test_what_is_not_in_the_source_is_seen() -> None:
    assert not any(occurs("… is a message that nobody gives", message) for message in SOURCE)
    assert not occurs("lr must be … at least", "at least: lr must be 3")


def test_the_page_has_forty_messages() -> None:
    assert len(QUOTED) == len(set(QUOTED)) >= 40
