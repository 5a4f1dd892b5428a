"""How a global batch of B samples is cut: into R shares for replicas, each share into M microbatches and, for a sharded
extractor, into K shards. No torch.

Microbatch m is a run of consecutive rows. Rank r's shard is its share of *every* microbatch, one after the other, so
that the feature gradient of one microbatch can be scattered to its owners while the next one is still being computed.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

from sidpar.schedules.placement import consecutive, even_split


@dataclass(frozen=True)
class Share:
    """The part of a batch that one of R replicas takes, a run of consecutive rows."""

    batch_size: int
    """B."""
    num_replicas: int
    replica: int

    @cached_property
    def counted(self) -> range:
        """The rows that are this replica's; none for the last replicas where B < R."""
        return consecutive(even_split(self.batch_size, self.num_replicas))[self.replica]

    @property
    def taken(self) -> range:
        """The rows that it computes: its own, or if it has none, one row with weight 0, since the other replicas wait
        for its messages."""
        return self.counted or range(1)

    def microbatches(self, requested: int) -> int:
        """M: as many as requested, but no more than the smallest share has rows. The same for all replicas, whose
        actions must be the same, or they would wait for each other in a circle."""
        return min(requested, max(1, self.batch_size // self.num_replicas))

    def layout(self, microbatches: int, num_ranks: int, copies: int = 1) -> "BatchLayout":
        """Its cut into so many microbatches, or fewer if there are fewer rows."""
        return BatchLayout(len(self.taken), self.microbatches(microbatches), num_ranks, copies)

    def sizes_anywhere(self, microbatches: int, copies: int = 1) -> set[int]:
        """The numbers of rows that a microbatch may have on any replica: the first one has the most, the last one the
        fewest."""
        shares = (replace(self, replica=replica) for replica in (0, self.num_replicas - 1))
        return {size for share in shares for size in share.layout(microbatches, 1, copies).sizes}


@dataclass(frozen=True)
class BatchLayout:
    """The cut of one batch, or one share; ragged sizes differ by at most one row, and a shard may be empty."""

    batch_size: int
    """The number of rows, before a rule makes several of each."""
    requested_microbatches: int
    num_ranks: int
    copies: int = 1
    """How many rows a rule makes of each row. They stay together in every cut."""

    @cached_property
    def microbatches(self) -> list[range]:
        """Rows of each microbatch. A batch smaller than M has one row per microbatch, and fewer microbatches."""
        return consecutive(self._split(self.batch_size, min(self.requested_microbatches, self.batch_size)))

    @property
    def sizes(self) -> set[int]:
        """The numbers of rows that a microbatch may have: one, or two that differ by a row."""
        return {len(rows) for rows in self.microbatches}

    @cached_property
    def parts(self) -> list[list[range]]:
        """`parts[m][r]`: the rows of microbatch m, counted within it, that rank r extracts."""
        return [consecutive(self._split(len(rows) // self.copies, self.num_ranks)) for rows in self.microbatches]

    @property
    def part_sizes(self) -> set[int]:
        """The numbers of rows that a rank's part of a microbatch may have, if it is not empty."""
        return {size for rows in self.sizes for size in self._split(rows // self.copies, self.num_ranks) if size}

    @cached_property
    def shards(self) -> list[list[int]]:
        """`shards[r]`: the rows of the batch that rank r extracts, in the order in which it does."""
        return [
            [rows.start + row for rows, part in zip(self.microbatches, self.parts, strict=True) for row in part[rank]]
            for rank in range(self.num_ranks)
        ]

    @cached_property
    def shard_sizes(self) -> list[int]:
        """Rows of each rank's shard, by counting: microbatches have two sizes at most."""
        sizes = Counter(len(rows) for rows in self.microbatches)
        splits = [(number, self._split(size // self.copies, self.num_ranks)) for size, number in sizes.items()]
        return [sum(number * split[rank] for number, split in splits) for rank in range(self.num_ranks)]

    @cached_property
    def padded_shard(self) -> int:
        """Rows of the largest shard: collectives move equal sizes, so smaller shards are padded to it."""
        return max(self.shard_sizes)

    @property
    def rows(self) -> int:
        """Rows that enter."""
        return self.batch_size * self.copies

    def padded_part(self, m: int) -> int:
        return len(self.parts[m][0])

    @cached_property
    def gathered_rows(self) -> list[int]:
        """`gathered_rows[b]`: where row b of the batch lies in the all-gathered, padded shards."""
        position = {
            row: rank * self.padded_shard + place
            for rank, shard in enumerate(self.shards)
            for place, row in enumerate(shard)
        }
        return [position[row] for row in range(self.rows)]

    @cached_property
    def gathered_in_order(self) -> bool:
        """Whether the gathered shards already are the batch: M = 1, and K divides B."""
        return self.gathered_rows == list(range(self.rows))

    def scattered_rows(self, m: int) -> list[int]:
        """`scattered_rows(m)[b]`: where row b of microbatch m lies in the padded input of its reduce-scatter."""
        return [
            rank * self.padded_part(m) + place for rank, part in enumerate(self.parts[m]) for place in range(len(part))
        ]

    def _split(self, rows: int, parts: int) -> list[int]:
        """Sizes of parts of so many rows, with all their copies."""
        return [size * self.copies for size in even_split(rows, parts)]
