"""Seconds of processor time of a process and of all below it, by what each of them was doing; and
the peak memory of the largest."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Process:
    parent: int
    spent: float
    title: str
    peak_mib: float


class ProcessorTime:
    """Processor seconds of this process and of all below it, while in use as a context.

    peak_mib: the most memory that any of them has held at once, of its whole life.

    Looks every so many seconds (some 10 ms of a core each): Ray leaves nothing of a worker's time
    once it has ended. What a process spent between two looks is counted under the title that it has
    at the second.
    """

    def __init__(self, every: float = 0.2) -> None:
        self._every = every

    def __enter__(self) -> ProcessorTime:
        self._stop, self._spent = threading.Event(), defaultdict[str, float](float)
        self._before = {one: process.spent for one, process in _below().items()}
        self.peak_mib = 0.0
        self._thread = threading.Thread(target=self._look_on)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    @property
    def seconds(self) -> float:
        """So far."""
        return sum(self._spent.values())

    @property
    def by_title(self) -> dict[str, float]:
        """The same by process title (Ray names a worker by its task), most first."""
        return dict(sorted(self._spent.items(), key=lambda one: -one[1]))

    def _look_on(self) -> None:
        while not self._stop.wait(self._every):
            self._look()

    def _look(self) -> None:
        for one, process in _below().items():
            self._spent[process.title] += process.spent - self._before.get(one, 0.0)
            self._before[one] = process.spent
            self.peak_mib = max(self.peak_mib, process.peak_mib)


def _below() -> dict[int, _Process]:
    """This process and those below it, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            words = (folder / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
            status = (folder / "status").read_text(errors="replace").splitlines()
        except OSError:  # it has ended
            continue
        spent = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        one = int(folder.name)
        title = "this process" if one == os.getpid() else Path(words[0]).name
        peak = sum(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
        found[one] = _Process(int(fields[1]), spent, title, peak)
    ours, known = {os.getpid()}, 0
    while len(ours) > known:
        known = len(ours)
        ours |= {one for one, process in found.items() if process.parent in ours}
    return {one: found[one] for one in ours if one in found}
