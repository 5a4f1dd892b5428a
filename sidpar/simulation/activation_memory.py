"""The memory that a rank's actions occupy until others free it: saved activations and message buffers. Counted while
the list of actions is simulated: the present bytes, and the peak. No torch.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from sidpar.schedules.actions import Action, Do

Kind = Literal["saved activations", "communication buffers"]

KIND: dict[Do, Kind] = {
    **dict.fromkeys((Do.EXTRACT, Do.FORWARD, Do.LEARN, Do.SECTION_FORWARD), "saved activations"),
    **dict.fromkeys((Do.POST_STATE, Do.SEND_STATE, Do.START_GATHER, Do.START_BROADCAST), "communication buffers"),
    **dict.fromkeys((Do.START_SCATTER, Do.START_REDUCE), "communication buffers"),
    **dict.fromkeys((Do.AWAIT_ACTIVATION, Do.AWAIT_ACTIVATION_GRADIENT), "communication buffers"),
}
"""The verbs that occupy memory."""
FREES: dict[Do, tuple[Do, ...]] = {
    Do.EXTRACTOR_BACKWARD: (Do.EXTRACT,),
    Do.BACKWARD: (Do.FORWARD,),
    Do.AWAIT_STATE: (Do.POST_STATE,),
    Do.AWAIT_STATES_SENT: (Do.SEND_STATE,),
    Do.AWAIT_GATHER: (Do.START_GATHER,),
    Do.AWAIT_BROADCAST: (Do.START_BROADCAST,),
    Do.AWAIT_BROADCASTS_SENT: (Do.START_BROADCAST,),
    Do.AWAIT_SCATTERS: (Do.START_SCATTER,),
    Do.AWAIT_REDUCE: (Do.START_REDUCE,),
    Do.AWAIT_REDUCES_SENT: (Do.START_REDUCE,),
    Do.SECTION_FORWARD: (Do.AWAIT_ACTIVATION,),
    Do.SECTION_BACKWARD: (Do.AWAIT_ACTIVATION_GRADIENT, Do.SECTION_FORWARD),
    Do.SECTION_INPUT_BACKWARD: (Do.AWAIT_ACTIVATION_GRADIENT,),
    Do.SECTION_WEIGHT_BACKWARD: (Do.SECTION_FORWARD,),
}
"""What a verb frees: memory of its own microbatch, or without one, of its whole batch."""
TRANSIENT = (Do.LEARN,)
"""Verbs that free what they occupy: forward and backward in one action."""


class Occupancy:
    """The memory of one rank. `size` gives the bytes that an action occupies."""

    def __init__(self, size: Callable[[Action], float]) -> None:
        self.peaks: dict[Kind, float] = {"saved activations": 0.0, "communication buffers": 0.0}
        self._now: dict[Kind, float] = dict(self.peaks)
        self._size = size
        self._alive: dict[tuple[Do, int], dict[tuple[int | None, ...], float]] = defaultdict(dict)

    def watch(self, actions: Iterable[Action]) -> Iterator[Action]:
        """The same actions, counted as they pass."""
        now, peaks, alive = self._now, self.peaks, self._alive
        for action in actions:
            do, microbatch, refiner, _, _, section, step = action
            for held in FREES.get(do, ()):
                brought = alive[held, step]
                if microbatch is None:
                    now[KIND[held]] -= sum(brought.values())
                    brought.clear()
                else:
                    now[KIND[held]] -= brought.pop((microbatch, refiner, section), 0.0)
            kind = KIND.get(do)
            if kind is not None:
                size = self._size(action)
                alive[do, step][microbatch, refiner, section] = size
                now[kind] += size
                if now[kind] > peaks[kind]:
                    peaks[kind] = now[kind]
                if do in TRANSIENT:
                    now[kind] -= alive[do, step].pop((microbatch, refiner, section))
            yield action
