"""The oracle against independent derivations, and the invariants of every engine."""

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidpar import Compute, LocalEngine, Objective, ParallelEngine, Runtime, Stage
from sidpar.cascade.cascade import Cascade
from sidpar.models.simple_cnn import simple_cnn
from sidpar.rules.kl import local_loss, target_of
from tests import networks
from tests.harness import RankError, run_ranks
from tests.oracle import gradients, oracle


def authors_algorithm(cascade: Cascade, x: Tensor, y: Tensor, alpha: float) -> None:
    """The released code's training step: features once, all losses summed, one backward, forward KL, one-hot."""
    features = cascade.extractor(x)
    one_hot = F.one_hot(y, cascade.num_classes).to(features.dtype)
    belief = torch.full_like(one_hot, 1 / cascade.num_classes)
    total = features.new_zeros(())
    for refiner in cascade.refiners:
        log_p = F.log_softmax(refiner(features, belief.log()), dim=1)
        target_term = F.kl_div(log_p, one_hot, reduction="batchmean")
        consistency = F.kl_div(log_p, belief, reduction="batchmean")
        total = total + alpha * target_term + (1 - alpha) * consistency
        belief = log_p.exp().detach()
    total.backward()


@pytest.mark.parametrize("schedule", ["fused", "two_phase"])
def test_the_authors_algorithm_is_the_same_function(schedule: Any) -> None:
    x, y = networks.batch(9)
    theirs = networks.plain(4)
    authors_algorithm(theirs, x, y, alpha=0.5)
    ours = Stage(networks.plain(4), Runtime.single("cpu"))
    for engine in (
        LocalEngine(ours, Objective(0.5)),
        ParallelEngine(ours, Objective(0.5), schedule=schedule, microbatches=2),
    ):
        engine.step(x, y)
        for name, parameter in theirs.named_parameters():
            assert parameter.grad is not None
            assert (gradients(ours)[name] - parameter.grad).abs().max() < 1e-12, name


@pytest.mark.parametrize(("kl", "smoothing"), [("forward", 0.0), ("reverse", 0.1)])
def test_the_oracle_agrees_with_finite_differences(kl: Any, smoothing: float) -> None:
    """A refiner's parameter moves its own loss, an extractor's the sum of all; teachers are held fixed."""
    objective = Objective([0.3, 0.6, 0.8], kl, smoothing)
    x, y = networks.batch(4)
    cascade = networks.plain(3)
    teachers = [state[0].detach() for state in cascade.states(x)][:-1]
    target = target_of(objective, y, networks.CLASSES, torch.float64)
    found = oracle(lambda: networks.plain(3), objective, x, y).gradients

    def losses() -> list[float]:
        features = cascade.extractor(x)
        return [
            local_loss(objective, a, r(features, t).log_softmax(-1), t, target).mean().item()
            for a, r, t in zip(objective.alphas(3), cascade.refiners, teachers, strict=True)
        ]

    step = 1e-6
    for name, parameter in cascade.named_parameters():
        kind, number, *_ = name.split(".")
        for k in range(0, parameter.numel(), 3):
            with torch.no_grad():
                parameter.view(-1)[k] += step
                up = losses()
                parameter.view(-1)[k] -= 2 * step
                down = losses()
                parameter.view(-1)[k] += step
            slopes = [(a - b) / (2 * step) for a, b in zip(up, down, strict=True)]
            expected = slopes[int(number)] if kind == "refiners" else math.fsum(slopes)
            assert found[name].view(-1)[k].item() == pytest.approx(expected, abs=1e-7), f"{name}[{k}]"


def test_a_step_leaves_the_users_random_numbers_alone() -> None:
    x, y = networks.batch(4)
    torch.manual_seed(3)
    expected = torch.rand(2)
    for make in (LocalEngine, ParallelEngine):
        engine = make(Stage(networks.noisy(2), Runtime.single("cpu"), extractor="root"), Objective())
        torch.manual_seed(3)
        engine.step(x, y)
        assert torch.equal(torch.rand(2), expected)


def test_masks_change_from_step_to_step() -> None:
    x, y = networks.batch(8)
    stage = Stage(networks.noisy(2), Runtime.single("cpu"), extractor="root")
    engine = ParallelEngine(stage, Objective(), seed=1)
    found = []
    for _ in range(2):
        engine.step(x, y)
        found.append(gradients(stage)["refiners.1.layers.4.weight"].clone())
    assert not torch.equal(*found)


def test_step_replaces_gradients() -> None:
    """Not accumulated: two steps on one batch give the gradient of one."""
    x, y = networks.batch(4)
    stage = Stage(networks.plain(2), Runtime.single("cpu"))
    engine = ParallelEngine(stage, Objective())
    engine.step(x, y)
    once = {name: gradient.clone() for name, gradient in gradients(stage).items()}
    engine.step(x, y)
    assert all(torch.equal(once[name], gradient) for name, gradient in gradients(stage).items())


@pytest.mark.parametrize("make", [LocalEngine, ParallelEngine])
def test_refiners_without_parameters(make: Any) -> None:
    """Nothing to train, nothing to reduce: a step still runs."""

    class Sharpen(nn.Module):
        def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
            return 2 * log_belief + features

    stage = Stage(Cascade(nn.Flatten(), [Sharpen(), Sharpen()], 3), Runtime.single("cpu"))
    result = make(stage, Objective()).step(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    assert result.measures().shape == (2, 6)


class Witness(nn.Module):
    """Notes the dtype of its input and the memory format of images on their way."""

    seen: ClassVar[list[tuple[torch.dtype, bool]]] = []

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:
            self.seen.append((x.dtype, x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)))
        return x


