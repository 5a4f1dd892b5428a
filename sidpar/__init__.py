"""Model-parallel training by Synergistic Information Distillation on torch.distributed.

cascade = sidpar.Cascade(extractor, refiners, num_classes=10)
stage = sidpar.Stage(cascade, runtime, extractor="sharded")
engine = sidpar.ParallelEngine(stage, sidpar.Objective(), schedule="fused", microbatches=4)
result = engine.step(x, y)  # gradients are in stage.parameters()
"""

from sidpar.calibration.pieces import measure_costs
from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.compute import Compute
from sidpar.config.groups.objective import Objective
from sidpar.data.image_file import read_image
from sidpar.data.input_rows import InputRows
from sidpar.distributed.runtime import Runtime
from sidpar.engines.backpropagation.pipeline import PipelineEngine
from sidpar.engines.backpropagation.whole import BPEngine
from sidpar.engines.local import LocalEngine
from sidpar.engines.parallel import ParallelEngine
from sidpar.engines.result import StepResult
from sidpar.engines.streaming import StreamingEngine
from sidpar.errors import RunError, UsageError
from sidpar.models.cutting.cut import cut_backbone
from sidpar.rules.base import LocalRule
from sidpar.runs.load import load, load_preprocessing
from sidpar.runs.weights import save_weights
from sidpar.schedules.cut import make_cut
from sidpar.schedules.placement import Copies, Placement, place_by_cost
from sidpar.stages.stage import Stage
from sidpar.training.meter import Meter
from sidpar.version import __version__

SIDEngine = ParallelEngine
"""The former name of ParallelEngine, from when SID was the only rule."""

__all__ = [
    "BPEngine",
    "Cascade",
    "Compute",
    "Copies",
    "InputRows",
    "LocalEngine",
    "LocalRule",
    "Meter",
    "Objective",
    "ParallelEngine",
    "PipelineEngine",
    "Placement",
    "RunError",
    "Runtime",
    "SIDEngine",
    "Stage",
    "StepResult",
    "StreamingEngine",
    "UsageError",
    "__version__",
    "cut_backbone",
    "load",
    "load_preprocessing",
    "make_cut",
    "measure_costs",
    "place_by_cost",
    "read_image",
    "save_weights",
]
