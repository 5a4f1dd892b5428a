"""Networks as people write them: every engine trains them as a plain loop does, or refuses them in one line.

Random ones, as many as one likes, with a count of the refusals by their reason:

    python -m tests.engines.modules.test_quirks --ranks 4 --number 500
"""

import argparse
import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sidpar import (
    BPEngine,
    Cascade,
    LocalEngine,
    Objective,
    ParallelEngine,
    PipelineEngine,
    Runtime,
    Stage,
    StreamingEngine,
    UsageError,
    make_cut,
)
from sidpar.schedules.placement import Copies
from tests.engines.modules.quirks import ALPHA, ANYWHERE, EXTRACTOR, KEPT, RATE, REFINER, batches, build, plain_loop
from tests.harness import run_ranks

TOLERANCE = 1e-9
STEPS = 3
SCHEDULES = ("fused", "two_phase", "streaming")
BACKPROPAGATION = ("whole", "gpipe", "1f1b")

BATCHWISE = {"batch norm", "looks", "even rows"}
"""What a module does with a row depends on the others, so parts of a batch give other gradients, as everywhere."""
PAIRS = (
    ("writes input", "writes belief"),
    ("two features", "writes features"),
    ("complex", "complex hidden"),
    ("integers", "writes hidden"),
    ("complex", "writes features"),
    ("two features", "hidden"),
)
NETWORKS: list[tuple[Collection[str], Collection[str]]] = [
    ((), ()),
    *(((name,), (name,)) for name in ANYWHERE),
    *(((one,), (other,)) for one, other in PAIRS),
]

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore:.*weight_norm")]


class Case(NamedTuple):
    """A network, and how it is trained."""

    extractor: Collection[str]
    refiner: Collection[str]
    schedule: str
    placement: Any
    microbatches: int


def train(runtime: Runtime, case: Case) -> str | None:
    """Three steps. None if weights and buffers of this rank are then what a plain loop finds; else the refusal."""
    quirks, schedule, microbatches = (case.extractor, case.refiner), case.schedule, case.microbatches
    local = schedule not in BACKPROPAGATION
    stage = place(build(*quirks), runtime, case)
    optimizer = torch.optim.SGD(stage.parameters(), lr=RATE)
    objective = Objective(alpha=ALPHA) if local else Objective()
    try:
        engine: Any
        if schedule == "streaming":
            engine = StreamingEngine(stage, objective, microbatches=microbatches, staleness=1)
        elif schedule == "local":
            engine = LocalEngine(stage, objective)
        elif schedule == "whole":
            engine = BPEngine(stage, objective, microbatches=microbatches)
        elif not local:
            engine = PipelineEngine(stage, objective, schedule=schedule, microbatches=microbatches)  # type: ignore[arg-type]
        else:
            engine = ParallelEngine(stage, objective, schedule=schedule, microbatches=microbatches)  # type: ignore[arg-type]
        for _ in engine.train(batches(STEPS), lambda _: optimizer.step()):
            pass
    except UsageError as error:
        return str(error)
    parts = microbatches * (runtime.world_size if schedule == "whole" else 1)
    if parts == 1 or BATCHWISE.isdisjoint([*case.extractor, *case.refiner]):
        expected = plain_loop(build(*quirks), batches(STEPS), int(schedule == "streaming"), local=local)
        check(case, dict([*stage.named_parameters(), *stage.named_buffers()]), expected)
    return None


def place(cascade: Cascade, runtime: Runtime, case: Case) -> Stage:
    number = len(cascade.refiners)
    if case.schedule == "whole":
        return Stage(cascade, runtime, placement=Copies(number, runtime.world_size))
    if case.schedule in BACKPROPAGATION:
        costs = [1.0] * number
        cut = make_cut(case.schedule, case.placement, runtime.world_size, [1.0], costs)  # type: ignore[arg-type]
        return Stage(cascade, runtime, placement=cut)
    return Stage(cascade, runtime, extractor=case.placement)


