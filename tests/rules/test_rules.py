"""The rules against independent derivations, what they declare, and how they are found by name."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sidpar import BPEngine, Copies, LocalEngine, Meter, Objective, Runtime, Stage, UsageError
from sidpar.cascade.cascade import detach, initial_state
from sidpar.rules import RULES, complete, rule_of
from sidpar.rules.base import Rows
from sidpar.rules.kl import target_of
from tests import networks
from tests.engines.own_rules import Contrast, Spread
from tests.oracle import gradients, oracle

L = 3


def made(name: str, **options: Any) -> Any:
    return rule_of(Objective(rule=name, label_smoothing=0.1, options=options or None))


def logits_and_target(i: int) -> tuple[Tensor, tuple[Tensor], Tensor]:
    torch.manual_seed(i)
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 4, dtype=torch.float64).log_softmax(-1)
    return logits, (teacher,), target_of(Objective(label_smoothing=0.1), torch.arange(5) % 4, 4, torch.float64)


@pytest.mark.parametrize("name", RULES)
def test_the_gradient_of_the_logits_is_that_of_the_formula(name: str) -> None:
    """p - q, with q what the rule pulls the belief towards: the label; and for SID the teacher too."""
    logits, state, target = logits_and_target(1)
    rule = made(name)
    rule.loss(1, (), state, (logits.log_softmax(-1),), target).sum().backward()
    towards = 0.5 * target + 0.5 * state[0].exp() if name == "sid" else target
    assert logits.grad is not None
    assert (logits.grad - (logits.detach().softmax(-1) - towards)).abs().max() < 1e-12


@pytest.mark.parametrize("name", RULES)
def test_gradcheck(name: str) -> None:
    logits, state, target = logits_and_target(2)
    assert torch.autograd.gradcheck(lambda z: made(name).loss(1, (), state, (z.log_softmax(-1),), target), logits)


@pytest.mark.parametrize("name", RULES)
def test_several_refiners_at_once(name: str) -> None:
    """The losses of refiners that ran at once are those of each; what is measured agrees with them."""
    rule = made(name)
    parts = [logits_and_target(i) for i in range(L)]
    states, target, y = [state for _, state, _ in parts], parts[0][2], torch.arange(5) % 4
    following = torch.stack([logits.detach().log_softmax(-1) for logits, _, _ in parts])
    at_once = rule.losses(range(L), (), states, (following,), target)
    for i in range(L):
        assert torch.allclose(at_once[i], rule.loss(i, (), states[i], (following[i],), target))
    table = rule.measure(range(L), torch.stack([state[0] for state in states]), following, y)
    assert table.shape == (L, len(rule.measures))
    assert torch.allclose(table[:, rule.measures.index("loss")], at_once.sum(1))
    correct = (following.argmax(-1) == y).sum(1)
    assert torch.equal(table[:, rule.measures.index("correct")], correct.double())


def test_deep_supervision_is_sid_without_a_teacher() -> None:
    x, y = networks.batch(7)
    supervised = oracle(lambda: networks.plain(L), Objective(rule="deep_supervision", label_smoothing=0.1), x, y)
    sid = oracle(lambda: networks.plain(L), Objective(1.0, label_smoothing=0.1), x, y)
    assert all(torch.equal(gradient, sid.gradients[name]) for name, gradient in supervised.gradients.items())


def test_label_denoising_by_hand() -> None:
    """Each refiner from a noisy label of its own, written out: features once, one backward of the sum."""
    x, y = networks.batch(7)
    stage = Stage(networks.plain(L), Runtime.single("cpu"))
    objective = Objective(rule="label_denoising", options={"signal": 3.0, "noise": 0.5})
    engine = LocalEngine(stage, objective, seed=4)
    engine.step(x, y)
    engine.step(x, y)  # of step 1
    cascade, target = networks.plain(L), torch.nn.functional.one_hot(y, networks.CLASSES).double()
    features = cascade.extractor(x)
    total = torch.zeros((), dtype=torch.float64)
    for i, refiner in enumerate(cascade.refiners):
        noise = Rows(4, 1, range(7), 7).normal("label", i, networks.CLASSES, target)
        noisy = (3.0 * i / L * (target + 0.5 * noise)).softmax(-1)
        total = total - (target * refiner(features, noisy.log()).log_softmax(-1)).sum() / 7
    total.backward()
    for name, parameter in cascade.named_parameters():
        assert parameter.grad is not None
        assert (gradients(stage)[name] - parameter.grad).abs().max() < 1e-12, name


def test_noise_depends_on_seed_refiner_step_and_row() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    whole = Rows(1, 2, range(9), 9).normal("label", 3, 4, like)
    assert torch.equal(whole[3:7], Rows(1, 2, range(3, 7), 9).normal("label", 3, 4, like)), "of whatever part"
    for other in (Rows(2, 2, range(9), 9), Rows(1, 3, range(9), 9)):
        assert not torch.equal(whole, other.normal("label", 3, 4, like))
    assert not torch.equal(whole, Rows(1, 2, range(9), 9).normal("label", 2, 4, like))


def test_the_first_refiner_sees_in_training_what_it_sees_in_inference() -> None:
    rule, features = made("label_denoising"), (torch.zeros(5, 2),)
    _, _, target = logits_and_target(0)
    state = rule.made_state(0, L, features, target.float(), Rows(0, 0, range(5), 5))
    assert torch.allclose(state[0], initial_state(detach(features), 4)[0])


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            {"rule": "hebb"},
            "objective.rule=hebb is unknown; choose one of ['sid', 'deep_supervision', 'label_denoising']",
        ),
        ({"options": {"noise": 1}}, "objective.options.noise: objective.rule=sid takes no noise; its options are []"),
        (
            {"rule": "label_denoising", "options": {"nois": 1}},
            "objective.options.nois: objective.rule=label_denoising takes no nois; its options are ['signal', 'noise']",
        ),
        (
            {"rule": "label_denoising", "options": {"noise": "much"}},
            "objective.options.noise must be of type float, got 'much'",
        ),
        (
            {"rule": "label_denoising", "alpha": 0.2},
            "objective.alpha=0.2 would have no effect, because objective.rule=label_denoising does not read it: "
            "remove it",
        ),
        ({"rule": "label_denoising", "options": {"noise": -1}}, "objective.options.noise must be at least 0, got -1"),
    ],
)
def test_messages(objective: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        rule_of(Objective(**objective))
    assert str(caught.value) == message


def test_a_rule_that_makes_beliefs_refuses_hidden_activations() -> None:
    x, y = networks.batch(4)
    engine = LocalEngine(Stage(networks.with_hidden_state(L), Runtime.single("cpu")), Objective(rule="label_denoising"))
    with pytest.raises(UsageError, match="cannot make the 1 hidden activations that refiner 1 receives too"):
        engine.step(x, y)


def test_options_are_completed_from_the_rule() -> None:
    assert complete(Objective()) == Objective()
    completed = complete(Objective(rule="label_denoising", options={"noise": 0.5}))
    assert completed.options == {"signal": 4.0, "noise": 0.5}


def test_the_loss_of_a_rule_that_is_no_sum_is_measured_as_it_is() -> None:
    x, y = networks.batch(7)
    engine = LocalEngine(Stage(networks.plain(L), Runtime.single("cpu")), Spread(Objective()))
    result = engine.step(x, y)
    losses = [
        Spread(Objective()).loss(i, (), (), (result.returned[i][0],), torch.eye(networks.CLASSES)[y].double())
        for i in range(L)
    ]
    assert torch.allclose(result.loss, torch.stack(losses))


def test_measures_are_means_over_all_rows_that_entered() -> None:
    """Of a rule that makes two rows of each: its mean is what a plain average over both gives, in a meter too."""
    x, y = networks.batch(7)
    engine = LocalEngine(Stage(networks.with_float_state(L), Runtime.single("cpu")), Contrast(Objective()))
    meter = Meter(engine)
    result = engine.step(x, y)
    meter.add(result)
    assert len(result.y) == result.samples == 14
    hits = [(result.returned[i][0][:, :-1].argmax(-1) == result.y).double().mean().item() for i in range(L)]
    assert meter.read()["accuracy"] == pytest.approx(hits)
    assert result.accuracy.tolist() == pytest.approx(hits)


def test_a_rule_must_make_as_many_rows_as_it_says() -> None:
    class Once(Contrast):
        copies = 1

    x, y = networks.batch(7)
    engine = LocalEngine(Stage(networks.with_float_state(L), Runtime.single("cpu")), Once(Objective()))
    with pytest.raises(UsageError) as caught:
        engine.step(x, y)
    assert str(caught.value) == (
        "objective.rule=contrast makes 14 inputs and 14 labels of 7 rows, but its `copies` is 1: set `copies` to "
        "the number that `enter` makes"
    )


def test_backpropagation_takes_no_local_rule() -> None:
    stage = Stage(networks.plain(L), Runtime.single("cpu"), placement=Copies(L, 1))
    for objective in (Objective(rule="deep_supervision"), Spread(Objective())):
        with pytest.raises(UsageError, match="backpropagation has one loss and no local rule"):
            BPEngine(stage, objective)  # type: ignore[arg-type]
