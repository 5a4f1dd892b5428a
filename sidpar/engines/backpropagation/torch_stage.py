"""The seam to torch's pipelines: one section as the stage that `torch.distributed.pipelining` runs."""

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage

from sidpar.cascade.specs import Spec
from sidpar.engines.base import Engine
from sidpar.profiler.clock import span
from sidpar.profiler.memory import bytes_of
from sidpar.schedules.phases import Phase
from sidpar.stages.sections import Section


class TimedStage(PipelineStage):
    """torch's stage, which also tells its section the microbatch, the clock the time, and the traffic the bytes."""

    def __init__(
        self, engine: Engine, section: Section, num_sections: int, specs: list[tuple[Spec, ...]], size: int
    ) -> None:
        runtime = engine.stage.runtime
        assert runtime.groups is not None
        inputs, outputs = (
            tuple(_example(spec, size, gradient=s > 0) for spec in specs[s]) for s in (section.index, section.index + 1)
        )
        super().__init__(
            section,
            section.index,
            num_sections,
            runtime.device,
            input_args=inputs,
            output_args=outputs,
            group=runtime.groups.default,
        )
        self._engine = engine
        self._section = section
        self._posted: dict[tuple[str, int], int] = {}

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        self._section.microbatch = fwd_chunk_id
        self._arrived("activation", fwd_chunk_id)
        with self._during("forward", fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: Any = False
    ) -> Any:
        self._arrived("activation gradient", bwd_chunk_id)
        with self._during("backward" if full_backward else "input backward", bwd_chunk_id):
            return super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        with self._during("weight backward", bwd_chunk_id):
            return super().backward_weight_one_chunk(bwd_chunk_id, *args, **kwargs)

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        return self._received("activation", fwd_chunk_id, super().get_fwd_recv_ops(fwd_chunk_id))

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        return self._received("activation gradient", bwd_chunk_id, super().get_bwd_recv_ops(bwd_chunk_id))

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        return self._counted("activation", super().get_fwd_send_ops(fwd_chunk_id))

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        return self._counted("activation gradient", super().get_bwd_send_ops(bwd_chunk_id))

    def _during(self, phase: Phase, m: int) -> AbstractContextManager[None]:
        return span(self._engine.clock, phase, f"section {self._section.index}, microbatch {m}")

    def _received(self, kind: str, m: int, messages: list[dist.P2POp]) -> list[dist.P2POp]:
        """A posted receive occupies its buffers until the work that needs them begins."""
        self._posted[kind, m] = bytes_of(message.tensor for message in messages)
        self._engine.traffic.occupy(self._posted[kind, m])
        return messages

    def _arrived(self, kind: str, m: int) -> None:
        """Called when torch has waited for what was posted, if it comes from another rank."""
        size = self._posted.pop((kind, m), 0)
        if size:
            self._engine.traffic.occupy(-size)
            if self._engine.clock is not None:
                self._engine.clock.waited("receive wait", f"{kind}, section {self._section.index}, microbatch {m}")

    def _counted(self, kind: str, messages: list[dist.P2POp]) -> list[dist.P2POp]:
        if messages:
            self._engine.traffic.count(kind, bytes_of(message.tensor for message in messages), len(messages))
        return messages


def _example(spec: Spec, size: int, *, gradient: bool) -> Tensor:
    return spec.empty(size, torch.device("meta")).requires_grad_(gradient)
