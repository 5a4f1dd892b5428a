"""What a rank says when the launcher ends it."""

import os
import signal
import sys
import threading
from collections.abc import Callable


def explain_sigterm(moment: Callable[[], str]) -> None:
    """When another rank fails, the launcher ends this one by SIGTERM, often before it has noticed anything. Say what it
    was doing then (`moment`: "rank 1 ... in step 2"): a rank that hangs, or waits for one that was killed, has no other
    way to be named.

    A handler alone would run only once the main thread is back from the message it waits for. So a thread of its own
    waits for the byte that the interpreter writes at once, speaks, and ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return  # the user's own handler knows better
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        while os.read(reader, 1) != bytes([signal.SIGTERM]):
            continue
        print(moment(), file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="sidpar SIGTERM", daemon=True).start()
