"""The nodes that score: those with the wanted labels, once their GPUs have started."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

from ray.autoscaler.sdk import request_resources

from rankmill import pipeline
from rankmill.config import ComputeConfig
from rankmill.pool import Capacity, gpu_workers

log = logging.getLogger("rankmill")
# Between two looks at a cluster whose nodes are still to start, which takes minutes.
_LOOK_SECONDS = 1.0


def scoring_capacity(compute: ComputeConfig) -> Capacity:
    """The nodes that may score, when the GPUs that are wanted are there or the wait is over.

    An autoscaler is asked for them meanwhile. Whether fewer will do is for `pool.choose_device`.
    """
    found = pipeline.capacity().of(compute.labels)
    wanted = 1 if compute.workers == "auto" else compute.workers
    there = gpu_workers(compute, found)
    if compute.device not in ("auto", "cuda") or not compute.wait_seconds or there >= wanted:
        return found
    log.info(
        "The cluster's GPUs hold %d of %d workers; waiting for more, %d s at most.",
        *(there, wanted, compute.wait_seconds),
    )
    deadline = time.monotonic() + compute.wait_seconds
    with _asked_for(compute, wanted):
        while there < wanted and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(_LOOK_SECONDS, left))
            found = pipeline.capacity().of(compute.labels)
            there = gpu_workers(compute, found)
    if there < wanted:
        log.warning("After the wait the cluster's GPUs hold %d of %d workers.", there, wanted)
    return found


@contextlib.contextmanager
def _asked_for(compute: ComputeConfig, workers: int) -> Iterator[None]:
    """Meanwhile the cluster's autoscaler, if it has one, starts nodes for so many workers."""
    bundle = {"GPU": compute.gpus_per_worker}
    if compute.memory is not None:
        bundle["memory"] = compute.memory
    request_resources(bundles=[bundle] * workers, bundle_label_selectors=[compute.labels] * workers)
    try:
        yield
    finally:
        # A request stays until the next one, and would keep the nodes for ever.
        request_resources(bundles=[], bundle_label_selectors=[])
