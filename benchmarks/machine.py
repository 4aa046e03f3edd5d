"""The machine that figures come from, in a line; what memory a process has."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from rankmill import profile


def describe_machine() -> str:
    """Processor, cores, instruction set, memory, Python and the libraries that compute."""
    hardware = profile.probe("cpu")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = " ".join(f"{n} {metadata.version(n)}" for n in ("torch", "openvino", "ray"))
    return (
        f"{hardware.cores} cores of {_processor()} ({hardware.instructions}), {memory:.0f} GiB, "
        f"{platform.system()}, Python {platform.python_version()}, {versions}"
    )


def own_memory(pid: int) -> float:
    """MiB that are the process's own: pages of files and of Ray's object store come and go."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        return sum(int(x.split()[1]) for x in lines if x.startswith(("RssAnon", "VmSwap"))) / 1024
    return 0.0


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
