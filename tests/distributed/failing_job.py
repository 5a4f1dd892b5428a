"""Started by test_runtime.py under torchrun: rank 1 fails in its third step, as the first argument says."""

import os
import signal
import sys
import time

from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record

from sidpar import Objective, ParallelEngine, Runtime, Stage
from sidpar.models.concat_refiner import ConcatRefiner
from sidpar.seeding import seeded
from tests import networks

FAILURE, EXTRACTOR, STEP_TIMEOUT, DEVICE = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]


class FailingRefiner(ConcatRefiner):
    """A refiner that works twice."""

    calls = 0

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        if not features.is_meta:  # shape inference does not count
            self.calls += 1
        if self.calls == 3:
            print(f"failing at {time.time()}", flush=True)
            if FAILURE == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if FAILURE == "silence":
                time.sleep(1000)  # a hang, until the launcher ends it
            raise RuntimeError("this refiner is broken")
        return super().forward(features, log_belief)


@record
def main() -> None:
    with Runtime.start(backend="gloo", device=DEVICE, step_timeout=STEP_TIMEOUT) as runtime:
        cascade = networks.plain(3)
        with seeded("failing"):
            cascade.refiners[1] = FailingRefiner(4, [7], networks.CLASSES).double()
        engine = ParallelEngine(Stage(cascade, runtime, extractor=EXTRACTOR), Objective())  # type: ignore[arg-type]
        x, y = networks.batch(6)
        for _ in range(10):
            engine.step(x, y)


if __name__ == "__main__":
    main()
