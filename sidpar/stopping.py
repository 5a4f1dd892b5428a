"""Between which two steps all ranks stop, when one of them has been asked to."""

from collections.abc import Callable

from sidpar.runtime import Runtime

REQUEUE_STATUS = 75
"""Exit status of a run that stopped on request: EX_TEMPFAIL, run me again."""


class Stopping:
    """Asked before every step, on every rank. What the ranks say to one question is heard at the next one, so nobody
    waits for the others, and all stop at the same step: the one after."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._heard: Callable[[], bool] = lambda: False
        if runtime.signals is not None:
            runtime.signals.finish_step_on_request()

    def is_due(self) -> bool:
        """Whether to stop here: the same on every rank."""
        heard = self._heard()
        signals = self._runtime.signals
        self._heard = self._runtime.start_request(signals is not None and signals.stop_requested)
        return heard

    def finish(self) -> None:
        """Hear the answer that is still under way, before the groups are gone."""
        self._heard()
        self._heard = lambda: False