def check(case: Case, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in found.items():
        if name.endswith(".work"):  # holds what the last forward left there, of a part of a batch
            continue
        difference = (tensor.cpu() - expected[name]).abs().max().item()
        assert difference <= TOLERANCE * max(1.0, expected[name].abs().max().item()), f"{case}: {name} {difference}"


def train_all(runtime: Runtime, cases: Sequence[Case]) -> list[str | None]:
    return [train(runtime, case) for case in cases]


def answers(ranks: int, cases: Sequence[Case], timeout: float = 120.0) -> Iterator[tuple[Case, str | None]]:
    """Every case with its refusal, which is the same on every rank, before the first message: they go on together."""
    found = run_ranks(train_all, ranks, cases, timeout=timeout)
    for case, (refusal, *others) in zip(cases, zip(*found, strict=True), strict=True):
        assert all(other == refusal for other in others), f"{case}: {[refusal, *others]}"
        yield case, refusal


def setups(ranks: int, schedules: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    placements = ("replicated", "root", "sharded") if ranks > 1 else ("replicated",)
    yield from product(schedules, placements, (1, 3))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_kind(ranks: int, schedule: str) -> None:
    cases = [Case(*network, *setup) for network in NETWORKS for setup in setups(ranks, [schedule])]
    for case, refusal in answers(ranks, cases):
        names = {*case.extractor, *case.refiner}
        expected = None
        if "iterator" in names:
            expected = "returns another result for the same input the next time"
        elif case.placement == "sharded" and not names.isdisjoint({*KEPT, "batch norm", "even rows", "scratch"}):
            expected = "a sharded extractor sees only 1/"
        elif case.microbatches > 1 and "even rows" in names:
            expected = "tried with B=3: quirks.py, line"
        elif "scratch" in names and overlaps(ranks, case):
            expected = "which the backward of an earlier batch or microbatch still needs"
        elif case.microbatches > 1 and not names.isdisjoint(KEPT):
            expected = "from one forward to the next, but microbatches=3 gives it parts of a batch"
        elif schedule == "streaming" and "max norm" in names:
            expected = "the forward of the extractor writes into parameters that are trained (table.weight)"
        elif schedule == "streaming" and "unseen write" in names:
            expected = "writes into hidden_scale, which the backward of an earlier batch or microbatch still"
        if case.placement == "sharded" and "looks" in names:  # whether it does depends on the rows
            continue
        assert (refusal is None) == (expected is None), f"{case}: {refusal}"
        assert expected is None or expected in str(refusal), f"{case}: {refusal}"


def overlaps(ranks: int, case: Case) -> bool:
    """Whether the extractor makes a forward before the backward of the one before."""
    if case.schedule == "streaming" or case.microbatches == 1:
        return case.schedule == "streaming"
    return case.placement == "root" or (case.schedule == "fused" and ranks > 1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_backpropagation(ranks: int) -> None:
    """In one process, by DDP, and by torch's pipelines."""
    setups = [("whole", "replicated", 1), ("whole", "replicated", 2)]
    setups += [("gpipe", "root", 4), ("1f1b", "root", 4)] if ranks > 1 else []
    cases = [Case(*network, *setup) for network in NETWORKS for setup in setups]
    for case, refusal in answers(ranks, cases):
        names = {*case.extractor, *case.refiner}
        expected = None
        if "iterator" in names:
            expected = "returns another result for the same input the next time"
        elif ranks * case.microbatches > 1 and not names.isdisjoint(KEPT):
            expected = "gives it parts of a batch"
        elif case.schedule != "whole" and "scratch" in names:
            expected = "which the backward of an earlier batch or microbatch still needs"
        elif ranks > 1 and case.schedule == "whole" and "reentrant" in names:
            expected = "DDP takes a gradient that comes in several parts for complete after the first one"
        elif case.schedule != "whole" and "integers" in names:
            expected = "is torch.int64: a pipeline sends a gradient back"
        assert (refusal is None) == (expected is None), f"{case}: {refusal}"
        assert expected is None or expected in str(refusal), f"{case}: {refusal}"


@pytest.mark.parametrize("ranks", [1, 2])
def test_sparse_states_are_refused(ranks: int) -> None:
    cases = [Case((), ("sparse hidden",), *setup) for setup in setups(ranks, SCHEDULES)]
    for case, refusal in answers(ranks, cases):
        assert refusal == (
            "refiner 0 returns a sparse (torch.sparse_coo) tensor, but modules of a cascade can pass on dense ones "
            "only: return to_dense(), and convert it where it is used"
        ), case


@pytest.mark.parametrize("ranks", [1, 2])
def test_ragged_features_are_refused(ranks: int) -> None:
    for case, refusal in answers(ranks, [Case(("ragged",), (), *setup) for setup in setups(ranks, SCHEDULES)]):
        assert "the shapes that a module returns must not depend on data" in str(refusal), case


def draw(ranks: int, number: int, seed: int) -> list[Case]:
    """Random networks, up to three quirks in each part however many there are to draw from, and ways to train them."""
    source, found = random.Random(seed), []
    for _ in range(number):
        extractor, refiner = (source.sample(names, source.randint(0, 3)) for names in (EXTRACTOR, REFINER))
        setup = source.choice([*setups(ranks, SCHEDULES), *([("local", "replicated", 1)] if ranks == 1 else [])])
        found.append(Case(extractor, refiner, *setup))
    return found


def count(ranks: int, number: int, seed: int, timeout: float = 120.0) -> Counter[str]:
    """How many were trained as a plain loop does, and how many refused, by reason."""
    reasons = {
        "the extractor of a sharded placement sees part of a batch": "a sharded extractor sees only",
        "a part keeps something, and sees parts of a batch": "gives it parts of a batch",
        "a backward needs what the next forward writes": "the backward of an earlier batch or microbatch still needs",
        "a stream has weights of its own": "writes into parameters that are trained",
        "a sparse state": "returns a sparse",
        "something that is not seen": "returns another result for the same input the next time",
        "an odd number of rows": "is invalid for input of size",
    }
    found: Counter[str] = Counter()
    for case, refusal in answers(ranks, draw(ranks, number, seed), timeout):
        names = [name for name, text in reasons.items() if refusal is not None and text in refusal]
        assert refusal is None or names, f"{case}: {refusal}"
        found["refused: " + names[0] if names else "trained"] += 1
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_random_networks(ranks: int) -> None:
    found = count(ranks, 40, seed=ranks)
    assert found["trained"] >= 15, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for reason, times in count(given.ranks, given.number, given.seed, 10.0 * given.number).most_common():
        print(f"{times:6} {reason}")
