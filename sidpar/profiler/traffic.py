"""What a rank sends: messages and bytes by kind, and the memory that messages under way occupy."""

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Count:
    """Messages of one kind, and their bytes."""

    messages: int = 0
    bytes: float = 0


@dataclass
class Traffic:
    """Counted since the last `reset`.

    A collective counts as one message of the bytes that each rank sends in a ring, which is also how NCCL's own
    benchmark converts time to bandwidth: of n bytes on K ranks, 2 (K-1)/K n for an all-reduce, (K-1)/K n for an
    all-gather or a reduce-scatter, n for a broadcast or a reduction to one rank.
    """

    sent: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    buffers: int = 0
    """Bytes of the buffers of messages under way."""
    peak_buffers: int = 0
    """The most bytes of `buffers` at any time."""

    def reset(self) -> None:
        """Start counting anew; messages under way stay under way."""
        self.sent.clear()
        self.peak_buffers = self.buffers

    def count(self, kind: str, size: float, messages: int = 1) -> None:
        """Messages of `size` bytes in all leave this rank."""
        self.sent[kind].messages += messages
        self.sent[kind].bytes += size

    def occupy(self, size: int) -> None:
        """Buffers of `size` bytes come into use (negative: are given back)."""
        self.buffers += size
        self.peak_buffers = max(self.peak_buffers, self.buffers)
