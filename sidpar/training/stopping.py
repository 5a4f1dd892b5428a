"""Decides after which step all ranks stop, when one of them has been asked to."""

from collections import deque
from collections.abc import Callable

from sidpar.distributed.runtime import Runtime

REQUEUE_STATUS = 75
"""Exit status of a run that stopped on request: EX_TEMPFAIL, which asks to run it again."""


class Stopping:
    """Asked before every step, on every rank, so that all stop at the same one.

    What the ranks say to one question is heard some questions later: at the next one, or as many later as the ranks may
    be steps apart, so that nobody waits for the others.
    """

    def __init__(self, runtime: Runtime, apart: int = 1) -> None:
        """`apart`: steps by which ranks may be ahead of others."""
        self._runtime = runtime
        self._apart = apart
        self._asked: deque[Callable[[], bool]] = deque()
        if runtime.signals is not None:
            runtime.signals.finish_step_on_request()

    def is_due(self) -> bool:
        """Whether to stop here: the same on every rank."""
        signals = self._runtime.signals
        heard = self._asked.popleft()() if len(self._asked) == self._apart else False
        self._asked.append(self._runtime.start_request(signals is not None and signals.stop_requested))
        return heard

    def finish(self) -> None:
        """Hear the answers that are still under way, before the groups are gone."""
        while self._asked:
            self._asked.popleft()()
