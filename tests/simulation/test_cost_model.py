"""The cost model against the laws, against drawings, and against counting by hand."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from sidpar.schedules.batching import BatchLayout
from sidpar.schedules.cut import make_cut
from sidpar.schedules.pipelines import gpipe, one_f_one_b, with_messages
from sidpar.schedules.placement import Placement, place_by_count
from sidpar.schedules.rank_view import RankView, rank_views
from sidpar.schedules.streaming import all_streams
from sidpar.schedules.synchronous import SCHEDULES
from sidpar.simulation.cost_model import (
    DDP_BUCKET_BYTES,
    Prediction,
    law_speedup,
    naive_seconds,
    paper_seconds,
    predict_local,
    predict_pipeline,
    predict_stream,
    predict_whole,
)
from sidpar.simulation.costs import Costs, Curve, Link, Links, Piece, fit_link, ring_links

BATCH = 64


def pieces(seconds: float, saved: float = 1.0) -> Piece:
    """A forward of `seconds` for the whole batch, twice that for the backward."""
    return Piece(Curve((BATCH,), (seconds,)), Curve((BATCH,), (2 * seconds,)), saved)


def costs(num_refiners: int, extractor: float = 0.0, **more: Any) -> Costs:
    sizes: dict[str, Any] = {"feature_bytes": 4.0, "state_bytes": [4.0] * (num_refiners + 1), "layer_bytes": [4.0]}
    return Costs([pieces(extractor, 2.0)], [pieces(1.0)] * num_refiners, **(sizes | more))


def sid(
    schedule: Any, ranks: int, microbatches: int, given: Costs, extractor: Any = "sharded", replicas: int = 1
) -> Prediction:
    placement = Placement(place_by_count(len(given.refiners), ranks), extractor)
    lists = [SCHEDULES[schedule](view) for view in rank_views(placement, microbatches, replicas=replicas)]
    return predict_local(lists, placement, given, BatchLayout(BATCH, microbatches, ranks), keep_spans=False)


def stream(ranks: int, microbatches: int, given: Costs, extractor: Any) -> Prediction:
    placement = Placement(place_by_count(len(given.refiners), ranks), extractor)
    return predict_stream(rank_views(placement, microbatches), given, BatchLayout(BATCH, microbatches, ranks))


def pipeline(schedule: Any, ranks: int, microbatches: int, given: Costs) -> Prediction:
    sections = make_cut(schedule, "root", ranks, [0.0], [1.0] * len(given.refiners))
    generate = one_f_one_b if schedule == "1f1b" else gpipe
    lists = [with_messages(sections, generate(sections, rank, microbatches)) for rank in range(ranks)]
    return predict_pipeline(lists, given, sections, BATCH / microbatches, keep_spans=False)


@pytest.mark.parametrize(("ranks", "microbatches"), [*product((2, 4, 8), (1, 4, 32)), (64, 64), (1024, 1), (1024, 16)])
def test_laws_for_equal_refiners(ranks: int, microbatches: int) -> None:
    """Extractor and messages left out, the model is the law."""
    given = costs(2 * ranks if ranks < 64 else ranks)
    naive = naive_seconds(given, BATCH)
    for schedule in ("fused", "two_phase"):
        speedup = naive / sid(schedule, ranks, microbatches, given).seconds
        assert speedup == pytest.approx(law_speedup(schedule, ranks, microbatches)), schedule
    for schedule in ("gpipe", "1f1b"):
        speedup = naive / pipeline(schedule, ranks, microbatches, given).seconds
        assert speedup == pytest.approx(law_speedup(schedule, ranks, microbatches)), schedule
    most = min(ranks, BATCH)  # a row each
    assert naive / predict_whole(given, BATCH, num_ranks=ranks).seconds == pytest.approx(most)
    assert pipeline("naive", ranks, 1, given).seconds == pytest.approx(naive)


def test_ddp_hides_its_sums_behind_the_backward() -> None:
    """Three pieces on half the batch, backwards of 1 each: the last two fill a bucket, which travels behind the first
    one's backward; what is left of the first one is sent after it."""
    heavy = replace(pieces(1.0), trained_bytes=DDP_BUCKET_BYTES / 2)
    given = Costs([heavy], [heavy] * 2, Links(all_reduce=Link(0.25, 1 / DDP_BUCKET_BYTES)))
    work = 3 * (1 + 2) / 2
    assert predict_whole(given, BATCH, num_ranks=2).seconds == pytest.approx(work + (0.25 + 1 - 1) + (0.25 + 0.5))
    assert predict_whole(given, BATCH).seconds == pytest.approx(2 * work), "alone there is nothing to sum"


