"""Runs the action lists of all ranks on a clock: tests schedules without processes, and times them for the cost model.

Messages behave as on NCCL, which is the stricter of the backends. A state goes from one rank to the next once its send
has started and its receive is posted, and once all earlier messages of its group on either rank are over: NCCL runs a
group's one by one. Activations of a pipeline of backpropagation, whose receives torch posts ahead, go once they are
sent. Collectives match by order: the k-th of a group on one rank with the k-th on every other.

With `rendezvous`, nothing is buffered and the host waits: a send keeps its rank until the message is over, for which
its receive must be posted. A list that ends so cannot deadlock, however little a backend does by itself. What a rank
only *starts* (`POST_STATE`, `START_…`, `RELEASE_…`) does not keep it even then: NCCL queues that on the stream of its
group, and so do we. A host that waited there would close a circle: rank r posts a receive one microbatch ahead; the
sender comes to it after the scatter of the present one; and that scatter needs rank r. The receives of a pipeline are
posted in one batch with the send just before them, as torch does, or neighbours that both send would wait for ever.

With `shares_statistics`, the batch norms of a sharded extractor wait for each other, in its forwards and its backwards:
none of these goes on before all ranks have come to it.

The ranks are those of one cascade. Its replicas do the same at the same time, so the sums of refiners' gradients over
them run one after the other on a group of each rank's own, from the backward that completes them on.
A rank that waits is woken by what it waits for, and lists may be generators: for thousands of ranks, time is in
proportion to the number of actions, and memory to what is under way.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, pairwise

from sidpar.schedules.actions import Action, Do
from sidpar.schedules.phases import WORK
from sidpar.simulation.ranks_and_messages import Message, Rank
from sidpar.simulation.timeline import Timeline

GROUPS = {
    Do.START_GATHER: "features",
    Do.START_BROADCAST: "features",
    Do.START_SCATTER: "feature gradients",
    Do.START_REDUCE: "feature gradients",
    Do.RELEASE_PARAMETER_GRADIENTS: "parameter gradients",
}
"""The process group of each collective, as in `messages/transport.py`."""
AWAITED_GROUPS = {
    Do.AWAIT_GATHER: "features",
    Do.AWAIT_BROADCAST: "features",
    Do.AWAIT_BROADCASTS_SENT: "features",
    Do.AWAIT_SCATTERS: "feature gradients",
    Do.AWAIT_REDUCE: "feature gradients",
    Do.AWAIT_REDUCES_SENT: "feature gradients",
}
_ARRIVALS = {Do.AWAIT_ACTIVATION: Do.SEND_ACTIVATION, Do.AWAIT_ACTIVATION_GRADIENT: Do.SEND_ACTIVATION_GRADIENT}
Verb = Callable[[Rank, Action], Message | None]
Seconds = Callable[[int, Action], float]
"""How long an action takes; of the start of a message, how long the message is under way."""


class DeadlockError(AssertionError):
    """Some ranks wait for messages that nobody will send."""


class Simulation:
    """All ranks. `chain_groups` is 2 in the shipped runtime: neighbouring edges of the chain alternate."""

    def __init__(
        self,
        lists: Iterable[Iterable[Action]],
        seconds: Seconds,
        *,
        chain_groups: int,
        rendezvous: bool,
        keep_spans: bool,
        extractor_holders: int | None,
        shares_statistics: bool = False,
    ) -> None:
        self.following: dict[Action, Action] = {}  # a pipeline's sends, and what comes right after them
        if rendezvous:
            lists = [list(mine) for mine in lists]
            self.following = {a: b for mine in lists for a, b in pairwise(mine) if a.do in _ARRIVALS.values()}
        self.ranks = [Rank(number, mine, keep_spans) for number, mine in enumerate(lists)]
        self.runnable = deque(self.ranks)
        self.extractor_holders = len(self.ranks) if extractor_holders is None else extractor_holders
        # edges[r]: states from rank r to r + 1 that only their sender has started, and that only their receiver has.
        self.edges: list[tuple[deque[Message], deque[Message]]] = [(deque(), deque()) for _ in self.ranks]
        self.arrivals: dict[tuple[Do, int | None, int | None], Message] = {}
        self.collectives: dict[str, list[Message]] = defaultdict(list)
        self.by_batch: dict[tuple[str, int, int | None], Message] = {}  # collectives by microbatch; None is the last
        self.seconds = seconds
        self.chain_groups = chain_groups
        self.rendezvous = rendezvous
        # What each verb does; it returns the message that the rank then waits for, if any.
        self.verbs: dict[Do, Callable[[Rank, Action], Message | None]] = {
            **dict.fromkeys(WORK, self.work),
            **dict.fromkeys(GROUPS, self.start_collective),
            **dict.fromkeys(AWAITED_GROUPS, self.await_collective),
            **dict.fromkeys(_ARRIVALS.values(), self.send_activation),
            **dict.fromkeys(_ARRIVALS, self.await_activation),
            Do.SEND_STATE: self.send_state,
            Do.POST_STATE: self.post_state,
            Do.AWAIT_STATE: self.await_state,
            Do.AWAIT_STATES_SENT: self.await_states_sent,
            Do.FORWARD: self.forward,
            Do.BACKWARD: self.backward,
            Do.LEARN: self.backward,
            Do.RELEASE_REFINER_GRADIENTS: self.release_refiners,
            Do.AWAIT_REFINER_GRADIENTS: self.await_refiners,
            Do.EXTRACTOR_BACKWARD: self.extractor_backward,
            Do.RELEASE_PARAMETER_GRADIENTS: self.release,
            Do.AWAIT_PARAMETER_GRADIENTS: self.await_parameter_gradients,
        }
        if shares_statistics:
            for do in (Do.EXTRACT, Do.EXTRACTOR_BACKWARD):
                self.verbs[do] = partial(self.together, self.verbs[do])

    def run(self) -> Timeline:
        while self.runnable:
            self.advance(self.runnable.popleft())
        stuck = {rank.number: str(rank.current) for rank in self.ranks if rank.waits}
        if stuck:
            raise DeadlockError(f"deadlock: {stuck}")
        ranks = self.ranks
        ends, work = [rank.clock for rank in ranks], [rank.worked for rank in ranks]
        return Timeline([rank.spans for rank in ranks], ends, work, [rank.begins for rank in ranks])

    def advance(self, rank: Rank) -> None:
        """Run a rank until it has to wait for what others have yet to do."""
        verbs = self.verbs
        for action in rank.rest:
            rank.current = action
            message = verbs[action.do](rank, action)
            if message is None:
                continue
            if message.over is None:
                rank.waits = True
                message.waiting += (rank,)
                return
            rank.go_on_to(message.over)

    def happens(self, message: Message, when: float) -> None:
        """One of a message's causes. Ranks that wait for what is over now go on."""
        if when > message.latest:
            message.latest = when
        message.causes -= 1
        if message.causes > 0:
            return
        message.over = message.latest + message.seconds
        for rank in message.waiting:
            rank.waits = False
            rank.go_on_to(message.over)
        self.runnable.extend(message.waiting)
        for later in message.following:
            self.happens(later, message.over)

    def work(self, rank: Rank, action: Action) -> None:
        length = self.seconds(rank.number, action)
        rank.worked += length
        rank.go_on_to(rank.clock + length)

    def forward(self, rank: Rank, action: Action) -> None:
        if action.microbatch == 0:
            rank.begins.setdefault(action.step, (rank.clock, rank.worked))
        self.work(rank, action)

    # Sums over replicas

    def release_refiners(self, rank: Rank, action: Action) -> None:
        rank.releases_refiners = True

    def backward(self, rank: Rank, action: Action) -> None:
        self.work(rank, action)
        if rank.releases_refiners:
            gradient = Action(Do.RELEASE_REFINER_GRADIENTS, refiner=action.refiner)
            rank.refiners_summed = max(rank.refiners_summed, rank.clock) + self.seconds(rank.number, gradient)

    def await_refiners(self, rank: Rank, action: Action) -> None:
        assert rank.releases_refiners, "refiners' gradients are awaited that have not been released"
        rank.releases_refiners = False
        rank.go_on_to(rank.refiners_summed)

    # States

    def send_state(self, rank: Rank, action: Action) -> Message | None:
        message = self.state(rank, rank.number, action, receives=False)
        message.seconds = self.seconds(rank.number, action)
        rank.sent[action.step] = message
        self.happens(message, rank.clock)
        return message if self.rendezvous else None

    def post_state(self, rank: Rank, action: Action) -> None:
        message = self.state(rank, rank.number - 1, action, receives=True)
        rank.posted.append(message)
        self.happens(message, rank.clock)

    def await_state(self, rank: Rank, action: Action) -> Message:
        if not rank.posted:
            return Message("never posted", causes=1)
        message = rank.posted.popleft()
        assert message.label == (action.step, action.microbatch), "states are awaited in the order of their receives"
        return message

    def await_states_sent(self, rank: Rank, action: Action) -> Message | None:
        return rank.sent.pop(action.step, None)

    def state(self, rank: Rank, edge: int, action: Action, *, receives: bool) -> Message:
        """The next message of an edge, which its other end may have started, behind the last of its group here."""
        label, group = (action.step, action.microbatch), edge % self.chain_groups
        started_here, started_there = self.edges[edge][receives], self.edges[edge][not receives]
        if started_there:
            message = started_there.popleft()
            assert message.label == label, "send and receive are of different microbatches"
        else:
            message = Message(label, causes=2)
            started_here.append(message)
        if group in rank.last:
            message.go_after(rank.last[group])
        rank.last[group] = message
        return message

    # Activations of pipelines, and their gradients

    def send_activation(self, rank: Rank, action: Action) -> Message | None:
        message = self.arrival(action.do, action)
        message.seconds = self.seconds(rank.number, action)
        self.happens(message, rank.clock)
        if not self.rendezvous:
            return None
        following = self.following.get(action)
        if following is not None and following.do in _ARRIVALS:
            rank.posted_ahead[following] = self.post_activation(rank, following)
        return message

    def await_activation(self, rank: Rank, action: Action) -> Message:
        return rank.posted_ahead.pop(action, None) or self.post_activation(rank, action)

    def post_activation(self, rank: Rank, action: Action) -> Message:
        message = self.arrival(_ARRIVALS[action.do], action)
        if self.rendezvous:
            self.happens(message, rank.clock)
        return message

    def arrival(self, sent: Do, action: Action) -> Message:
        """What enters a section, which its other end may have started."""
        key = sent, action.microbatch, action.section
        message = self.arrivals.pop(key, None)
        if message is None:
            message = self.arrivals[key] = Message(key, causes=2 if self.rendezvous else 1)
        return message

    # Collectives

    def start_collective(self, rank: Rank, action: Action) -> None:
        group = GROUPS[action.do]
        messages, k = self.collectives[group], rank.counts[group]
        label = (action.do, action.step, action.microbatch)
        if k == len(messages):
            # A root extractor's gradients are summed over the first ranks of all replicas, so of this cascade one.
            members = self.extractor_holders if group == "parameter gradients" else len(self.ranks)
            messages.append(Message(label, causes=members))
            messages[k].seconds = self.seconds(0, action)
            if k > 0:
                messages[k].go_after(messages[k - 1])
            for microbatch in (action.microbatch, None):
                self.by_batch[group, action.step, microbatch] = messages[k]
        assert messages[k].label == label, f"collective {k} of {group} differs between ranks"
        rank.counts[group] += 1
        self.happens(messages[k], rank.clock)

    def await_collective(self, rank: Rank, action: Action) -> Message | None:
        return self.by_batch.get((AWAITED_GROUPS[action.do], action.step, action.microbatch))

    def together(self, verb: Verb, rank: Rank, action: Action) -> Message | None:
        """Work that no rank can begin before all have come to it. Which is strict: only the first batch norm waits."""
        if rank.together != action:
            messages, k = self.collectives["statistics"], rank.counts["statistics"]
            if k == len(messages):
                messages.append(Message(action, causes=len(self.ranks)))
            assert messages[k].label == action, f"statistics {k} are of other work on other ranks"
            rank.counts["statistics"] += 1
            rank.together = action
            self.happens(messages[k], rank.clock)
            over = messages[k].over
            if over is None:
                rank.rest = chain([action], rank.rest)  # once more, when all are there
                return messages[k]
            rank.go_on_to(over)
        return verb(rank, action)

    def release(self, rank: Rank, action: Action) -> None:
        rank.released = action

    def extractor_backward(self, rank: Rank, action: Action) -> None:
        self.work(rank, action)
        self.leave(rank)  # at the latest; buckets of a real backward leave during it

    def await_parameter_gradients(self, rank: Rank, action: Action) -> Message | None:
        self.leave(rank)  # if no backward has completed them, they leave as they are
        return self.by_batch.get(("parameter gradients", action.step, None))

    def leave(self, rank: Rank) -> None:
        """The extractor's parameter gradients, if they may."""
        if rank.released is not None:
            self.start_collective(rank, rank.released)
            rank.released = None


def simulate(
    lists: Iterable[Iterable[Action]],
    seconds: Seconds,
    *,
    chain_groups: int = 2,
    rendezvous: bool = False,
    keep_spans: bool = True,
    extractor_holders: int | None = None,
    shares_statistics: bool = False,
) -> Timeline:
    """Run all ranks until they end. Raises DeadlockError with what each one is waiting for.

    Args:
        extractor_holders: how many ranks sum the extractor's gradients, by default all.
        shares_statistics: whether the batch norms of a sharded extractor wait for each other.
    """
    simulation = Simulation(
        lists,
        seconds,
        chain_groups=chain_groups,
        rendezvous=rendezvous,
        keep_spans=keep_spans,
        extractor_holders=extractor_holders,
        shares_statistics=shares_statistics,
    )
    return simulation.run()
