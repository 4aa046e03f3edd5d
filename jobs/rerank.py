"""The job for a cluster: ray job submit --working-dir . -- python jobs/rerank.py CONFIG [flags]

Takes what `rankmill rerank` takes. The driver's exit code is the run's. The cluster's nodes need
rankmill installed; data paths must be absolute or on an object store.
"""

from __future__ import annotations

import sys

from rankmill import cli

if __name__ == "__main__":
    sys.argv.insert(1, "rerank")
    cli.main()
