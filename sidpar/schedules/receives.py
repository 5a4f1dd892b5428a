"""Where in a list of actions the receives of states are posted."""

from collections.abc import Iterable, Iterator

from sidpar.schedules.actions import Action, Do

SHARED = (Do.EXTRACT, Do.EXTRACTOR_BACKWARD)
"""The work in which all ranks wait for each other, where the batch norms of a sharded extractor share statistics."""


def when_needed(actions: Iterable[Action], sender: Iterable[Action] = ()) -> Iterator[Action]:
    """The same list with each receive posted right before it is awaited, instead of one microbatch earlier. In a
    stream, whose first receive of a batch is posted in the turn before, it is then in the batch's own.

    For NCCL, where a receive that waits is a kernel that occupies the device, and a send need not wait for it: a state
    is small enough for the buffers that NCCL keeps between two ranks.

    Args:
        sender: where work of the extractor waits for all ranks, the list of the rank that the states come from. What
            has been sent before such work there is received before it here: nothing that was sent waits behind it.
    """
    sent, sent_before = 0, dict[Action, int]()
    for action in sender:
        sent += action.do is Do.SEND_STATE
        if action.do in SHARED:
            sent_before[action] = sent
    actions = list(actions)
    awaits = [action for action in actions if action.do is Do.AWAIT_STATE]
    posted = awaited = 0
    for action in actions:
        if action.do is Do.POST_STATE:
            continue
        awaited += action.do is Do.AWAIT_STATE
        for wait in awaits[posted : max(awaited, sent_before.get(action, 0))]:
            yield wait._replace(do=Do.POST_STATE)
            posted += 1
        yield action
