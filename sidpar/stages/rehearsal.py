"""Dry runs: passes that use every kernel once, and whose effects are undone."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from sidpar.messages.gradients import GradientBuckets
from sidpar.messages.transport import Transport
from sidpar.seeding import undisturbed
from sidpar.stages.stage import Stage


@contextmanager
def unnoticed(stage: Stage, transport: Transport, buckets: Iterable[GradientBuckets]) -> Iterator[None]:
    """Inside, a rank goes through its actions alone, without sending messages. Afterwards, what modules keep, random
    numbers and traffic are as before; gradients are not."""
    with ExitStack() as stack:
        stack.enter_context(undisturbed(stage.runtime.device))
        stack.enter_context(stage.undone())
        stack.enter_context(transport.silent())
        for each in buckets:
            stack.enter_context(each.unlearned())
        yield
