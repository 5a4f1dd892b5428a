"""Where in a list of actions the receives of states are posted."""

from collections.abc import Iterable, Iterator

from sidpar.schedules.actions import Action, Do


def when_needed(actions: Iterable[Action]) -> Iterator[Action]:
    """The same list with each receive posted right before it is awaited, instead of one microbatch earlier. In a
    stream, whose first receive of a batch is posted in the turn before, it is then in the batch's own.

    For NCCL, where a receive that waits is a kernel that occupies the device, and a send need not wait for it: a state
    is small enough for the buffers that NCCL keeps between two ranks.
    """
    for action in actions:
        if action.do is Do.POST_STATE:
            continue
        if action.do is Do.AWAIT_STATE:
            yield action._replace(do=Do.POST_STATE)
        yield action
