"""Standard output whose reader may go away: `| head -1`, a terminal that is closed."""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO)
"""What writing to it then says: of a pipe, of a terminal."""


@contextmanager
def printing() -> Iterator[None]:
    """For a program that only prints: it ends when nobody reads on, quietly, as if by SIGPIPE."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        _discard(sys.stdout)
        raise SystemExit(128 + signal.SIGPIPE) from error


@contextmanager
def without_reader() -> Iterator[None]:
    """For a program whose work is not what it prints: it goes on when nobody reads on."""
    own = sys.stdout, sys.stderr
    lasting = _Lasting(own[0]), _Lasting(own[1])
    sys.stdout, sys.stderr = lasting
    try:
        yield
    finally:
        for stream in lasting:
            stream.flush()
        sys.stdout, sys.stderr = own
        for stream, original in zip(lasting, own, strict=True):
            if stream.gone:
                _discard(original)


class _Lasting:
    """A stream that takes everything, also when what is behind it is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.gone = False

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Any, *arguments: Any) -> None:
        if self.gone:
            return
        try:
            call(*arguments)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self.gone = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _discard(stream: TextIO) -> None:
    """What is still in the stream's buffer goes nowhere, or the interpreter would complain about it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
