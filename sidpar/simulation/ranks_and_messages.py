"""What the simulator keeps of each message and of each rank."""

from collections import defaultdict, deque
from collections.abc import Iterable

from sidpar.schedules.actions import Action


class Message:
    """A message or a collective: over `seconds` after the last of its causes, which are its start on each rank that
    takes part, and the end of the messages that its group runs first, on any of them."""

    __slots__ = ("causes", "following", "label", "latest", "over", "seconds", "waiting")

    def __init__(self, label: object, causes: int) -> None:
        self.label = label
        """What all that take part must agree that it is."""
        self.causes = causes
        self.latest = 0.0
        self.seconds = 0.0
        self.over: float | None = None
        self.following: tuple[Message, ...] = ()
        self.waiting: tuple[Rank, ...] = ()

    def go_after(self, earlier: "Message") -> None:
        """Not before an earlier one of the group is over."""
        if earlier.over is None:
            earlier.following += (self,)
            self.causes += 1
        else:
            self.latest = max(self.latest, earlier.over)


class Rank:
    """One rank's place in its list, its clock, and what it has started."""

    def __init__(self, number: int, actions: Iterable[Action], keep_spans: bool) -> None:
        self.number = number
        self.rest = iter(actions)
        self.current: Action | None = None
        self.clock = self.worked = 0.0
        self.waits = False
        self.keep_spans = keep_spans
        self.spans: list[tuple[float, float, Action]] = []
        self.begins: dict[int, tuple[float, float]] = {}
        self.sent: dict[int, Message] = {}  # the last state of each batch
        self.posted: deque[Message] = deque()  # receives of states
        self.posted_ahead: dict[Action, Message] = {}  # receives that went with the send before them
        self.last: dict[int, Message] = {}  # of each group of the chain
        self.counts: dict[str, int] = defaultdict(int)
        self.together: Action | None = None  # the last work that it came to when all others did
        self.released: Action | None = None
        self.releases_refiners = False
        self.refiners_summed = 0.0  # when the last sum over replicas is over

    def go_on_to(self, when: float) -> None:
        """The end of the current action, be it work or a wait."""
        if when > self.clock:
            if self.keep_spans and self.current is not None:
                self.spans.append((self.clock, when, self.current))
            self.clock = when
