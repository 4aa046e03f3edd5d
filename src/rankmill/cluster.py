"""The cluster: connecting to it, its nodes, and those that score once their GPUs have started."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.autoscaler.sdk import request_resources

from rankmill import local_cluster
from rankmill.config import ComputeConfig
from rankmill.errors import ConfigError
from rankmill.pool import Capacity, gpu_workers

log = logging.getLogger("rankmill")
# Between two looks at a cluster whose nodes are still to start, which takes minutes.
_LOOK_SECONDS = 1.0

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
# Without `local` Ray would look in /tmp, where anybody may write, for a cluster to join.
_LOCAL = _QUIET | {
    "address": "local",
    "include_dashboard": False,
    "_node_ip_address": "127.0.0.1",
}


@contextlib.contextmanager
def connected(config: ComputeConfig) -> Iterator[None]:
    """A connection for the time of a run. One that is there already (a notebook's) stays open."""
    if ray.is_initialized():
        yield
        return
    connect(config)
    try:
        yield
    finally:
        ray.shutdown()


def connect(config: ComputeConfig) -> None:
    """Connect to the cluster that `compute.address` or RAY_ADDRESS names, or start a local one.

    Does nothing where there is a connection. Raises `ConfigError` when the cluster cannot be
    reached.
    """
    if ray.is_initialized():
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if address and address != "local":
            local_cluster.forget_token(AuthenticationTokenLoader.instance())
            ray.init(**_QUIET, address=address)
        else:
            with local_cluster.on_loopback(ray_constants, AuthenticationTokenLoader.instance()):
                ray.init(**_LOCAL)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"The Ray cluster at {address or 'this machine'} cannot be used: {error}.",
            "Check compute.address and RAY_ADDRESS; with neither, a local cluster is started.",
        ) from error


def is_foreign_cluster(config: ComputeConfig) -> bool:
    """Whether the run will use a cluster that rankmill does not start itself."""
    address = config.address or os.environ.get("RAY_ADDRESS")
    return bool(address) and address != "local" and not ray.is_initialized()


def capacity() -> Capacity:
    """CPUs and GPUs of the live nodes that can run work. Connects if nothing is connected yet."""
    connect(ComputeConfig())
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0]
    nodes.sort(key=lambda node: str(node["NodeID"]))
    return Capacity(
        cpus=tuple(float(n["Resources"]["CPU"]) for n in nodes),
        gpus=tuple(float(n["Resources"].get("GPU", 0)) for n in nodes),
        node_ids=tuple(str(n["NodeID"]) for n in nodes),
        memory=tuple(float(n["Resources"].get("memory", 0)) for n in nodes),
        labels=tuple(dict(n.get("Labels") or {}) for n in nodes),
    )


def scoring_capacity(compute: ComputeConfig) -> Capacity:
    """The nodes that may score, when the GPUs that are wanted are there or the wait is over.

    An autoscaler is asked for them meanwhile. Whether fewer will do is for `pool.choose_device`.
    """
    found = capacity().of(compute.labels)
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
            found = capacity().of(compute.labels)
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
