"""Searches the fastest way to train a cascade that fits in memory. No torch.

Candidates that differ in the number of microbatches M alone make a row; a plan shows the best of each row.

Every candidate has a bound, found at once (`simulation/lower_bounds.py`). Within a row, candidates are simulated in the
order of their bounds until no bound is left below the best time: nothing is lost by that. What would take long to
simulate, more than `CHEAP_ACTIONS`, is simulated only while it might still be the best of local learning, or of
backpropagation, and never if it has more than `MAX_ACTIONS`. Otherwise the bound stands for the time, and the plan
says so. So a plan takes seconds, also for thousands of ranks.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, get_args

from sidpar.config.groups.choices import CutExtractor, ExtractorPlacement, PipelineName, ScheduleName
from sidpar.errors import UsageError
from sidpar.planner.candidates import Candidate, LocalCandidate, PipelineCandidate, WholeCandidate
from sidpar.planner.job import Job
from sidpar.schedules.cut import PIPELINES, check_microbatches, make_cut
from sidpar.schedules.pipelines import Order
from sidpar.schedules.placement import Copies, Placement, place_as_given, place_by_cost, place_by_count
from sidpar.simulation.rank_memory import Footprint

CHEAP_ACTIONS = 50_000
MAX_ACTIONS = 600_000
LEAST_MICROBATCHES = 64
"""M is tried up to at least this number, and up to the number from which a stream need not wait for the chain."""
WORTH = 1.05
"""How much faster streaming must be than the best synchronous schedule, to be worth its late updates."""
BALANCE = 1.05
"""How much more than a fair share the busiest rank may have by count: costs are measured, with noise."""


@dataclass(frozen=True)
class Option:
    """A candidate and its predicted time and memory."""

    candidate: Candidate
    seconds: float
    bubble: float | None
    """None where `seconds` is a bound."""
    footprints: dict[int, Footprint]
    """The memory of each rank. Where `seconds` is a bound, only of a few ranks, or of none if that would take long."""

    @cached_property
    def largest(self) -> Footprint | None:
        """The memory of the rank that holds most."""
        return max(self.footprints.values(), key=lambda footprint: footprint.total, default=None)

    def fits(self, job: Job) -> bool:
        """Whether it is known to fit in the memory of each rank."""
        return job.device_memory is None or (self.largest is not None and self.largest.total <= job.device_memory)


def record_of(option: Option) -> dict[str, Any]:
    """An option as plain data, for other ranks and for files. Memory is by rank and by kind, in bytes."""
    candidate = option.candidate
    return {
        "method": candidate.method,
        "rule": candidate.rule,
        "schedule": candidate.schedule,
        "extractor": candidate.holding.extractor,
        "microbatches": candidate.microbatches,
        "staleness": candidate.staleness,
        "placement": [len(candidate.holding.refiners(rank)) for rank in range(candidate.holding.num_ranks)],
        "predicted_step_seconds": option.seconds,
        "is_bound": option.bubble is None,
        "predicted_bubble": option.bubble,
        "predicted_memory_bytes": {rank: asdict(footprint) for rank, footprint in option.footprints.items()},
    }


@dataclass(frozen=True)
class Freedom:
    """What a plan may choose for local learning."""

    schedules: Sequence[ScheduleName] = get_args(ScheduleName)
    extractors: Sequence[ExtractorPlacement] = get_args(ExtractorPlacement)
    microbatches: int | None = None
    """The number of microbatches M, if it is set."""
    placement: str | Sequence[int] | None = None
    """`count`, `cost` or refiners per rank, where that is given."""
    staleness: int = 1
    """The staleness S of streams."""


FREE = Freedom(schedules=("fused", "streaming"))
"""What `parallel: auto` may choose: `two_phase` is for comparisons."""


@dataclass(frozen=True)
class Plan:
    """The best of each row, the fastest first, and the choice."""

    rule: str
    """The local rule's name."""
    options: list[Option]
    left_out: dict[str, str]
    """Rows without a candidate, and why."""
    chosen: Option | None
    """The chosen option of local learning; None if nothing fits."""
    best_other: Option | None
    """The fastest option of backpropagation that fits and whose time is not a bound."""


