"""How a global batch of B samples is cut into M microbatches and, for a sharded extractor, into K shards. No torch.

Microbatch m is a run of consecutive rows. Rank r's shard is its share of *every* microbatch, one after the other, so
that the feature gradient of one microbatch can be scattered to its owners while the next one is still being computed.
"""

from dataclasses import dataclass
from functools import cached_property

from sidpar.placement import even_split, offsets


@dataclass(frozen=True)
class BatchLayout:
    """The cut of one batch size; ragged sizes differ by at most one row, and a shard may be empty."""

    batch_size: int
    requested_microbatches: int
    num_ranks: int

    @cached_property
    def microbatches(self) -> list[range]:
        """Rows of each microbatch. A batch smaller than M has one row per microbatch, and fewer microbatches."""
        return offsets(even_split(self.batch_size, min(self.requested_microbatches, self.batch_size)))

    @cached_property
    def parts(self) -> list[list[range]]:
        """`parts[m][r]`: the rows of microbatch m, counted within it, that rank r extracts."""
        return [offsets(even_split(len(rows), self.num_ranks)) for rows in self.microbatches]

    def shard(self, rank: int) -> list[int]:
        """The rows of the batch that `rank` extracts, in the order in which it does."""
        return [
            rows.start + row for rows, part in zip(self.microbatches, self.parts, strict=True) for row in part[rank]
        ]

    def part_in_shard(self, m: int, rank: int) -> slice:
        """Where rank's part of microbatch m lies in its shard."""
        start = sum(len(part[rank]) for part in self.parts[:m])
        return slice(start, start + len(self.parts[m][rank]))

    @cached_property
    def padded_shard(self) -> int:
        """Rows of the largest shard: collectives move equal sizes, so smaller shards are padded to it."""
        return max(len(self.shard(rank)) for rank in range(self.num_ranks))

    def padded_part(self, m: int) -> int:
        return len(self.parts[m][0])

    @cached_property
    def gathered_rows(self) -> list[int]:
        """`gathered_rows[b]`: where row b of the batch lies in the all-gathered, padded shards."""
        position = {
            row: rank * self.padded_shard + place
            for rank in range(self.num_ranks)
            for place, row in enumerate(self.shard(rank))
        }
        return [position[row] for row in range(self.batch_size)]

    def scattered_rows(self, m: int) -> list[int]:
        """`scattered_rows(m)[b]`: where row b of microbatch m lies in the padded input of its reduce-scatter."""
        return [
            rank * self.padded_part(m) + place for rank, part in enumerate(self.parts[m]) for place in range(len(part))
        ]
