"""Every public name has a text with shapes and errors, and a place in the reference."""

import re
from collections.abc import Iterator

import griffe
import pytest

import sidpar
from tests.harness import ROOT

PACKAGE = griffe.load("sidpar", search_paths=[ROOT])
PAGE = (ROOT / "docs" / "reference" / "api.md").read_text()


def target_of(name: str) -> griffe.Object:
    """What a public name stands for, where it is defined."""
    found = PACKAGE[name]
    return found.final_target if found.is_alias else found


def members(owner: griffe.Object) -> Iterator[griffe.Object]:
    """The public members of a class that the reference shows, those from its bases in sidpar included."""
    for name, member in owner.all_members.items() if owner.is_class else ():
        found = member.final_target if member.is_alias else member
        shown = found.is_function or {"property", "class-attribute"} & found.labels
        if shown and not name.startswith("_") and not name.isupper():
            yield found


EVERYTHING = {found.path: found for name in sidpar.__all__ for found in (target_of(name), *members(target_of(name)))}


def test_the_page_has_every_name_once() -> None:
    assert sorted(re.findall(r"^::: sidpar\.(\w+)$", PAGE, re.MULTILINE)) == sorted(sidpar.__all__)


def test_nothing_public_is_without_a_text() -> None:
    assert len(EVERYTHING) > 80
    assert not [path for path, found in EVERYTHING.items() if not found.has_docstring]


FUNCTIONS = [found for found in EVERYTHING.values() if isinstance(found, griffe.Function)]


def text_of(found: griffe.Object) -> str:
    return "" if found.docstring is None else found.docstring.value


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.path)
def test_tensors_have_shapes(function: griffe.Function) -> None:
    annotations = [str(parameter.annotation) for parameter in function.parameters] + [str(function.returns)]
    if any(re.fullmatch(r"(torch\.)?Tensor(Tuple)?", annotation) for annotation in annotations):
        assert "[" in text_of(function)


@pytest.mark.parametrize("found", list(EVERYTHING.values()), ids=lambda found: found.path)
def test_errors_are_told(found: griffe.Object) -> None:
    """Of a function, or of the making of an object, that raises them itself."""
    making = [found.members[name] for name in ("__init__", "__post_init__") if name in found.members]
    sources = [part.source for part in (making if found.is_class else [found])]
    if any(re.search(r"\braise (?!$)\w|\brefuse\(", source, re.MULTILINE) for source in sources):
        assert "Raises" in text_of(found)


@pytest.mark.parametrize("found", list(EVERYTHING.values()), ids=lambda found: found.path)
def test_parameters_are_told_all_or_none(found: griffe.Object) -> None:
    """A text that explains parameters explains all of them, in their order."""
    if "Args:" not in text_of(found):
        return
    function = found.members["__init__"] if found.is_class else found
    names = [parameter.name for parameter in function.parameters if parameter.name not in ("self", "cls")]
    told = re.findall(r"^    (\w+): ", text_of(found).split("Args:")[1].split("\n\n")[0], re.MULTILINE)
    assert told == names