def test_bubble() -> None:
    """Of 1 + (K-1)/M, the (K-1)/M are bubble."""
    assert pipeline("gpipe", 4, 6, costs(4)).bubble == pytest.approx(0.5 / 1.5)


def test_the_papers_figure() -> None:
    """Its projection is 2.4 at K = 8, extractor left out."""
    given = costs(8)
    seconds = paper_seconds(given, BATCH, [range(r, r + 1) for r in range(8)])
    assert naive_seconds(given, BATCH) / seconds == pytest.approx(2.4)
    assert naive_seconds(given, BATCH) / sid("fused", 8, 1, given).seconds == pytest.approx(2.4)


def test_messages_take_their_time() -> None:
    """Latency 0.5 and a second per 128 bytes: naive passes K-1 activations there and as many gradients back."""
    links = Links(message=Link(0.5, 1 / 128))
    given = costs(3, links=links)
    each = 0.5 + BATCH * (4 + 4) / 128
    assert pipeline("naive", 3, 1, given).seconds == pytest.approx(naive_seconds(given, BATCH) + 4 * each)
    # fused: the last rank waits for two states, which hold no features.
    state = 0.5 + BATCH * 4 / 128
    assert sid("fused", 3, 1, given).seconds == pytest.approx(3 + 2 + 2 * state)


def test_collectives_take_their_time() -> None:
    """One gather of all features before the first refiner; scatters run behind the refiners, and the last one is waited
    for; then the extractor's parameter gradients."""
    links = Links(all_gather=Link(0.25, 0.0), reduce_scatter=Link(0.125, 0.0), all_reduce=Link(0.0625, 0.0))
    given = costs(2, links=links)
    assert sid("fused", 2, 1, given).seconds == pytest.approx(0.25 + 1 + 3 + 0.125 + 0.0625)


def test_sums_over_replicas_take_their_time() -> None:
    """Two refiners on one rank, backwards of 2 each: the first one's gradient travels in 0.25 behind the second one's
    backward, the second one's in 0.5 behind the extractor's, whose own 1.0 is waited for."""
    links = Links(all_reduce=Link(0.0, 1 / 64), replica_all_reduce=Link(0.0, 1 / 64))
    given = costs(2, 1.0, links=links)
    refiners = [replace(piece, trained_bytes=size) for piece, size in zip(given.refiners, (16.0, 32.0), strict=True)]
    given = replace(given, layers=[replace(given.layers[0], trained_bytes=64.0)], refiners=refiners)
    alone = sid("fused", 1, 1, given).seconds
    assert alone == pytest.approx(2 * 3 + 3)
    assert sid("fused", 1, 1, given, replicas=2).seconds == pytest.approx(alone + 1.0)
    frozen = replace(given, layers=[pieces(0.0)])
    assert sid("fused", 1, 1, frozen, replicas=2).seconds == pytest.approx(2 * 3 + 0.5)
    stacked = RankView(Placement((2,)), 0, 1, False, 2, "stacked")
    found = predict_local([SCHEDULES["fused"](stacked)], stacked.placement, frozen, BatchLayout(BATCH, 1, 1))
    assert found.seconds == pytest.approx(2 + 2 * 3 + 0.75), "learnt at once, so nothing is left to hide behind"


def test_overhead_belongs_to_every_piece_of_work() -> None:
    """One rank, two refiners, three microbatches: (1 + 1 extractor) once for sharded, 4 per microbatch."""
    assert sid("fused", 1, 3, costs(2, overhead=0.1)).seconds == pytest.approx(6 + 0.1 * (2 + 3 * 4))


def test_saved_activations() -> None:
    """One byte per row and refiner, two for the extractor: what is known of each schedule, K = 4, L = 8, M = 8."""
    given = costs(8)
    one = 2 * BATCH / 8  # a microbatch of the rank's two refiners
    share = 2 * BATCH / 4  # of the extractor
    assert sid("fused", 4, 8, given).saved_bytes == [share + one] * 3 + [share + one / 2], "the last rank: as two_phase"
    assert sid("two_phase", 4, 8, given).saved_bytes == [share + one / 2] * 4, "one refiner at a time"
    extractor = 2 * BATCH / 8
    assert pipeline("gpipe", 4, 8, given).saved_bytes == [8 * (one + extractor), 8 * one, 8 * one, 8 * one]
    assert pipeline("1f1b", 4, 8, given).saved_bytes == [4 * (one + extractor), 3 * one, 2 * one, one]
    assert predict_whole(given, BATCH).saved_bytes == [BATCH * (8 + 2)]
    assert predict_whole(given, BATCH, microbatches=4).saved_bytes == [BATCH * (8 + 2) / 4]


