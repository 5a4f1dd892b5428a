"""Standard output and error that may fail: closed by the shell (`>&-`), without a reader (`| head -1`, a closed
terminal), or on a full disk."""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO)
"""The error numbers of writing to a pipe or a terminal that nobody reads any more."""
_STANDARD_ERROR = 2


@contextmanager
def printing(program: str) -> Iterator[None]:
    """For a program that only prints. It ends quietly, as if by SIGPIPE, when nobody reads its output any more. It ends
    with one line and exit code 1 when its output cannot be written. Output to a stream that was closed from the start
    is dropped."""
    with _watched(lasting=False) as output:
        try:
            yield
        except (OSError, SystemExit):  # argparse writes, swallows the error, and exits
            output.finish()
            if output.error is None:
                raise
        else:
            output.finish()
        if output.error is not None:
            if output.error.errno in _GONE:
                raise SystemExit(128 + signal.SIGPIPE) from output.error
            reason = f"the standard output cannot be written ({output.error.strerror})"
            print(f"{program}: error: {reason}: redirect it elsewhere", file=sys.stderr)
            raise SystemExit(1) from output.error


@contextmanager
def without_reader() -> Iterator[None]:
    """For a program that does more than print: it goes on, whatever happens to its output."""
    with _watched(lasting=True):
        yield


@contextmanager
def _watched(*, lasting: bool) -> Iterator["_Stream"]:
    """Watch both streams, and yield the standard output. A failure of the standard error never ends the program."""
    _open_closed()
    own = sys.stdout, sys.stderr
    streams = _Stream(own[0], lasting=lasting), _Stream(own[1], lasting=True)
    sys.stdout, sys.stderr = streams
    try:
        yield streams[0]
    finally:
        for stream in streams:
            stream.finish()
        sys.stdout, sys.stderr = own


def _open_closed() -> None:
    """Connect closed standard streams to /dev/null. Otherwise files that are opened later would get their numbers, and
    receive what libraries print."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass  # the lowest number that is free
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # as the interpreter has found it
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  stays open


class _Stream:
    """A stream that remembers its first error, and drops everything after it."""

    def __init__(self, stream: TextIO, *, lasting: bool) -> None:
        """A `lasting` one does not raise it."""
        self._stream = stream
        self._lasting = lasting
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def finish(self) -> None:
        """Write what is left, if possible."""
        self._lasting = True
        self.flush()
        if self.error is not None:
            _discard(self._stream)

    def _try(self, call: Any, *arguments: Any) -> None:
        if self.error is not None:
            return
        try:
            call(*arguments)
        except OSError as error:
            self.error = error
            if not self._lasting:
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _discard(stream: TextIO) -> None:
    """Drop what is still in the stream's buffer: the interpreter would report an error when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
