"""Shares, microbatches and shards cover a batch exactly once, also a ragged one."""

from hypothesis import given
from hypothesis import strategies as st

from sidpar.schedules.batching import BatchLayout, Share

LAYOUTS = st.builds(BatchLayout, st.integers(1, 60), st.integers(1, 9), st.integers(1, 7))


@given(LAYOUTS)
def test_microbatches_cover_the_batch(layout: BatchLayout) -> None:
    assert [row for rows in layout.microbatches for row in rows] == list(range(layout.batch_size))
    assert len(layout.microbatches) == min(layout.requested_microbatches, layout.batch_size)
    assert all(len(rows) > 0 for rows in layout.microbatches)


@given(LAYOUTS)
def test_shards_cover_the_batch(layout: BatchLayout) -> None:
    assert sorted(row for shard in layout.shards for row in shard) == list(range(layout.batch_size))
    assert layout.shard_sizes == [len(shard) for shard in layout.shards]


@given(LAYOUTS)
def test_gathered_rows_undo_the_sharding(layout: BatchLayout) -> None:
    gathered: list[int | None] = []
    for r in range(layout.num_ranks):
        shard = layout.shards[r]
        gathered += shard + [None] * (layout.padded_shard - len(shard))
    assert [gathered[place] for place in layout.gathered_rows] == list(range(layout.batch_size))


@given(LAYOUTS)
def test_scattered_rows_reach_their_owner(layout: BatchLayout) -> None:
    """What reduce-scatter gives rank r of microbatch m is the m-th part of its shard."""
    for m, rows in enumerate(layout.microbatches):
        size = layout.padded_part(m)
        spread: list[int | None] = [None] * (size * layout.num_ranks)
        for row, place in zip(rows, layout.scattered_rows(m), strict=True):
            spread[place] = row
        for r in range(layout.num_ranks):
            received = spread[r * size : (r + 1) * size][: len(layout.parts[m][r])]
            before = sum(len(parts[r]) for parts in layout.parts[:m])
            assert received == layout.shards[r][before : before + len(received)]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 7))
def test_shares_cover_the_batch(batch_size: int, requested: int, replicas: int) -> None:
    """And every replica takes part, with as many microbatches as any other."""
    shares = [Share(batch_size, replicas, replica) for replica in range(replicas)]
    assert [row for share in shares for row in share.counted] == list(range(batch_size))
    (microbatches,) = {share.microbatches(requested) for share in shares}
    for share in shares:
        assert share.taken == (share.counted or range(1))
        layout = BatchLayout(len(share.taken), microbatches, 2)
        assert len(layout.microbatches) == microbatches == min(requested, max(1, batch_size // replicas))


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 7), st.integers(1, 5))
def test_every_row_is_extracted_where_the_placement_says(
    batch_size: int, requested: int, replicas: int, ranks: int
) -> None:
    for replica in range(replicas):
        share = Share(batch_size, replicas, replica)
        sharded = share.extracted("sharded", requested, ranks)
        assert sorted(row for rows in sharded for row in rows) == list(share.taken)
        assert all(list(rows) == sorted(rows) for rows in sharded)
        assert share.extracted("replicated", requested, ranks) == [share.taken] * ranks
        assert share.extracted("root", requested, ranks) == [share.taken, *[range(0)] * (ranks - 1)]
