"""The actions of a rank: the verbs of all schedules, and the entries of a rank's list. No torch."""

from enum import Enum
from typing import NamedTuple


class Do(Enum):
    """The verbs. `START_…` starts a message and returns; `AWAIT_…` blocks until the message has arrived."""

    EXTRACT = "extract features"
    START_GATHER = "start the all-gather of features"
    AWAIT_GATHER = "await the all-gather of features"
    START_BROADCAST = "start the broadcast of features"
    AWAIT_BROADCAST = "await the broadcast of features"
    AWAIT_BROADCASTS_SENT = "await the end of all broadcasts of features"
    POST_STATE = "post the receive of the state"
    AWAIT_STATE = "await the state"
    FORWARD = "forward"
    SEND_STATE = "send the state"
    AWAIT_STATES_SENT = "await the end of all sends of states"
    BACKWARD = "backward"
    LEARN = "forward and backward of all refiners at once"
    START_SCATTER = "start the reduce-scatter of the feature gradient"
    AWAIT_SCATTERS = "await all reduce-scatters of feature gradients"
    START_REDUCE = "start the reduction of the feature gradient"
    AWAIT_REDUCE = "await the reduction of the feature gradient"
    AWAIT_REDUCES_SENT = "await the end of all reductions of feature gradients"
    EXTRACTOR_BACKWARD = "extractor backward"
    RELEASE_PARAMETER_GRADIENTS = "let the extractor's parameter gradients leave as the next backward completes them"
    AWAIT_PARAMETER_GRADIENTS = "await the extractor's parameter gradients"
    RELEASE_REFINER_GRADIENTS = "let the refiners' gradients leave as the next backwards complete them"
    AWAIT_REFINER_GRADIENTS = "await the refiners' gradients"
    # Streaming, whose updates are not all at the end of a step
    UPDATE_EXTRACTOR = "update the extractor"
    UPDATE_REFINERS = "update the refiners"
    # Pipelines of backpropagation (`pipelines.py`)
    AWAIT_ACTIVATION = "await the activation"
    SECTION_FORWARD = "section forward"
    SEND_ACTIVATION = "send the activation"
    AWAIT_ACTIVATION_GRADIENT = "await the activation's gradient"
    SECTION_BACKWARD = "section backward"
    SECTION_INPUT_BACKWARD = "section backward towards the input"
    SECTION_WEIGHT_BACKWARD = "section backward towards the weights"
    SEND_ACTIVATION_GRADIENT = "send the activation's gradient"

    __hash__ = object.__hash__  # an Enum hashes its name, in Python, and the simulator looks up verbs by the million


_SENDS = (Do.SEND_STATE, Do.SEND_ACTIVATION, Do.SEND_ACTIVATION_GRADIENT)


class Action(NamedTuple):
    """One entry of a rank's list. `microbatch` None means the whole batch; `graph` says whether autograd records.
    `step` is the batch that it belongs to, relative to the batch of the list: -1 is the one before it.
    """

    do: Do
    microbatch: int | None = None
    refiner: int | None = None
    peer: int | None = None
    graph: bool = False
    section: int | None = None
    step: int = 0

    def __str__(self) -> str:
        words = [self.do.value]
        if self.refiner is not None:
            words.append(f"of refiner {self.refiner}")
        if self.section is not None:
            words.append(f"of section {self.section}")
        if self.microbatch is not None:
            words.append(f"of microbatch {self.microbatch}")
        if self.step:
            words.append(f"of batch {self.step:+d}")
        if self.peer is not None:
            words.append(f"{'to' if self.do in _SENDS else 'from'} rank {self.peer}")
        return " ".join(words)


def known(number: int | None) -> int:
    """The microbatch, refiner, section or peer of an action whose verb has one."""
    assert number is not None, "this action needs its number"
    return number