def test_a_replicated_extractor_costs_every_rank_the_whole_batch() -> None:
    given = costs(4, extractor=1.0)
    assert sid("fused", 4, 1, given, "replicated").seconds == pytest.approx(3 + 3 + 3)
    assert sid("fused", 4, 1, given, "sharded").seconds == pytest.approx(3 / 4 + 3 + 3)


@pytest.mark.parametrize(("ranks", "microbatches"), [(64, 1), (64, 16), (1024, 1), (1024, 4)])
@pytest.mark.parametrize("extractor", ["replicated", "root"])
def test_law_of_streams(ranks: int, microbatches: int, extractor: Any) -> None:
    """The chain has the time of two steps. Where it needs more, it decides how long a step takes."""
    given = costs(ranks)
    speedup = naive_seconds(given, BATCH) / stream(ranks, microbatches, given, extractor).seconds
    assert speedup == pytest.approx(law_speedup("streaming", ranks, microbatches, extractor))


def test_a_stream_hides_a_chain_of_64_ranks() -> None:
    """From M = (K+4)/3 on with a sharded extractor, and earlier with others: K times as fast as one rank."""
    prediction = stream(64, 32, costs(64), "sharded")
    assert prediction.seconds == pytest.approx(3)
    assert prediction.bubble == pytest.approx(0, abs=1e-9)
    assert stream(64, 16, costs(64), "sharded").seconds > 3.5
    assert law_speedup("streaming", 64, 23, "sharded") == 64
    assert law_speedup("streaming", 64, 22, "sharded") is None


def test_messages_decide() -> None:
    """64 ranks, a message of 5 s: the first state passes 63 forwards and messages, the three behind it follow one
    message after the other, and the last one is learnt from. A stream has the time of two steps for that, and needs at
    least the time of its messages."""
    given = costs(64, links=Links(message=Link(5.0)))
    chain = 63 * (1 / 4 + 5) + 3 * 5 + 3 / 4
    assert sid("fused", 64, 4, given).seconds == pytest.approx(chain)
    assert stream(64, 4, given, "replicated").seconds == pytest.approx(chain / 2)
    assert stream(4, 16, costs(4, links=Links(message=Link(1.0))), "replicated").seconds == pytest.approx(16)


def test_a_stream_under_way_is_what_a_long_one_tends_to() -> None:
    """Its filling and its drain count less and less."""
    given = costs(6, extractor=0.5, links=Links(Link(0.05), Link(0.2), Link(0.1), Link(0.1), Link(0.1), Link(0.3)))
    for extractor, microbatches in product(("replicated", "root", "sharded"), (1, 4)):
        placement, layout = Placement((1,) * 6, extractor), BatchLayout(BATCH, microbatches, 6)  # type: ignore[arg-type]
        lengths = [
            steps * predict_local(lists, placement, given, layout, steps).seconds
            for steps in (10, 14)
            for lists in [all_streams(placement, microbatches, 1, steps)]
        ]
        under_way = predict_stream(rank_views(placement, microbatches), given, layout)
        assert under_way.seconds == pytest.approx((lengths[1] - lengths[0]) / 4, rel=0.01)


def test_latency_and_bandwidth_are_found_again() -> None:
    """Exact messages give them exactly; small messages, whose relative error counts as much, decide the latency."""
    sizes = [1e3, 1e5, 1e7]
    link = fit_link(sizes, [2e-4 + 5e-10 * size for size in sizes])
    assert (link.latency, link.seconds_per_byte) == pytest.approx((2e-4, 5e-10))
    noisy = fit_link(sizes, [2e-4 + 5e-10 * 1e3, 2e-4 + 5e-10 * 1e5, 1.2 * (2e-4 + 5e-10 * 1e7)])
    assert noisy.latency == pytest.approx(2e-4, rel=0.1)
    assert fit_link(sizes, [1e-10 * size for size in sizes]).latency == pytest.approx(0, abs=1e-9)


def test_links_of_a_ring() -> None:
    """Three ranks, 1 s per message and 8 bytes per second; two hops round the ring, an all-reduce twice."""
    links = ring_links(1.0, 8.0, 3)
    assert links.message(16) == 3
    assert links.all_gather(24) == links.reduce_scatter(24) == pytest.approx(2 + 2)
    assert links.all_reduce(24) == pytest.approx(4 + 4)


def test_a_curve_is_linear_between_what_was_measured_and_proportional_outside() -> None:
    curve = Curve((10, 20), (1.0, 3.0))
    assert [curve(rows) for rows in (0, 5, 10, 15, 20, 40)] == [0.0, 0.5, 1.0, 2.0, 3.0, 6.0]