@pytest.mark.parametrize(("options", "tolerance"), [({"autocast": "bf16"}, 0.3), ({"channels_last": True}, 1e-3)])
def test_compute_options_change_rounding_only(options: dict[str, Any], tolerance: float) -> None:
    """And they do take effect."""
    x, y = torch.randn(8, 3, 8, 8), torch.arange(8)
    found = []
    for chosen in ({}, options):
        cascade = simple_cnn((3, 8, 8), 10, 2)
        cascade.extractor[1] = nn.Sequential(cascade.extractor[1], Witness())
        Witness.seen.clear()
        stage = Stage(cascade, Runtime.single("cpu"), compute=Compute(**chosen))
        ParallelEngine(stage, Objective()).step(x, y)
        found.append(gradients(stage))
    bf16, channels_last = "autocast" in options, "channels_last" in options
    assert Witness.seen[-1] == (torch.bfloat16 if bf16 else torch.float32, channels_last)
    for name, gradient in found[0].items():
        assert gradient.dtype == found[1][name].dtype == torch.float32
        assert (gradient - found[1][name]).norm() <= tolerance * gradient.norm() + 1e-6, name


@pytest.mark.processes
def test_compile_changes_rounding_only() -> None:
    x, y = networks.batch(8)
    found = []
    for compiled in (False, True):
        stage = Stage(networks.plain(1), Runtime.single("cpu"), compute=Compute(compile=compiled))
        ParallelEngine(stage, Objective()).step(x, y)
        assert all((module._compiled_call_impl is not None) == compiled for module in stage.parts().values())
        found.append(gradients(stage))
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).norm() <= 1e-3 * gradient.norm() + 1e-6, name


def test_messages() -> None:
    stage = Stage(networks.plain(2), Runtime.single("cpu"))
    with pytest.raises(ValueError, match="schedule 'gpipe' is unknown; choose one of"):
        ParallelEngine(stage, Objective(), schedule="gpipe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="microbatches must be at least 1, got 0"):
        ParallelEngine(stage, Objective(), microbatches=0)


@pytest.mark.parametrize("make", [LocalEngine, ParallelEngine])
def test_messages_about_batches(make: Any) -> None:
    engine = make(Stage(networks.plain(2), Runtime.single("cpu")), Objective())
    x, y = networks.batch(4)
    with pytest.raises(ValueError, match="got 4 inputs and 3 labels"):
        engine.step(x, y[:3])
    with pytest.raises(ValueError, match="labels must be int64, got torch.float32"):
        engine.step(x, y.float())
    with pytest.raises(ValueError, match=r"labels must lie in 0..2, got \d..9"):
        engine.step(x, torch.tensor([9, 1, 1, 1]))
    with pytest.raises(ValueError, match=r"so labels must be \[B, \*\[\]\], got \[4, 1\]"):
        engine.step(x, y[:, None])
    with pytest.raises(ValueError, match=r"the extractor does not take inputs of shape \[B, \*\[4\]\]"):
        engine.step(x[:, :4], y)


def local_on_ranks(runtime: Runtime) -> None:
    LocalEngine(Stage(networks.plain(2), runtime), Objective())


def different_settings(runtime: Runtime, settings: dict[str, Any]) -> None:
    """Rank 1 is started with other settings than rank 0, or with other weights."""
    mine = {name: values[runtime.rank] for name, values in settings.items()}
    cascade = networks.plain(2)
    cascade.refiners[0].layers[0].weight.data.mul_(mine.pop("scale", 1))
    ParallelEngine(Stage(cascade, runtime), Objective(mine.pop("alpha", 0.5)), **mine)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": (0.5, 0.6)}, 'rank 1 has "SID(objective=Objective(alpha=0.6'),
        ({"seed": (1, 2)}, "seed: rank 0 has 1, rank 1 has 2"),
        ({"microbatches": (1, 2)}, "microbatches: rank 0 has 1, rank 1 has 2"),
        ({"schedule": ("fused", "two_phase")}, "schedule: rank 0 has 'fused', rank 1 has 'two_phase'"),
        ({"scale": (1, 2)}, "initial weights: rank 0 has"),
    ],
)
def test_ranks_that_differ_are_refused_before_any_message(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RankError) as error:
        run_ranks(different_settings, 2, settings)
    assert all(message in error.value.errors[rank] for rank in (0, 1)), error.value


def different_batches(runtime: Runtime) -> None:
    """Rank 1 brings another batch size, as a loader with its own sampler would."""
    stage = Stage(networks.plain(2), runtime)
    x, y = networks.batch(4 + runtime.rank)
    ParallelEngine(stage, Objective()).step(x, y)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (local_on_ranks, "the local engine runs in one process, but there are 2 ranks"),
        (different_batches, "the ranks disagree on the shapes; start them all alike. labels: rank 0 has"),
    ],
)
def test_messages_are_the_same_on_every_rank(function: Any, message: str) -> None:
    with pytest.raises(RankError) as error:
        run_ranks(function, 2)
    assert all(message in error.value.errors[rank] for rank in (0, 1))
