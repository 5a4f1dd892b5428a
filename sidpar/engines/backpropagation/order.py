"""The order of work in torch's pipelines, read off torch's own schedules without a process group."""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from torch.distributed import pipelining

from sidpar.config.groups.choices import PipelineName
from sidpar.schedules.actions import Action, Do
from sidpar.schedules.cut import Cut

SCHEDULES: dict[PipelineName, Any] = {
    "naive": pipelining.ScheduleGPipe,
    "gpipe": pipelining.ScheduleGPipe,
    "1f1b": pipelining.Schedule1F1B,
    "interleaved": pipelining.ScheduleInterleaved1F1B,
    "zero_bubble": pipelining.ScheduleInterleavedZeroBubble,
    "zbv": pipelining.ScheduleZBVZeroBubble,
    "dualpipe_v": pipelining.ScheduleDualPipeV,
}
_WORK = {
    "FORWARD": Do.SECTION_FORWARD,
    "FULL_BACKWARD": Do.SECTION_BACKWARD,
    "BACKWARD_INPUT": Do.SECTION_INPUT_BACKWARD,
    "BACKWARD_WEIGHT": Do.SECTION_WEIGHT_BACKWARD,
}


def torch_order(schedule: PipelineName, cut: Cut, microbatches: int) -> list[list[Action]]:
    """The work of all ranks by a schedule with several sections per rank.

    torch plans all ranks alike on each, from what it reads off the stages of one. Stand-ins tell it that.
    """
    last = cut.num_sections - 1
    stages = [
        SimpleNamespace(
            stage_index=section,
            num_stages=cut.num_sections,
            group_rank=0,
            group_size=cut.num_ranks,
            is_first=section == 0,
            is_last=section == last,
            submod=None,
        )
        for section in cut.sections(0)
    ]
    order = SCHEDULES[schedule](stages, microbatches).pipeline_order
    return [list(_translated(order[rank])) for rank in range(cut.num_ranks)]


def _translated(order: Iterable[Any]) -> Iterator[Action]:
    """torch's order of one rank's work, with None for a bubble, as our actions."""
    for entry in order:
        if entry is None:
            continue
        for part in entry.sub_actions or (entry,):
            yield Action(_WORK[part.computation_type.name], part.microbatch_index, section=part.stage_index)
