"""The reference of the settings has all of them, with a text, a type, a default, a unit and what refuses them."""

import re
from dataclasses import fields

import pytest
from macros.settings import GROUPS, Setting, read_settings, settings_reference, takes_numbers

from sidpar.config.schema import Config
from sidpar.errors import UsageError
from sidpar.methods import METHODS, complete
from tests.harness import ROOT

SETTINGS = {setting.key: setting for setting in read_settings()}


def test_every_setting_is_there() -> None:
    assert list(SETTINGS) == list(Config().flat())


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.key)
def test_a_setting_has_a_text_a_type_and_a_default(setting: Setting) -> None:
    assert setting.text
    assert setting.kind
    assert re.fullmatch(r"`.+`(, which means `.+` if nothing else is set)?", setting.default)


@pytest.mark.parametrize("group", GROUPS)
def test_numbers_have_units_and_nothing_else_has(group: str) -> None:
    owner = GROUPS[group]
    numbers = {field.name for field in fields(owner) if takes_numbers(owner, field.name)}
    assert getattr(owner, "UNITS", {}).keys() == numbers


def test_what_is_refused_names_settings_that_are_there() -> None:
    refusals = [refusal for group in GROUPS.values() for refusal in getattr(group, "REFUSALS", ())]
    refusals += [refusal for method in METHODS.values() for refusal in method.refuses]
    for refusal in refusals:
        assert set(refusal.keys) <= SETTINGS.keys()
        assert {key.split(".")[0] for key in refusal.keys} == {refusal.group}, "it is checked against one group"


def refused(key: str) -> str:
    return "; ".join(SETTINGS[key].refused)


def test_every_check_is_listed() -> None:
    """One of each kind: a range, a condition within the group, a choice, a registry, a method."""
    assert refused("data.batch_size") == "less than 1"
    assert refused("objective.label_smoothing") == "outside [0, 1)"
    assert "any value but the default, unless parallel.schedule=streaming" in refused("parallel.staleness")
    assert "reverse, with objective.label_smoothing=0" in refused("objective.kl")
    assert "any value but the default, unless data.name is image_folder" in refused("data.image_size")
    assert "any value but the default, unless model.name is wide_mlp or plain_mlp" in refused("model.width")
    assert "any value but the default, unless objective.rule is sid" in refused("objective.alpha")
    assert "any value but the default, with method=local or method=bp or method=ddp" in refused("parallel.replicas")
    assert "any value but replicated, root, sharded, with method=sid" in refused("parallel.extractor")
    assert "any value but the default, with parallel.device=cpu" in refused("compute.tf32")
    assert "any value but the default, unless parallel.placement=cost" in refused("parallel.costs")


def test_settings_that_messages_are_tested_for_say_what_is_refused() -> None:
    """The tests of the command line refuse values of these settings by name."""
    tests = (ROOT / "tests" / "config" / "test_config.py").read_text()
    keys = {key for key in re.findall(r'"(\w+\.\w+)(?:=| must)', tests) if key in SETTINGS}
    assert len(keys) > 25
    assert not [key for key in keys if not SETTINGS[key].refused]


def test_the_page_has_a_section_and_an_anchor_for_each() -> None:
    page = settings_reference()
    for setting in SETTINGS.values():
        assert f"### `{setting.key}` {{ #{setting.key} }}" in page
    assert "<class>" not in page, "it would be taken for a tag"


def test_a_choice_that_a_method_has_not_is_refused() -> None:
    """As the page says, by the same declaration."""
    for method in METHODS.values():
        for setting in method.offers:
            with pytest.raises(UsageError, match=f"parallel.{setting}=nowhere; choose one of"):
                complete(Config(method=method.name, parallel=_with(setting)))


def _with(setting: str) -> object:
    return GROUPS["parallel"](**{setting: "nowhere"})
