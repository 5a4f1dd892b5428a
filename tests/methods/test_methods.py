"""What holds for every method: completing a configuration decides everything, and changes nothing."""

from dataclasses import replace

import pytest

from sidpar import rules
from sidpar.config.command_line import from_yaml, to_yaml
from sidpar.config.groups.data import DataConfig
from sidpar.config.groups.model import ModelConfig
from sidpar.config.groups.objective import Objective
from sidpar.config.groups.parallel import ParallelConfig
from sidpar.config.schema import Config
from sidpar.data.datasets import DATASETS
from sidpar.errors import UsageError
from sidpar.methods import METHODS, complete
from sidpar.models import MODELS
from sidpar.rules import RULES
from tests.engines.own_rules import Spread


@pytest.mark.parametrize("method", METHODS)
def test_a_complete_configuration_is_a_new_one_and_stays_as_it_is(method: str) -> None:
    given = Config(method=method)
    before = given.to_dict()
    done = complete(given)
    assert given.to_dict() == before, "settings are never written to"
    assert done.model.name == "simple_cnn"
    assert complete(done) == done
    assert complete(from_yaml(to_yaml(done))) == done, "a run folder's file repeats the run"


def test_the_same_settings_serve_every_method() -> None:
    parallel, model, data = ParallelConfig(), ModelConfig(), DataConfig()
    for method in (*METHODS, *METHODS):
        complete(Config(parallel=parallel, model=model, data=data, method=method))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_a_network_or_says_why_not(method: str, model: str) -> None:
    config = Config(method=method, model=ModelConfig(name=model))
    if method in ("bp", "ddp") or MODELS[model].has_beliefs:
        assert complete(config).model.name == model
    else:
        with pytest.raises(UsageError, match="or model.name=simple_cnn or wide_mlp"):
            complete(config)


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_is_completed(name: str) -> None:
    done = complete(Config(data=DataConfig(name=name)))
    assert {setting: getattr(done.data, setting) for setting in DATASETS[name].reads} == DATASETS[name].reads
    assert complete(done) == done


@pytest.mark.parametrize("rule", RULES)
def test_rules_are_for_methods_that_learn_locally(rule: str) -> None:
    objective = Objective(rule=rule)
    assert complete(Config(objective=objective)).objective == rules.complete(objective)
    if objective != Objective():
        with pytest.raises(UsageError, match=f"objective.rule={rule} would have no effect, because method=bp has no"):
            complete(Config(objective=objective, method="bp"))


def test_a_rule_refuses_settings_that_it_does_not_read() -> None:
    with pytest.raises(UsageError, match="objective.alpha=0.7 would have no effect, because objective.rule=deep"):
        complete(Config(objective=Objective(alpha=0.7, rule="deep_supervision")))
    with pytest.raises(UsageError, match="objective.options.noise: objective.rule=sid takes no noise"):
        complete(Config(objective=Objective(options={"noise": 0.1})))
    with pytest.raises(UsageError, match="objective.rule=ff is unknown; choose one of"):
        complete(Config(objective=Objective(rule="ff")))


def test_a_setting_of_another_configuration_that_it_does_not_have_is_the_default() -> None:
    done = complete(Config())
    old = done.to_dict()
    del old["objective"]["rule"], old["objective"]["options"]
    assert done.differences(old) == []
    other = replace(done, objective=Objective(rule="deep_supervision"))
    assert other.differences(old) == ["objective.rule: 'sid' there, 'deep_supervision' here"]


@pytest.mark.parametrize(("setting", "value"), [("microbatches", 2), ("replicas", 2)])
def test_a_rule_whose_loss_is_no_sum_takes_no_parts(setting: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "spread", Spread)
    parallel = ParallelConfig(**{setting: value})
    with pytest.raises(UsageError) as caught:
        complete(Config(objective=Objective(rule="spread"), parallel=parallel))
    assert str(caught.value) == (
        f"{setting}=2 cuts a batch into parts, but the loss of objective.rule=spread is not a sum over rows, so the "
        f"parts' losses do not add up to the batch's: set parallel.{setting}=1, or use another rule"
    )


def test_a_size_of_a_network_is_no_option() -> None:
    config = Config(model=ModelConfig(name="wide_mlp", options={"width": 512}))
    with pytest.raises(UsageError) as caught:
        complete(config)
    assert str(caught.value) == "model.options.width has a key of its own: set model.width=512"
