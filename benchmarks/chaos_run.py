"""The command that `chaos.py` starts again and again: a run with a scorer that can fail.

    python benchmarks/chaos_run.py INPUT OUTPUT FOLDER [--address A] [--seconds 0.03] [--top-k K]

FOLDER takes the scorer's journal. Exit codes are those of `rankmill rerank`.
"""

from __future__ import annotations

import argparse
import sys

from fragile import Fragile
from rankmill import job, plan
from rankmill.config import load_config
from rankmill.errors import RankmillError

SHARD_PAIRS = 20


def main() -> None:
    """Run, or say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("input", "output", "folder"):
        parser.add_argument(name)
    parser.add_argument("--address")
    parser.add_argument("--seconds", type=float, default=0.03)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--overwrite", action="store_true")
    given = parser.parse_args()
    plan.SHARD_PAIRS = SHARD_PAIRS  # the plan is made here and nowhere else
    config = load_config(
        overrides={
            "input.path": given.input,
            "output.path": given.output,
            "output.top_k": given.top_k,
            "model.name": "stand-in",
            "model.backend": "torch",
            "model.precision": "fp32",
            "compute.address": given.address,
            "compute.workers": given.workers,
        }
    )
    model = Fragile(folder=given.folder, seconds=given.seconds)
    try:
        result = job.rerank(config, overwrite=given.overwrite, model=model)
    except RankmillError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{result.counters.rows_out} rows, {result.manifest['shards_resumed']} shards resumed")


if __name__ == "__main__":
    main()
