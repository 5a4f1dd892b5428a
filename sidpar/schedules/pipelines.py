"""Pipelines of backpropagation as lists of actions, in the form of `synchronous.py`: for the cost model and drawings.

`gpipe` (and so naive, with M = 1) and `one_f_one_b` are written out here for any number of ranks; for the others the
order of the sections' work is read off torch's own schedule. `with_messages` adds what has to travel in between.

Letters: s section, m microbatch, M microbatches, K ranks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from sidpar.config.groups.choices import PipelineName
from sidpar.schedules.actions import Action, Do
from sidpar.schedules.cut import Cut

Lists = Sequence[Iterable[Action]]
Order = Callable[[PipelineName, Cut, int], Lists]
"""A function that gives the work of all ranks, for a cut and M microbatches, by a pipeline that is not written out
here."""

BACKWARDS_TO_INPUT = (Do.SECTION_BACKWARD, Do.SECTION_INPUT_BACKWARD)


def pipeline_lists(schedule: PipelineName, cut: Cut, microbatches: int, order: Order | None = None) -> Lists:
    """All ranks' actions of a step, messages included. Only a pipeline that is not written out here needs an order."""
    ranks = range(cut.num_ranks)
    work: Lists
    match schedule:
        case "naive" | "gpipe":
            work = [gpipe(cut, rank, microbatches) for rank in ranks]
        case "1f1b":
            work = [one_f_one_b(cut, rank, microbatches) for rank in ranks]
        case _:
            assert order is not None, "somebody must know the order"
            work = order(schedule, cut, microbatches)
    return [with_messages(cut, mine) for mine in work]


def gpipe(cut: Cut, rank: int, microbatches: int) -> Iterator[Action]:
    """All forwards, then all backwards."""
    for do in (Do.SECTION_FORWARD, Do.SECTION_BACKWARD):
        for m in range(microbatches):
            yield Action(do, m, section=rank)


def one_f_one_b(cut: Cut, rank: int, microbatches: int) -> Iterator[Action]:
    """As many forwards as it takes to fill the pipeline behind, then one backward and one forward in turn."""
    ahead = min(cut.num_ranks - 1 - rank, microbatches)
    for m in range(microbatches + ahead):
        if m < microbatches:
            yield Action(Do.SECTION_FORWARD, m, section=rank)
        if m >= ahead:
            yield Action(Do.SECTION_BACKWARD, m - ahead, section=rank)


def with_messages(cut: Cut, work: Iterable[Action]) -> Iterator[Action]:
    """One rank's work, with a wait before whatever comes from another rank and a send after what another rank needs."""
    last = cut.num_sections - 1
    for action in work:
        m, s = action.microbatch, action.section
        assert s is not None
        own = cut.rank_of(s)
        before = cut.rank_of(s - 1) if s > 0 else own
        after = cut.rank_of(s + 1) if s < last else own
        if action.do is Do.SECTION_FORWARD:
            if before != own:
                yield Action(Do.AWAIT_ACTIVATION, m, section=s, peer=before)
            yield action
            if after != own:
                yield Action(Do.SEND_ACTIVATION, m, section=s + 1, peer=after)
        elif action.do in BACKWARDS_TO_INPUT:
            if after != own:
                yield Action(Do.AWAIT_ACTIVATION_GRADIENT, m, section=s, peer=after)
            yield action
            if before != own:
                yield Action(Do.SEND_ACTIVATION_GRADIENT, m, section=s - 1, peer=before)
        else:
            yield action