def make_plan(job: Job, freedom: Freedom = Freedom(), order: Order | None = None) -> Plan:
    """Search all ways. Without `order`, pipelines that are not written out are left out."""
    left_out: dict[str, str] = {}
    candidates = [*_possible(job, freedom, left_out), *backpropagation(job, order, left_out)]
    options = search(job, candidates)
    others = [o for o in options if not o.candidate.learns_locally and o.bubble is not None and o.fits(job)]
    best_other = min(others, key=lambda o: o.seconds, default=None)
    return Plan(job.rule, options, left_out, choose(job, options), best_other)


def _possible(job: Job, freedom: Freedom, left_out: dict[str, str]) -> list[Candidate]:
    """The ways of local learning; none, with the reason noted, for more ranks than refiners."""
    try:
        return list(local_candidates(job, freedom))
    except UsageError as error:
        left_out[job.rule] = str(error)
        return []


def choose(job: Job, options: Iterable[Option]) -> Option | None:
    """The fastest option of local learning that fits; a stream only if it is worth it."""
    fitting = [option for option in options if option.candidate.learns_locally and option.fits(job)]
    streams, others = ([o for o in fitting if bool(o.candidate.staleness) == streams] for streams in (True, False))
    stream, other = (min(group, key=lambda o: o.seconds, default=None) for group in (streams, others))
    if stream is None or other is None:
        return stream or other
    return stream if other.seconds > WORTH * stream.seconds else other


def choose_local(job: Job, freedom: Freedom) -> Option | None:
    """The way of local learning that a plan chooses with this freedom; None if none fits."""
    return choose(job, search(job, local_candidates(job, freedom)))


def search(job: Job, candidates: Iterable[Candidate]) -> list[Option]:
    """The best option of each row, the fastest first."""
    rows: dict[str, list[tuple[float, Candidate]]] = defaultdict(list)
    for candidate in candidates:
        rows[candidate.row].append((candidate.bound(job), candidate))
    best: dict[bool, float] = {True: math.inf, False: math.inf}  # of local learning, and of backpropagation
    options = []
    for row in sorted(rows.values(), key=lambda row: min(bound for bound, _ in row)):
        local = row[0][1].learns_locally
        option = _best_of(job, row, best[local])
        options.append(option)
        if option.fits(job) and option.bubble is not None:
            best[local] = min(best[local], option.seconds)
    return sorted(options, key=lambda option: option.seconds)


def _best_of(job: Job, row: Sequence[tuple[float, Candidate]], best: float) -> Option:
    """The fastest of a row that fits, or if none does, the one that needs the least memory."""
    found: Option | None = None
    for bound, candidate in sorted(row, key=lambda pair: (pair[0], pair[1].microbatches)):
        if found is not None and found.fits(job) and bound >= found.seconds:
            break
        effort = candidate.actions(job)
        worth_it = effort <= CHEAP_ACTIONS or (effort <= MAX_ACTIONS and bound < WORTH * best)
        option = evaluate(job, candidate, bound, simulate=worth_it)
        if found is None or _rank(job, option) < _rank(job, found):
            found = option
    assert found is not None, "a row has a candidate"
    return found


def _rank(job: Job, option: Option) -> tuple[bool, float]:
    fits, largest = option.fits(job), option.largest
    return not fits, option.seconds if fits or largest is None else largest.total


