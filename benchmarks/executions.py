"""What does a driver keep of every execution of Ray Data, without rankmill?

    python benchmarks/executions.py [--executions 60]

One execution after the other in one driver, of a graph of a run's shape (read, tasks, an actor, a
sink) over one row. Prints the slope of the driver's own memory, MiB an execution, without the first
fifth. `soak.py` allows its short runs that much. Needs /proc.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import tempfile
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.data.datasource import Datasink

from machine import own_memory


class Nowhere(Datasink[int]):
    """Takes rows and forgets them."""

    def write(self, blocks: Iterable[pa.Table], ctx: object) -> int:
        """How many rows there were."""
        return sum(block.num_rows for block in blocks)


class Same:
    """An actor that does nothing."""

    def __call__(self, block: pa.Table) -> pa.Table:
        return block


def execute() -> None:
    """Run the graph once."""
    dataset = ray.data.range(1, override_num_blocks=1)
    dataset = dataset.map_batches(lambda b: b, batch_format="pyarrow", num_cpus=0.25)
    pool = ActorPoolStrategy(size=1)
    dataset = dataset.map_batches(Same, batch_format="pyarrow", compute=pool, num_cpus=0.5)
    dataset.write_datasink(Nowhere(), ray_remote_args={"num_cpus": 0.25})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=60)
    executions = parser.parse_args().executions
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="rm-ex-") as folder:
        os.environ["RAY_TMPDIR"] = folder
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        mib = []
        for _ in range(executions):
            execute()
            gc.collect()
            mib.append(own_memory(os.getpid()))
        ray.shutdown()
    first = executions // 5
    slope = np.polyfit(np.arange(first, executions), mib[first:], 1)[0]
    print(f"{slope:.3f}")


if __name__ == "__main__":
    main()
