"""The simulated times of all ranks' actions. No torch."""

from dataclasses import dataclass

from sidpar.schedules.actions import Action, Do


@dataclass
class Timeline:
    """What the clocks of the ranks showed."""

    spans: list[list[tuple[float, float, Action]]]
    """Per rank, (start, end, action) of everything that takes time, if they were kept."""
    ends: list[float]
    work: list[float]
    """How long each rank works."""
    begins: list[dict[int, tuple[float, float]]]
    """When each rank began to refine each batch, and how long it had worked by then."""

    @property
    def makespan(self) -> float:
        return max(self.ends)

    @property
    def bubble(self) -> float:
        """The share of the step in which a rank, on average, does not compute."""
        return 1 - sum(self.work) / (len(self.work) * self.makespan) if self.makespan else 0.0

    def draw(self) -> list[str]:
        """One row per rank, one cell per unit of time: F0 (T0 without a graph) and B0, B0 for a backward of two."""
        rows = []
        for spans in self.spans:
            cells = ["  "] * int(self.makespan)
            for start, end, action in [span for span in spans if span[2].do in (Do.FORWARD, Do.BACKWARD)]:
                letter = "B" if action.do is Do.BACKWARD else "F" if action.graph else "T"
                cells[int(start) : int(end)] = [f"{letter}{action.microbatch}"] * int(end - start)
            rows.append(" ".join(cells).rstrip())
        return rows
