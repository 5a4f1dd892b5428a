"""From what every rank measured to the rows of a report and their timelines."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.alone import Alone
from harness.contenders import Contender, Local
from harness.measuring import Measured, Window
from harness.workloads import Workload
from sidpar.schedules.phases import COMPUTE, PHASE
from sidpar.simulation.cost_model import Prediction
from sidpar.simulation.costs import Costs

STEPS_SEEN = 4


def rows(
    everyone: dict[Contender, list[Measured]],
    alone: Mapping[Contender, Alone],
    groups: Sequence[Sequence[str]],
    workload: Workload,
    num_ranks: int,
) -> list[dict[str, Any]]:
    """The rows of the report, of contenders that were timed in these groups."""
    medians = {contender: statistics.median(step_seconds(contender, ranks)) for contender, ranks in everyone.items()}
    naive = [seconds for c, seconds in medians.items() if c.schedule == "naive"]
    in_group = groups_of(everyone, groups)
    backpropagation = [seconds for c, seconds in medians.items() if not isinstance(c, Local)]
    found = []
    for contender, measured in everyone.items():
        ranks = [m for m in measured if m.timed]
        p10, p90 = (1000 * float(q) for q in np.quantile(step_seconds(contender, measured), [0.1, 0.9]))
        median = medians[contender]
        prediction, paper = alone[contender].prediction, alone[contender].paper
        found.append(
            {
                "key": contender.key,
                **{name: getattr(contender, name) for name in ("method", "schedule", "network", "extractor")},
                "microbatches": contender.microbatches,
                **in_group[contender.key],
                "world_size": 1 if contender.single else num_ranks,
                "step_ms": {"median": 1000 * median, "p10": p10, "p90": p90},
                "samples_per_second": len(workload.x) / median,
                "speedup_vs_naive_bp": naive[0] / median if naive else None,
                "speedup_vs_best_bp": min(backpropagation) / median if backpropagation else None,
                "law_speedup": contender.law(num_ranks),
                "paper_speedup": paper,
                "model_step_ms": None if prediction is None else 1000 * prediction.seconds,
                "bubble_fraction": None if contender.hides_waiting else statistics.median(bubbles(ranks)),
                "model_bubble_fraction": None if prediction is None else prediction.bubble,
                **memory_and_traffic(ranks, prediction),
                "phases_ms": [phases(contender, m) for m in ranks],
            }
        )
    return found


def memory_and_traffic(ranks: Sequence[Measured], prediction: Prediction | None) -> dict[str, Any]:
    """What the ranks that took part held and sent."""
    return {
        "saved_activation_bytes": [m.memory["saved_activations"] for m in ranks],
        "model_saved_activation_bytes": None if prediction is None else prediction.saved_bytes,
        "peak_memory_bytes": [m.peak_memory for m in ranks],
        "bytes_sent": [sum(count["bytes"] for count in m.traffic.values()) for m in ranks],
        "messages_sent": [sum(count["messages"] for count in m.traffic.values()) for m in ranks],
        "memory": [m.memory for m in ranks],
        "traffic": [m.traffic for m in ranks],
    }


def groups_of(
    everyone: Mapping[Contender, list[Measured]], groups: Sequence[Sequence[str]]
) -> dict[str, dict[str, float | None]]:
    """By key, the number of the group, and how long a step of the reference, which is in every group, took there over
    what it took in all. The reference itself is in no one group, if there are several."""
    if not groups:
        return {}
    reference = groups[0][0]
    seconds = next((step_seconds(c, ranks) for c, ranks in everyone.items() if c.key == reference), [])
    if not seconds:  # it did not fit beside the others after all
        return {key: {"group": k, "drift": None} for k, keys in enumerate(groups, 1) for key in keys}
    each = len(seconds) // len(groups)
    found: dict[str, dict[str, float | None]] = {}
    for k, keys in enumerate(groups):
        drift = statistics.median(seconds[k * each : (k + 1) * each]) / statistics.median(seconds)
        found |= {key: {"group": k + 1, "drift": drift} for key in keys}
    return found if len(groups) == 1 else found | {reference: {"group": None, "drift": None}}


def step_seconds(contender: Contender, ranks: list[Measured]) -> list[float]:
    """Of a step, for each window."""
    return [seconds / contender.stream for seconds in lengths([m.timed for m in ranks if m.timed])]


def lengths(ranks: list[list[Window]]) -> list[float]:
    """Of each window, from the first rank's begin to the last rank's end."""
    return [max(w.began + w.seconds for w in same) - min(w.began for w in same) for same in zip(*ranks, strict=True)]


def bubbles(ranks: list[Measured]) -> list[float]:
    """Of each window, the share in which a rank, on average, does not compute."""
    steps = lengths([m.traced for m in ranks])
    return [
        1 - sum(s[3] - s[2] for m in ranks for s in m.traced[k].spans if s[0] in COMPUTE) / (len(ranks) * steps[k])
        for k in range(len(steps))
    ]


def phases(contender: Contender, measured: Measured) -> dict[str, float]:
    """Median milliseconds per step of each phase."""
    per_step: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(measured.traced))
    for k, traced in enumerate(measured.traced):
        for phase, _, start, end in traced.spans:
            per_step[phase][k] += 1000 * (end - start) / contender.stream
    return {phase: statistics.median(values) for phase, values in per_step.items()}


def timelines_of(contender: Contender, ranks: list[Measured], prediction: Prediction | None) -> dict[str, Any]:
    """The traced step whose length is the median, on a clock common to all ranks, and the modelled one; of a stream,
    its beginning, as many steps as can be seen."""
    running = [m.traced for m in ranks if m.traced]
    windows = lengths(running)
    k = sorted(range(len(windows)), key=windows.__getitem__)[len(windows) // 2]
    zero = min(traced[k].began for traced in running)
    seen = windows[k] * min(1.0, STEPS_SEEN / contender.stream)
    measured = [
        [shifted(s, traced[k].began - zero) for s in traced[k].spans if traced[k].began + s[3] - zero <= seen]
        for traced in running
    ]
    modelled = None
    if prediction is not None and prediction.timeline is not None:
        seen = prediction.seconds * min(contender.stream, STEPS_SEEN)
        modelled = [
            [shifted((PHASE[action.do], str(action), start, end), 0.0) for start, end, action in spans if end <= seen]
            for spans in prediction.timeline.spans
        ]
    return {"measured": measured, "modelled": modelled}


def shifted(span: Sequence[Any], seconds: float) -> list[Any]:
    """A span on the common clock, to the microsecond: a clock tells no more, and the file is half as long."""
    phase, label, start, end = span
    return [phase, label, round(start + seconds, 6), round(end + seconds, 6)]


def describe_link(link: dict[str, float]) -> dict[str, float | None]:
    slope = link["seconds_per_byte"]
    return {"latency_us": 1e6 * link["latency"], "gigabytes_per_s": 1e-9 / slope if slope else None}


def describe_costs(costs: Costs, batch: int) -> dict[str, Any]:
    """Milliseconds of a batch: of a forward and of a backward; on a GPU also of both on its own, and of launching
    them."""
    forward, backward = costs.extractor(batch)
    found: dict[str, Any] = {
        "extractor forward": 1000 * forward,
        "extractor backward": 1000 * backward,
        "refiner forward": [1000 * piece.forward(batch) for piece in costs.refiners],
        "refiner backward": [1000 * piece.backward(batch) for piece in costs.refiners],
    }
    for name, kind in (("the GPU alone", "device"), ("launched by the host", "launch")):
        for where, pieces in (("extractor", costs.layers), ("refiners", costs.refiners)):
            curves = [curve for piece in pieces if (curve := getattr(piece, kind))]
            if curves:
                found[f"{where}, {name}"] = 1000 * sum(curve(batch) for curve in curves)
    return found
