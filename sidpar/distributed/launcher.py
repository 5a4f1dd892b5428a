"""Ends a rank's launcher (torchrun) when the host on which all launchers meet no longer answers."""

import atexit
import os
import signal
from contextlib import suppress
from pathlib import Path

from torch.distributed.distributed_c10d import Store

from sidpar.distributed.exchange import within

PATIENCE = 8.0
"""Seconds for the store to answer. A store that is only busy answers sooner."""


def end_launcher_if_cut_off(store: Store, hosts: int) -> str | None:
    """If this host is cut off: a sentence about it for the error message. The launcher is then ended together with this
    process.

    torchrun asks the store of the first host once a second, without a timeout. When packets vanish, which nobody is
    told of, it waits for as long as the kernel keeps the connection, and does not notice that its ranks have ended.
    No signal that it handles reaches it there.
    """
    if hosts < 2 or _answers(store):
        return None
    launcher = os.getppid()
    if not _is_torchrun(launcher):
        return None
    atexit.register(os.kill, launcher, signal.SIGKILL)  # runs after the traceback is shown
    return (
        f"the host on which the launchers meet did not answer for {PATIENCE:g} s either: this host is cut off from it, "
        "and its torchrun, which would go on waiting, is ended with this rank"
    )


def _answers(store: Store) -> bool:
    try:
        return within(PATIENCE, lambda: [store.check(["anything"])]) is not None
    except RuntimeError:  # a closed connection is an answer too: the launcher gets the same
        return True


def _is_torchrun(process: int) -> bool:
    """False also where there is no /proc to tell."""
    with suppress(OSError):
        command = Path(f"/proc/{process}/cmdline").read_bytes()
        return b"torch.distributed.run" in command or b"torchrun" in command
    return False
