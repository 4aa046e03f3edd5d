"""One night's run on a cluster: ray job submit --working-dir . -- python jobs/nightly.py --date D

Takes what `rankmill nightly` takes. The driver's exit code is the run's. The cluster's nodes need
rankmill installed; data paths must be absolute or on an object store.
"""

from __future__ import annotations

import sys

from rankmill import cli

if __name__ == "__main__":
    sys.argv.insert(1, "nightly")
    cli.main()
