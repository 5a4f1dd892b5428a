"""Backpropagation over sections on ranks: the same gradients as one process, and torch's own order of work."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.torch_version import TorchVersion

from sidpar import Compute, Objective, PipelineEngine, Runtime, Stage, UsageError
from sidpar.cascade.cascade import Cascade
from sidpar.engines.backpropagation.pipeline import _check_cut
from sidpar.profiler.clock import Clock
from sidpar.schedules.cut import PIPELINES, check_microbatches, make_cut
from sidpar.schedules.phases import COMPUTE, PHASE
from tests import networks
from tests.engines.backpropagation.test_whole import OBJECTIVES, plain_backpropagation
from tests.harness import RankError, run_ranks
from tests.oracle import assert_close_gradients, gradients

NETWORKS: dict[str, tuple[Callable[[], Cascade], Any, int, int]] = {
    # how to build it, the extractor's placement, its layers, its refiners
    "cascade": (lambda: networks.plain(9), "root", 1, 9),
    "cascade, extractor cut": (lambda: networks.plain(9), "cut", 3, 9),
    "hidden state": (lambda: networks.with_float_state(8), "root", 1, 8),
    "plain network": (lambda: networks.residual(8), "cut", 10, 1),
}


SCHEDULES: list[Any] = [
    # On gloo, which these tests use, the others need torch 2.15.
    name
    for name, entry in PIPELINES.items()
    if entry.order == "loop" or torch.__version__ >= "2.15"
]


def pipeline(
    runtime: Runtime, schedule: Any, microbatches: int, network: str, objective: Objective = OBJECTIVES[0]
) -> PipelineEngine:
    build, extractor, layers, refiners = NETWORKS[network]
    placement = make_cut(schedule, extractor, runtime.world_size, [1.0] * layers, [1.0] * refiners)
    stage = Stage(build(), runtime, placement=placement)
    return PipelineEngine(stage, objective, schedule=schedule, microbatches=microbatches, seed=3)


def allowed(schedule: Any, microbatches: int, ranks: int) -> bool:
    try:
        check_microbatches(schedule, microbatches, ranks)
    except UsageError:
        return False
    return True


def grid(runtime: Runtime) -> int:
    ranks, cases = runtime.world_size, 0
    for k, (network, (build, *_)) in enumerate(NETWORKS.items()):
        size = 4 * ranks - 1  # ragged for every M > 1
        x, y = networks.batch(size)
        objective = OBJECTIVES[k % 2]
        expected = plain_backpropagation(build(), objective, x, y)
        for schedule in SCHEDULES:
            for microbatches in [m for m in (1, ranks, 2 * ranks) if allowed(schedule, m, ranks)]:
                engine = pipeline(runtime, schedule, microbatches, network, objective)
                result = engine.step(x, y)
                case = f"{network}: {schedule} M={microbatches}"
                assert_close_gradients(case, gradients(engine.stage), expected)
                measures = result.measures()
                evaluated = engine.evaluate(x, y).measures()
                assert torch.allclose(measures, evaluated), f"{case}: measures in training and in evaluation"
                cases += 1
    return cases


@pytest.mark.processes
@pytest.mark.parametrize("ranks", [2, 4])
def test_gradients_equal_one_process(ranks: int) -> None:
    """Per parameter, relative to its largest entry: gradients fade through a chain of beliefs, tolerances must not."""
    # 4 networks; naive 1, gpipe 3, 1f1b 2, interleaved 3, zero bubble 3; zbv 3, dualpipe_v 1
    assert run_ranks(grid, ranks) == [4 * (12 + 4 * ("zbv" in SCHEDULES))] * ranks


def several_shapes(runtime: Runtime) -> None:
    """A ragged last batch, a batch smaller than M, and the first shape again."""
    engine = pipeline(runtime, "1f1b", 4, "cascade")
    build = NETWORKS["cascade"][0]
    for size in (8, 5, 3, 8):
        x, y = networks.batch(size)
        engine.step(x, y)
        assert_close_gradients(f"B={size}", gradients(engine.stage), plain_backpropagation(build(), Objective(), x, y))


@pytest.mark.processes
def test_batches_of_any_size() -> None:
    run_ranks(several_shapes, 2)


def tokens(runtime: Runtime) -> None:
    """Beliefs [B, T, C] and labels [B, T]."""
    x, y = networks.batch(6, 5)
    stage = Stage(networks.tokens(4), runtime, placement=make_cut("1f1b", "root", 2, [1.0], [1.0] * 4))
    engine = PipelineEngine(stage, Objective(), schedule="1f1b", microbatches=4)
    result = engine.step(x, y)
    assert_close_gradients("tokens", gradients(stage), plain_backpropagation(networks.tokens(4), Objective(), x, y))
    assert result.samples == 30


@pytest.mark.processes
def test_a_belief_for_each_token() -> None:
    run_ranks(tokens, 2)


def order(runtime: Runtime) -> None:
    """What each rank really executes, by the clock, is its list."""
    for schedule in SCHEDULES:
        for microbatches in [m for m in (1, 4, 8) if allowed(schedule, m, runtime.world_size)]:
            engine = pipeline(runtime, schedule, microbatches, "cascade")
            x, y = networks.batch(16)
            engine.step(x, y)
            engine.clock = Clock(runtime.device)
            engine.clock.start()
            engine.step(x, y)
            _, spans = engine.clock.read()
            done = [(span.phase, span.label) for span in spans if span.phase in COMPUTE]
            planned = [
                (PHASE[action.do], f"section {action.section}, microbatch {action.microbatch}")
                for action in engine.lists()[runtime.rank]
                if PHASE[action.do] in COMPUTE
            ]
            assert done == planned, f"{schedule} M={microbatches}"
            waits = [action for action in engine.lists()[runtime.rank] if PHASE[action.do] == "receive wait"]
            assert len([span for span in spans if span.phase == "receive wait"]) == len(waits)
            assert all(before.end <= after.start for before, after in pairwise(spans))


@pytest.mark.processes
def test_the_lists_are_what_is_executed() -> None:
    run_ranks(order, 2)
    run_ranks(order, 4)


def traffic(runtime: Runtime) -> None:
    """Features [b, 4] and log-beliefs [b, 3] in float64 forth, as many gradients back."""
    engine = pipeline(runtime, "gpipe", 2, "cascade")
    engine.step(*networks.batch(8))
    sent = {kind: (count.messages, count.bytes) for kind, count in engine.traffic.sent.items()}
    each = (4, 8 * (4 + 3) * 8)
    assert sent == ({"activation": each} if runtime.rank == 0 else {"activation gradient": each})


@pytest.mark.processes
def test_traffic_is_counted() -> None:
    run_ranks(traffic, 2)


def clipping(runtime: Runtime) -> None:
    """One norm over all ranks."""
    x, y = networks.batch(8)
    engine = pipeline(runtime, "gpipe", 2, "plain network")
    engine.step(x, y)
    engine.clip(1e-3, engine.stage.parts())
    reference = networks.residual(8)
    plain_backpropagation(reference, Objective(), x, y)
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 1e-3)
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    for name, gradient in gradients(engine.stage).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4), name  # the norm is added up in fp32


@pytest.mark.processes
def test_gradients_are_clipped_by_their_global_norm() -> None:
    run_ranks(clipping, 2)


def refused(runtime: Runtime, case: str) -> None:
    build = NETWORKS["cascade"][0]
    if case == "compile":
        placement = make_cut("zbv", "root", 2, [1.0], [1.0] * 9)
        stage = Stage(build(), runtime, placement=placement, compute=Compute(compile=True))
        PipelineEngine(stage, Objective(), schedule="zbv", microbatches=4)
    elif case == "other cut":
        stage = Stage(build(), runtime, placement=make_cut("zbv", "root", 2, [1.0], [1.0] * 9))
        PipelineEngine(stage, Objective(), schedule="interleaved", microbatches=4)
    elif case == "integers":
        stage = Stage(networks.with_hidden_state(4), runtime, placement=make_cut("1f1b", "root", 2, [1.0], [1.0] * 4))
        PipelineEngine(stage, Objective(), schedule="1f1b", microbatches=2).step(*networks.batch(4))
    elif case == "extractor":
        stage = Stage(networks.tokens(4), runtime, placement=make_cut("1f1b", "cut", 2, [1.0], [1.0] * 4))
        PipelineEngine(stage, Objective(), schedule="1f1b", microbatches=2).step(*networks.batch(4, 5))
    elif case in ("subclass", "shared layer", "no tensor"):
        cascade = networks.with_hidden_state(4) if case == "no tensor" else networks.plain(4)
        layers = {
            "subclass": networks.Residual(torch.nn.Linear(5, 4)),
            "shared layer": torch.nn.Sequential(*[torch.nn.Linear(5, 5)] * 2, torch.nn.Linear(5, 4)),
            "no tensor": torch.nn.Sequential(networks.TwoFeatures(), torch.nn.Identity()),
        }
        cascade.extractor = layers[case].double()
        placement = make_cut("1f1b", "cut", 2, [1.0] * len(layers[case]), [1.0] * 4)
        stage = Stage(cascade, runtime, placement=placement)
        PipelineEngine(stage, Objective(), schedule="1f1b", microbatches=2).step(*networks.batch(4))
    elif case == "ranks differ":
        stage = Stage(build(), runtime, placement=make_cut("1f1b", "root", 2, [1.0], [1.0] * 9))
        PipelineEngine(stage, Objective(), schedule="1f1b", microbatches=2 + runtime.rank)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("compile", "torch does not support that with compute.compile"),
        ("other cut", "needs a stage placed by make_cut('interleaved', ...)"),
        ("integers", "feature 2 is torch.int64"),
        ("extractor", "extractor=cut needs an extractor that is an nn.Sequential"),
        ("subclass", "extractor=cut needs an extractor that is an nn.Sequential"),
        ("no tensor", "layer 0 of the extractor returns a tuple, but layers of a cut extractor must return one tensor"),
        ("shared layer", "extractor.1.weight is also a parameter of extractor.0"),
        ("ranks differ", "microbatches: rank 0 has 2, rank 1 has 3"),
    ],
)
def test_what_cannot_work_is_refused_on_every_rank(case: str, message: str) -> None:
    with pytest.raises(RankError) as failure:
        run_ranks(refused, 2, case)
    assert set(failure.value.errors) == {0, 1}
    assert all("UsageError: " in text and message in text for text in failure.value.errors.values())


def test_what_gloo_cannot_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by looking at the runtime alone, so a runtime that could be will do."""

    def stage(device: str, schedule: Any) -> Any:
        runtime = Runtime(rank=0, world_size=2, device=torch.device(device), backend="gloo")
        placement = make_cut(schedule, "root", 2, [1.0], [1.0] * 4)
        return SimpleNamespace(runtime=runtime, placement=placement, compute=Compute())

    with pytest.raises(UsageError, match="backend=gloo cannot send a pipeline's CUDA tensors"):
        _check_cut(stage("cuda", "1f1b"), "1f1b")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.11.0"))
    with pytest.raises(UsageError, match="schedule=zbv on gloo needs torch 2.15, got 2.11.0"):
        _check_cut(stage("cpu", "zbv"), "zbv")


def test_one_process_is_no_pipeline() -> None:
    stage = Stage(networks.plain(2), Runtime.single("cpu"), placement=make_cut("gpipe", "root", 1, [1.0], [1.0, 1.0]))
    with pytest.raises(UsageError, match="there is one process: use BPEngine"):
        PipelineEngine(stage, Objective(), schedule="gpipe")
