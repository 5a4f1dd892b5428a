"""The choices of all settings that are chosen by name."""

from typing import Literal

KL = Literal["forward", "reverse"]
ExtractorUpdate = Literal["all", "final", "frozen"]
ExtractorPlacement = Literal["replicated", "root", "sharded"]
CutExtractor = Literal["root", "cut"]
AnyExtractor = Literal["replicated", "root", "sharded", "cut"]
SynchronousName = Literal["two_phase", "fused"]
ScheduleName = Literal["two_phase", "fused", "streaming"]
PipelineName = Literal["naive", "gpipe", "1f1b", "interleaved", "zero_bubble", "zbv", "dualpipe_v"]
AnySchedule = Literal[
    "two_phase", "fused", "streaming", "naive", "gpipe", "1f1b", "interleaved", "zero_bubble", "zbv", "dualpipe_v"
]
RefinerExecution = Literal["loop", "stacked"]
Backend = Literal["auto", "nccl", "gloo"]
DeviceKind = Literal["auto", "cpu", "cuda"]
Autocast = Literal["none", "bf16"]
OptimizerName = Literal["adam", "adamw", "sgd"]
HeadName = Literal["linear", "mlp", "conv", "strided"]
BeliefEntry = Literal["concat", "residual", "none"]
Pooling = Literal["mean", "class"]
HiddenLayout = Literal["channels_first", "channels_last"]
RateSchedule = Literal["cosine", "constant"]

Option = bool | int | float | str | list[bool | int | float | str] | None
"""A plain value, as YAML can hold it."""
