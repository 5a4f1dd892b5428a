"""Which rank has failed, and why. A rank that fails reports it through the store. The others only see a closed
connection, and their error messages would hide the reason."""

import re
from contextlib import suppress

from torch.distributed.distributed_c10d import Store

from sidpar.distributed.exchange import within

_KEY = "failed"
_PATIENCE = 3.0
"""Seconds for the store to answer."""
_LOST = re.compile("Connection (closed|reset|refused)|Broken pipe|remote process|aborted|gave up", re.IGNORECASE)
"""The words of errors that another rank's end causes. A timeout is not among them: the rank that reports it may be the
first to notice what is wrong."""


def tell_failure(store: Store, rank: int, error: BaseException) -> None:
    """Report that this rank has failed with this error."""
    text = " ".join(str(error).split())
    with suppress(RuntimeError):  # the store may be gone with its host: the error that passes says more
        store.set(_KEY, f"rank {rank} has failed ({type(error).__name__}: {text})")


def has_failed(store: Store) -> bool:
    """Whether any rank has reported a failure."""
    return bool(store.check([_KEY]))


def failure_elsewhere(store: Store, error: BaseException) -> str | None:
    """Which rank has failed and why, if `error` only says that its connection is gone. None if that is not known: a
    rank that was killed reports no reason, and the error of another rank that lost its connection is no reason."""
    if not isinstance(error, RuntimeError) or not _LOST.search(str(error)):
        return None

    def ask() -> str | None:
        own = store.clone()  # a question without an answer would occupy the connection
        reason = own.get(_KEY).decode() if own.check([_KEY]) else None
        return None if reason is None or _LOST.search(reason) else reason

    with suppress(RuntimeError):
        return within(_PATIENCE, ask)
    return None
