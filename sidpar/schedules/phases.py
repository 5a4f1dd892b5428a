"""The phases of a step: the names under which time is measured, modelled and drawn."""

from typing import Literal, get_args

from sidpar.schedules.actions import Do

Phase = Literal[
    "extractor forward",
    "refiner forward",
    "send",
    "receive wait",
    "refiner backward",
    "feature reduction",
    "extractor backward",
    "parameter reduction",
    "forward",
    "backward",
    "input backward",
    "weight backward",
    "optimizer",
]

COMPUTE: tuple[Phase, ...] = (
    "extractor forward",
    "refiner forward",
    "refiner backward",
    "extractor backward",
    "forward",
    "backward",
    "input backward",
    "weight backward",
    "optimizer",
)
"""Phases in which a rank works. The rest of a step is waiting and messages: the bubble."""

MESSAGES: tuple[Phase, ...] = tuple(phase for phase in get_args(Phase) if phase not in COMPUTE)
"""The others: all of them wait for other ranks."""

PHASE: dict[Do, Phase] = {
    Do.EXTRACT: "extractor forward",
    Do.START_GATHER: "send",
    Do.AWAIT_GATHER: "receive wait",
    Do.START_BROADCAST: "send",
    Do.AWAIT_BROADCAST: "receive wait",
    Do.AWAIT_BROADCASTS_SENT: "receive wait",
    Do.POST_STATE: "receive wait",
    Do.AWAIT_STATE: "receive wait",
    Do.FORWARD: "refiner forward",
    Do.SEND_STATE: "send",
    Do.AWAIT_STATES_SENT: "receive wait",
    Do.BACKWARD: "refiner backward",
    Do.LEARN: "refiner backward",
    Do.START_SCATTER: "feature reduction",
    Do.AWAIT_SCATTERS: "feature reduction",
    Do.START_REDUCE: "feature reduction",
    Do.AWAIT_REDUCE: "feature reduction",
    Do.AWAIT_REDUCES_SENT: "feature reduction",
    Do.EXTRACTOR_BACKWARD: "extractor backward",
    Do.RELEASE_PARAMETER_GRADIENTS: "parameter reduction",
    Do.AWAIT_PARAMETER_GRADIENTS: "parameter reduction",
    Do.RELEASE_REFINER_GRADIENTS: "parameter reduction",
    Do.AWAIT_REFINER_GRADIENTS: "parameter reduction",
    Do.UPDATE_EXTRACTOR: "optimizer",
    Do.UPDATE_REFINERS: "optimizer",
    Do.SECTION_FORWARD: "forward",
    Do.SECTION_BACKWARD: "backward",
    Do.SECTION_INPUT_BACKWARD: "input backward",
    Do.SECTION_WEIGHT_BACKWARD: "weight backward",
    Do.AWAIT_ACTIVATION: "receive wait",
    Do.SEND_ACTIVATION: "send",
    Do.AWAIT_ACTIVATION_GRADIENT: "receive wait",
    Do.SEND_ACTIVATION_GRADIENT: "send",
}

WORK: frozenset[Do] = frozenset(do for do, phase in PHASE.items() if phase in COMPUTE)
"""The verbs whose time is work."""
