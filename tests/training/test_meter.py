"""Measures of many batches and ranks become one table."""

import pytest
import torch

from sidpar import LocalEngine, Objective, ParallelEngine, Runtime, Stage
from sidpar.rules.kl import kl_to, target_of
from sidpar.training.meter import Meter, Stopwatch, per_rank
from tests import networks
from tests.harness import run_ranks

OBJECTIVE = Objective([0.3, 0.5, 0.7])


def read_on_ranks(runtime: Runtime) -> dict[str, list[float]]:
    stage = Stage(networks.plain(3), runtime)
    engine = ParallelEngine(stage, OBJECTIVE)
    meter = Meter(engine)
    for size in (4, 7):
        meter.add(engine.evaluate(*networks.batch(size)))
    return meter.read()


@pytest.mark.processes
def test_every_rank_reads_the_whole_cascade() -> None:
    alone = run_ranks(read_on_ranks, 1)[0]
    for found in run_ranks(read_on_ranks, 3):
        assert found.keys() == alone.keys()
        for name, values in found.items():
            assert values == pytest.approx(alone[name]), name


@pytest.mark.processes
def test_means_are_over_samples_not_over_batches() -> None:
    """By hand, from the beliefs of the whole cascade; Proposition 4's bound holds, with a slack of what it says."""
    found = run_ranks(read_on_ranks, 1)[0]
    cascade = networks.plain(3)
    batches = [networks.batch(size) for size in (4, 7)]
    y = torch.cat([labels for _, labels in batches])
    beliefs = torch.cat([cascade.beliefs(x) for x, _ in batches], dim=1)
    target = target_of(OBJECTIVE, y, networks.CLASSES, torch.float64)
    divergences = [kl_to(belief.log(), target, "forward").mean().item() for belief in beliefs]
    accuracy = (beliefs[1:].argmax(-1) == y).double().mean(1)
    assert found["kl"] == pytest.approx(divergences[1:])
    assert found["accuracy"] == pytest.approx(accuracy.tolist())
    bound = divergences[0] + sum(e / a for e, a in zip(found["epsilon"], [0.3, 0.5, 0.7], strict=True))
    assert found["bound_slack"] == pytest.approx(bound - divergences[3])
    assert found["bound_slack"] >= 0


def test_reading_starts_afresh() -> None:
    runtime = Runtime.single("cpu")
    engine = LocalEngine(Stage(networks.plain(2), runtime), Objective())
    meter = Meter(engine)
    readings = []
    for _ in range(3):
        meter.add(engine.evaluate(*networks.batch(5)))
        readings.append(meter.read())
        meter.rehearse()
        assert meter.is_empty
    assert readings[0] == readings[1] == readings[2]


def numbers(runtime: Runtime) -> list[int]:
    return per_rank(runtime, 10 * runtime.rank + 2**40)


@pytest.mark.processes
def test_per_rank() -> None:
    assert run_ranks(numbers, 3) == [[2**40, 2**40 + 10, 2**40 + 20]] * 3


def test_stopwatch_counts_training_alone() -> None:
    watch = Stopwatch(Runtime.single("cpu"))
    watch.start()
    watch.images += 10
    watch.stop()
    seconds = watch.seconds
    assert seconds > 0
    assert watch.lap() == pytest.approx(10 / seconds)
    assert watch.seconds == seconds, "no time passes while it is stopped"
    assert watch.peak_memory > 2**20
