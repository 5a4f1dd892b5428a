"""The messages of one batch that are under way on this rank: started by one action, awaited by a later one."""

from sidpar.cascade.cascade import TensorTuple
from sidpar.messages.wire import Pending
from sidpar.schedules.actions import Action, Do


class PendingMessages:
    """Started messages by the verb that started them and the microbatch; None is the whole batch."""

    def __init__(self) -> None:
        self._pending: dict[tuple[Do, int | None], Pending] = {}

    def start(self, action: Action, pending: Pending) -> None:
        self._pending[action.do, action.microbatch] = pending

    def finish(self, started: Do, m: int | None = None) -> TensorTuple:
        """Wait for one, and take what it brought."""
        return self._pending.pop((started, m)).wait()

    def finish_all(self, started: Do) -> None:
        """Wait for all that one verb has started."""
        for do, m in [key for key in self._pending if key[0] is started]:
            self.finish(do, m)

    def check_finished(self) -> None:
        assert not self._pending, f"the schedule leaves messages unawaited: {list(self._pending)}"
