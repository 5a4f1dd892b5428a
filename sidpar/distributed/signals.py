"""Handles signals of the launcher: to end, or to stop at the next step."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

GRACE_SECONDS = 25.0
"""From SIGTERM to the end at the latest: torchrun waits 30 s before it kills."""


class Signals:
    """Waits for signals in a thread of its own.

    When another rank fails, the launcher ends this one by SIGTERM, often before it has noticed anything. It then says
    what it was doing: a rank that hangs, or waits for one that was killed, has no other way to be named. A handler
    alone would run only once the main thread is back from the message it waits for, so a thread waits for the byte that
    the interpreter writes at once, speaks, and ends the process.

    A program that can stop between steps says so by `finish_step_on_request`. SIGTERM and SIGUSR1 (SLURM's warning
    before a time limit, or a preemption) then only set `stop_requested`; SIGTERM ends the process all the same where
    another rank has failed, or the device hangs, so that no common step is to be expected, or after `GRACE_SECONDS`.
    """

    def __init__(
        self,
        moment: Callable[[str], str],
        another_failed: Callable[[], bool],
        hangs: Callable[[], bool] | None = None,
    ) -> None:
        """`moment("was ended")` tells what this rank is doing; `hangs` watches the device for a while."""
        self.stop_requested = False
        self._moment = moment
        self._another_failed = another_failed
        self._hangs = hangs
        self._may_stop = False
        self._ends_in_time = False

    def listen(self) -> None:
        """Answer SIGTERM from now on, unless the program has a handler of its own, which knows better."""
        here = threading.current_thread() is threading.main_thread()
        if not here or signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, _ignore):
            return
        signal.signal(signal.SIGTERM, _ignore)
        _listeners.append(self)
        if not _watcher:
            _start_watching()

    def rest(self) -> None:
        """Leave signals to the program again."""
        if self in _listeners:
            _listeners.remove(self)
        for number in () if _listeners else (signal.SIGTERM, signal.SIGUSR1):
            if signal.getsignal(number) is _ignore:
                signal.signal(number, signal.SIG_DFL)

    def finish_step_on_request(self) -> None:
        """From now on, look at `stop_requested` between steps."""
        if self in _listeners:
            self._may_stop = True
            signal.signal(signal.SIGUSR1, _ignore)

    def hear(self, number: int) -> None:
        """A signal has come."""
        if not self._may_stop:  # then it is SIGTERM
            self._end()
        self.stop_requested = True
        if number == signal.SIGTERM and not self._ends_in_time:  # SLURM and torchrun may both send one
            self._ends_in_time = True
            self._end_in_time()

    def _end_in_time(self) -> None:
        limit = threading.Timer(GRACE_SECONDS, self._end)
        limit.daemon = True
        limit.start()
        # Each apart: where the network is cut, the store never answers.
        for reason in filter(None, (self._another_failed, self._hangs)):
            threading.Thread(target=self._end_for, args=(reason,), name="sidpar failures", daemon=True).start()

    def _end_for(self, reason: Callable[[], bool]) -> None:
        while not reason():
            time.sleep(0.2)
        self._end()

    def _end(self) -> None:
        try:
            print(self._moment("was ended"), file=sys.stderr, flush=True)
        finally:  # also where nobody hears it
            os._exit(128 + signal.SIGTERM)


_listeners: list[Signals] = []
"""The last one is asked."""
_watcher: list[threading.Thread] = []


def _start_watching() -> None:
    """Once in a process: pipe and thread stay."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)
    _watcher.append(threading.Thread(target=_watch, args=(reader,), name="sidpar signals", daemon=True))
    _watcher[0].start()


def _watch(reader: int) -> None:
    while True:
        number = os.read(reader, 1)[0]
        if number in (signal.SIGTERM, signal.SIGUSR1) and _listeners:
            _listeners[-1].hear(number)


def _ignore(number: int, frame: object) -> None:
    """The byte that is written for the signal does the work."""


def _forget() -> None:
    """A forked child is no rank: its signals must not be taken for its parent's."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