def evaluate(job: Job, candidate: Candidate, bound: float, *, simulate: bool) -> Option:
    """What is expected of a candidate; from its bound alone, if it is not to be simulated."""
    if simulate:
        prediction = candidate.predict(job)
        peaks = dict(enumerate(zip(prediction.saved_bytes, prediction.buffer_bytes, strict=True)))
        seconds = max(prediction.seconds, bound)
        return Option(candidate, seconds, prediction.bubble, candidate.footprints(job, peaks))
    ranks = range(candidate.holding.num_ranks)
    weights = candidate.footprints(job, dict.fromkeys(ranks, (0.0, 0.0)))
    heaviest = max(ranks, key=lambda rank: weights[rank].total)
    peaks = candidate.peaks(job, {0, len(ranks) // 2, ranks[-1], heaviest})
    return Option(candidate, bound, None, candidate.footprints(job, peaks))


def local_candidates(job: Job, freedom: Freedom) -> Iterator[Candidate]:
    """Each schedule that may be chosen, with each placement of the extractor, at several M."""
    hidden = 2 * -(-(job.cascade_size + 4) // 3)  # the next power of two from (K+4)/3 on
    most = min(max(LEAST_MICROBATCHES, hidden), max(1, len(job.share.taken) // 2))
    for extractor in freedom.extractors:
        for m in [freedom.microbatches] if freedom.microbatches else powers(most if job.splits_batches else 1):
            loads = job.costs.loads(len(job.share.taken) / m)
            placement = Placement(place(loads, extractor, job.cascade_size, freedom.placement), extractor)
            for schedule in freedom.schedules:
                staleness = freedom.staleness if schedule == "streaming" else 0
                yield LocalCandidate(schedule, placement, m, staleness, job.rule)


def place(
    loads: tuple[Sequence[float], Sequence[float]],
    extractor: ExtractorPlacement,
    ranks: int,
    given: str | Sequence[int] | None,
) -> tuple[int, ...]:
    """Refiners per rank, from the loads of the extractor's layers and of the refiners: as given, else by cost where
    they are too uneven by count."""
    refiners, first = loads[1], sum(loads[0]) if extractor == "root" else 0.0
    if given is not None and not isinstance(given, str):
        return place_as_given(given, len(refiners), ranks)
    by_count = place_by_count(len(refiners), ranks)
    if given != "cost":
        placed = Placement(by_count)
        busiest = max(first * (r == 0) + sum(refiners[i] for i in placed.refiners(r)) for r in range(ranks))
        if given == "count" or busiest <= BALANCE * max(*refiners, (first + sum(refiners)) / ranks):
            return by_count
    return place_by_cost(refiners, ranks, first)


def backpropagation(job: Job, order: Order | None, left_out: dict[str, str]) -> Iterator[Candidate]:
    """Pipelines on all ranks, DDP, one device. Why a schedule has no candidate is noted in `left_out`."""
    ranks, several = job.num_ranks, powers(min(LEAST_MICROBATCHES, job.batch_size))
    extractor: CutExtractor = "cut" if len(job.costs.layers) > 1 else "root"
    for schedule in PIPELINES if ranks > 1 else ():
        counts = sorted({*several, ranks, 2 * ranks, 4 * ranks}) if schedule != "naive" else [1]
        try:
            if order is None and PIPELINES[schedule].sections_per_rank > 1:
                raise UsageError("its order of work is torch's, which was not read")
            yield from _pipelines(job, schedule, extractor, [m for m in counts if m <= job.batch_size], order)
        except UsageError as error:
            left_out[f"bp {schedule} {extractor}"] = str(error)
    whole, alone = Copies(len(job.costs.refiners), ranks), Copies(len(job.costs.refiners), 1)
    for m in several:
        if ranks > 1 and m <= max(1, job.batch_size // ranks):
            yield WholeCandidate("ddp", "ddp", whole, m)
        yield WholeCandidate("bp", "one device", alone, m)
        yield WholeCandidate("bp", "one device, checkpointing", alone, m)


def _pipelines(
    job: Job, schedule: PipelineName, extractor: CutExtractor, counts: Sequence[int], order: Order | None
) -> Iterator[Candidate]:
    """One pipeline at several M. Raises UsageError if it is not defined for any of them."""
    refused: UsageError | None = None
    found = False
    for m in counts:
        try:
            check_microbatches(schedule, m, job.num_ranks)
        except UsageError as error:
            refused = error
            continue
        layers, refiners = job.costs.loads(job.batch_size / m)
        found = True
        yield PipelineCandidate(schedule, make_cut(schedule, extractor, job.num_ranks, layers, refiners), m, order)
    if not found and refused is not None:
        raise refused


def powers(most: int) -> list[int]:
    """1, 2, 4, ... up to a number."""
    return [2**k for k in range(most.bit_length()) if 2**k <= most]
