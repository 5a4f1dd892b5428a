"""The text of a plan: the prediction for each way to train, and which is the fastest that fits. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from textwrap import fill

from sidpar.config.units import human, human_seconds, unit_of
from sidpar.planner.candidates import LocalCandidate
from sidpar.planner.job import Job
from sidpar.planner.search import Option, Plan
from sidpar.simulation.rank_memory import Footprint

COLUMNS = 80
"""Of the narrowest terminal."""
FEW_RANKS = 32
KINDS_OF_MEMORY = ("parameters", "gradients", "optimizer", "versions", "activations", "buffers")
"""Of a `Footprint`, in the order of its fields."""


def plan_text(conditions: Sequence[str], job: Job, configured: Option, plan: Plan) -> str:
    """All of it, for a terminal."""
    lines = [*conditions, "", f"As configured: {name_of(configured)}", *described(job, configured), ""]
    if plan.chosen is None:
        lines.append(f"No way of {spoken(plan.rule)} is known to fit.")
    elif plan.chosen.candidate == configured.candidate:
        lines.append(f"That is the plan's choice for {spoken(plan.rule)}, too.")
    else:
        lines += [f"The plan's choice for {spoken(plan.rule)}: {name_of(plan.chosen)}", *described(job, plan.chosen)]
    lines += ["", *table(job, plan), ""]
    closing = [*(f"left out: {row}: {reason}" for row, reason in plan.left_out.items()), verdict(plan)]
    return "\n".join([*lines, *(fill(line, COLUMNS, subsequent_indent="  ") for line in closing)])


def verdict(plan: Plan) -> str:
    """Whether local learning is the fastest, and if not, what is."""
    other, chosen, rule = plan.best_other, plan.chosen, spoken(plan.rule)
    if chosen is None and other is None:
        return "Nothing is known to fit: use more ranks, a smaller batch, or devices with more memory."
    if chosen is None or other is None:
        fits = chosen or other
        assert fits is not None
        nothing = rule if chosen is None else "backpropagation"
        return f"No way of {nothing} is known to fit; {name_of(fits)} is, with {time_of(fits)} a step."
    times = f"{name_of(chosen)}, {time_of(chosen)} a step; {name_of(other)}, {time_of(other)}"
    if other.seconds < chosen.seconds:
        return f"{rule} is not the fastest: {times}; it takes {chosen.seconds / other.seconds:.2f} times as long."
    if chosen.bubble is None:
        return f"{rule} may be the fastest: {times}; too many actions to simulate, the first is a bound."
    return f"{rule} is predicted to be the fastest: {times}."


def name_of(option: Option) -> str:
    """As people say it."""
    candidate = option.candidate
    if candidate.schedule.startswith(candidate.way):  # which says all
        name = candidate.schedule.replace(candidate.way, spoken(candidate.way))
        return name if candidate.microbatches == 1 else f"{name} with M = {candidate.microbatches}"
    parts = [spoken(candidate.way), candidate.schedule.replace("_", " ")]
    if not candidate.schedule.startswith("one device"):
        parts.append(f"({candidate.holding.extractor} extractor)")
    return " ".join(parts) + f" with M = {candidate.microbatches}"


def spoken(way: str) -> str:
    """Short names are abbreviations: SID, BP."""
    return way.upper() if len(way) <= 3 else way.replace("_", " ")


def described(job: Job, option: Option) -> Iterator[str]:
    """What runs where, what it holds and sends, and how long it takes."""
    candidate = option.candidate
    if isinstance(candidate, LocalCandidate):
        yield f"  refiners per rank   {runs(candidate.placement.counts)}"
    yield f"  step                {time_of(option)}" + (
        "" if option.bubble is None else f", {percent(option.bubble)} bubble"
    )
    for message in candidate.messages(job):
        yield f"  message             {message.kind}: {message.number} of {human(message.size)} a step"
    ranks = sorted(option.footprints)
    shown = ranks if len(ranks) <= FEW_RANKS else [0, 1, ranks[-1]]
    largest = option.largest
    divisor, unit = unit_of(0.0 if largest is None else largest.total)
    yield f"  memory, {unit}"
    yield "    rank " + " ".join(f"{name:>{max(7, len(name))}}" for name in (*KINDS_OF_MEMORY, "all"))
    for rank in shown:
        yield f"    {rank:>4} " + " ".join(memory_row(option.footprints[rank], divisor))


def memory_row(footprint: Footprint, divisor: float) -> list[str]:
    """Each kind, and their sum, in columns as wide as their names."""
    digits = 0 if divisor == 1 else 2
    sizes = (*asdict(footprint).values(), footprint.total)
    names = (*KINDS_OF_MEMORY, "all")
    return [f"{size / divisor:>{max(7, len(name))}.{digits}f}" for size, name in zip(sizes, names, strict=True)]


def table(job: Job, plan: Plan) -> Iterator[str]:
    """One line for each way, the fastest first."""
    names = [" ".join(dict.fromkeys(option.candidate.row.removesuffix(" whole").split())) for option in plan.options]
    width = max(map(len, names), default=3)
    yield f"{'way':<{width}} {'M':>4} {'step':>9} {'bubble':>6} {'memory':>11}  note"
    for option, name in zip(plan.options, names, strict=True):
        candidate, largest = option.candidate, option.largest
        notes = ["chosen"] if option is plan.chosen else []
        if option.bubble is None:
            notes.append("a bound")
        if not option.fits(job):
            notes.append("does not fit" if largest is not None else "not known to fit")
        yield (
            f"{name:<{width}} {candidate.microbatches:>4} {time_of(option):>9} "
            f"{'-' if option.bubble is None else percent(option.bubble):>6} "
            f"{'-' if largest is None else human(largest.total):>11}  {', '.join(notes)}"
        ).rstrip()


def time_of(option: Option) -> str:
    return ("" if option.bubble is not None else ">= ") + human_seconds(option.seconds)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def runs(counts: Sequence[int]) -> str:
    """[2, 2, 2, 1] as `2 on 3 ranks, 1 on 1 rank`."""
    lengths = [(count, len(list(group))) for count, group in groupby(counts)]
    return ", ".join(f"{count} on {length} rank{'s' if length > 1 else ''}" for count, length in lengths)
