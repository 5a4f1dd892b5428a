"""The cost model against the laws of DESIGN section 5, against drawings, and against counting by hand."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from sidpar.batching import BatchLayout
from sidpar.cost_model import (
    Costs,
    Curve,
    Link,
    Links,
    Piece,
    Prediction,
    fit_link,
    law_speedup,
    naive_seconds,
    paper_seconds,
    predict_pipeline,
    predict_sid,
    predict_whole,
    ring_links,
)
from sidpar.cut import make_cut
from sidpar.pipelines import gpipe, one_f_one_b, with_messages
from sidpar.placement import Placement, place_by_count
from sidpar.rank_view import RankView
from sidpar.schedule import SCHEDULES, all_ranks

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
    lists = all_ranks(SCHEDULES[schedule], placement, microbatches, replicas=replicas)
    return predict_sid(lists, given, BatchLayout(BATCH, microbatches, ranks))


def pipeline(schedule: Any, ranks: int, microbatches: int, given: Costs) -> Prediction:
    sections = make_cut(schedule, "root", ranks, [0.0], [1.0] * len(given.refiners))
    generate = one_f_one_b if schedule == "1f1b" else gpipe
    lists = [list(with_messages(sections, generate(sections, rank, microbatches))) for rank in range(ranks)]
    return predict_pipeline(lists, given, sections, BATCH / microbatches)


@pytest.mark.parametrize(("ranks", "microbatches"), list(product((2, 4, 8), (1, 4, 32))))
def test_laws_for_equal_refiners(ranks: int, microbatches: int) -> None:
    """Extractor and messages left out, the model is the law."""
    given = costs(2 * ranks)
    naive = naive_seconds(given, BATCH)
    for schedule in ("fused", "two_phase"):
        speedup = naive / sid(schedule, ranks, microbatches, given).seconds
        assert speedup == pytest.approx(law_speedup("sid", schedule, ranks, microbatches)), schedule
    for schedule in ("gpipe", "1f1b"):
        if schedule == "gpipe" or microbatches >= ranks:
            speedup = naive / pipeline(schedule, ranks, microbatches, given).seconds
            assert speedup == pytest.approx(law_speedup("bp", schedule, ranks, microbatches)), schedule
    assert naive / predict_whole(given, BATCH, num_ranks=ranks).seconds == pytest.approx(ranks)
    assert pipeline("naive", ranks, 1, given).seconds == pytest.approx(naive)


def test_bubble() -> None:
    """Of 1 + (K-1)/M, the (K-1)/M are bubble."""
    assert pipeline("gpipe", 4, 6, costs(4)).bubble == pytest.approx(0.5 / 1.5)


def test_the_papers_figure() -> None:
    """DESIGN section 5: its projection is 2.4 at K = 8, extractor left out."""
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
    links = Links(all_reduce=Link(0.0, 1 / 64))
    given = costs(2, 1.0, links=links, refiner_parameter_bytes=[16.0, 32.0], extractor_parameter_bytes=64.0)
    alone = sid("fused", 1, 1, given).seconds
    assert alone == pytest.approx(2 * 3 + 3)
    assert sid("fused", 1, 1, given, replicas=2).seconds == pytest.approx(alone + 1.0)
    frozen = replace(given, layers=[pieces(0.0)], extractor_parameter_bytes=0.0)
    assert sid("fused", 1, 1, frozen, replicas=2).seconds == pytest.approx(2 * 3 + 0.5)
    stacked = RankView(Placement((2,)), 0, 1, "frozen", 2, "stacked")
    found = predict_sid([list(SCHEDULES["fused"](stacked))], frozen, BatchLayout(BATCH, 1, 1))
    assert found.seconds == pytest.approx(2 + 2 * 3 + 0.75), "learnt at once, so nothing is left to hide behind"


def test_overhead_belongs_to_every_piece_of_work() -> None:
    """One rank, two refiners, three microbatches: (1 + 1 extractor) once for sharded, 4 per microbatch."""
    assert sid("fused", 1, 3, costs(2, overhead=0.1)).seconds == pytest.approx(6 + 0.1 * (2 + 3 * 4))


def test_saved_activations() -> None:
    """One byte per row and refiner, two for the extractor: what DESIGN says of each schedule, K = 4, L = 8, M = 8."""
    given = costs(8)
    one = 2 * BATCH / 8  # a microbatch of the rank's two refiners
    share = 2 * BATCH / 4  # of the extractor
    assert sid("fused", 4, 8, given).saved_bytes == [share + one] * 4
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


def test_many_ranks() -> None:
    """Nobody has to run them."""
    given = costs(512)
    assert naive_seconds(given, BATCH) / sid("fused", 512, 64, given).seconds == pytest.approx(
        law_speedup("sid", "fused", 512, 64)
    )


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
