"""Is every row there once, whatever happens? Faults by the dozen, and the same command again.

    python benchmarks/chaos.py [--rounds 5] [--seed 7] [--kinds "driver killed,node killed"]

After each fault the command is started again until it is complete. Then every part must have the
bytes of an undisturbed run's (shards marked `degraded` apart, whose rows must still be there), the
counters must add up, and nothing may lie about. Prints a table; exits with 1 if anything was wrong.
Leaves out what this machine cannot do (a full disk needs the right to mount one), and says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from chaos_run import SHARD_PAIRS
from chaos_site import CANDIDATES, QUERIES, Case, Site
from faults import KINDS
from fragile import read_journal
from machine import describe_machine

_PAIRS = QUERIES * CANDIDATES
_MOST_STARTS = 5
_STORE = "store "


@dataclass
class Outcome:
    """What one case, or all of a kind, came to. redone: pairs scored more than once."""

    runs: int = 0
    faults: int = 0
    starts: int = 0
    lost: int = 0
    doubled: int = 0
    differing: int = 0
    redone: int = 0
    most_redone: int = 0
    degraded: int = 0
    recovery: list[float] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Sum up."""
        for name in ("runs", "faults", "starts", "lost", "doubled", "differing", "redone"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.most_redone = max(self.most_redone, other.most_redone)
        self.degraded += other.degraded
        self.recovery += other.recovery
        self.seen += other.seen
        self.problems += other.problems

    @property
    def is_right(self) -> bool:
        """Whether nothing was wrong."""
        return not (self.lost or self.doubled or self.differing or self.problems)


def make_case(site: Site, kind: str, number: int) -> Case:
    """An output of its own for a case of a kind."""
    name = f"{kind.replace(' ', '-')}-{number}"
    if kind.startswith(_STORE):
        return Case(site, name, number, f"s3://bucket/{name}", "s3://bucket/input")
    root = site.disk if kind == "disk full" and site.disk is not None else site.root
    return Case(site, name, number, str(root / name))


def finish(case: Case) -> None:
    """Start the command again until it is complete, and look how soon it goes on."""
    while case.codes[-1] != 0 and case.starts < _MOST_STARTS:
        case.start()
        case.watch_recovery()
        case.end()


def examine(case: Case, wanted: dict[str, bytes]) -> Outcome:
    """Compare a case's output with an undisturbed run's parts."""
    found = case.contents()
    parts = {name: content for name, content in found.items() if name.endswith(".parquet")}
    markers = [
        json.loads(content)
        for name, content in found.items()
        if name.startswith("_rankmill/shards/")
    ]
    degraded = {marker["files"][0]["name"] for marker in markers if marker["degraded"]}
    names = {name for name in parts.keys() | wanted.keys() if parts.get(name) != wanted.get(name)}
    rows = Counter(doc for content in parts.values() for doc in _documents(content))
    _, scored = read_journal(case.folder)
    redone = sum(count - 1 for count in scored.values())
    return Outcome(
        runs=1,
        faults=case.faults,
        starts=case.starts,
        lost=_PAIRS - len(rows),
        doubled=sum(rows.values()) - len(rows),
        differing=len(names - degraded),
        redone=redone,
        most_redone=redone,
        degraded=len(degraded),
        recovery=case.recovery,
        seen=Counter(case.places),
        problems=[f"{case.name}: {problem}" for problem in _problems(case, found, markers)],
    )


def _documents(content: bytes) -> list[str]:
    documents: list[str] = pq.read_table(pa.BufferReader(content)).column("doc_id").to_pylist()
    return documents


def _problems(case: Case, found: dict[str, bytes], markers: list[dict[str, object]]) -> list[str]:
    problems = []
    if case.codes[-1] != 0:
        problems.append(f"ends with {case.codes}: {case.logs()[-1500:]}")
    if "Traceback" in case.logs():
        at = case.logs().index("Traceback")
        problems.append(f"printed a traceback: {case.logs()[at : at + 3000]}")
    if "_SUCCESS" not in found:
        problems.append("has no _SUCCESS")
    left = ("_rankmill/tmp/", "_rankmill/failed/", "_rankmill/lease.json")
    problems += [f"left {name}" for name in found if name.startswith(left)]
    for marker in markers:
        for file in marker["files"]:  # type: ignore[attr-defined]
            content = found.get(file["name"], b"")
            if hashlib.sha256(content).hexdigest() != file["sha256"]:
                problems.append(f"{file['name']} is not what its marker says")
    said = json.loads(found.get("_rankmill/manifest.json", b"{}"))
    sums = {name: said.get(name) for name in ("rows_in", "rows_out", "pairs_scored")}
    if set(sums.values()) != {_PAIRS} or len(markers) != said.get("shards"):
        problems.append(f"counts {sums} and {len(markers)} markers")
    if case.is_remote:
        uploads = case.site.bucket.call_s3("list_multipart_uploads", Bucket="bucket")
        problems += [f"left the upload {one['Key']}" for one in uploads.get("Uploads", [])]
    return problems


def undisturbed(site: Site, kind: str) -> tuple[dict[str, bytes], float]:
    """The parts of a run that nothing happens to, and its seconds."""
    case = make_case(site, f"{kind} undisturbed".strip(), 0)
    started = time.monotonic()
    case.start()
    code = case.end()
    seconds = time.monotonic() - started
    if code:
        raise SystemExit(f"An undisturbed run fails:\n{case.logs()}")
    found = {name: c for name, c in case.contents().items() if name.endswith(".parquet")}
    return found, seconds


def run_case(site: Site, kind: str, number: int, seed: int, wanted: dict[str, bytes]) -> Outcome:
    """One case of a kind."""
    case = make_case(site, kind, number)
    case.shards = len(wanted)
    # A seed a case, so that one of them can be had again alone.
    KINDS[kind](case, random.Random(f"{seed} {kind} {number}"))
    finish(case)
    return examine(case, wanted)


def print_table(table: dict[str, Outcome]) -> None:
    """A row a kind, as Markdown."""
    print("\n| fault | runs | faults | starts | pairs lost | doubled | parts that differ ", end="")
    print("| pairs scored again, a run: mean, most | recovery, s: median, most |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind, o in table.items():
        times = sorted(o.recovery)
        recovery = f"{times[len(times) // 2]:.1f}, {times[-1]:.1f}" if times else ""
        again = f"{o.redone / o.runs:.0f}, {o.most_redone}"
        print(f"| {kind} | {o.runs} | {o.faults} | {o.starts} | {o.lost} | {o.doubled} ", end="")
        print(f"| {o.differing} | {again} | {recovery} |")
    for kind, o in table.items():
        notes = [f"{count} x {name}" for name, count in sorted(o.seen.items())]
        if o.degraded:
            notes.append(f"{o.degraded} degraded shards")
        if notes:
            print(f"\n{kind}: {', '.join(notes)}")


def main() -> None:
    """Go through the kinds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--kinds", default=",".join(KINDS))
    given = parser.parse_args()
    kinds = [kind.strip() for kind in given.kinds.split(",")]
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no such kinds: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    # A shell that started this in the background has turned it off.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    table: dict[str, Outcome] = defaultdict(Outcome)
    started = time.monotonic()
    try:
        with_store = any(kind.startswith(_STORE) for kind in kinds)
        with Site(given.seed, with_store, with_jobs="job stopped" in kinds) as site:
            if site.disk is None and "disk full" in kinds:
                print("disk full: left out, as no disk may be mounted here", flush=True)
                kinds.remove("disk full")
            wanted: dict[str, dict[str, bytes]] = {}
            # Round by round, so that one that is cut short has something of every kind.
            for number in range(given.rounds):
                for kind in kinds:
                    where = _STORE.strip() if kind.startswith(_STORE) else ""
                    if where not in wanted:
                        wanted[where], seconds = undisturbed(site, where)
                        print(f"undisturbed {where}: {len(wanted[where])} shards, {seconds:.1f} s")
                    found = run_case(site, kind, number, given.seed, wanted[where])
                    table[kind].add(found)
                    print(f"{kind} {number}: {'right' if found.is_right else 'WRONG'}", flush=True)
                    for problem in found.problems:
                        print(problem, flush=True)
    except KeyboardInterrupt:
        print("cut short")
    for kind, outcome in table.items():
        if not outcome.faults:
            outcome.problems.append("no fault came about")
            print(f"{kind}: no fault came about")
    print_table(table)
    print(
        f"\n{_PAIRS} pairs in shards of {SHARD_PAIRS}, 2 workers, seed {given.seed}, "
        f"{time.monotonic() - started:.0f} s; {describe_machine()}"
    )
    sys.exit(not all(outcome.is_right for outcome in table.values()))


if __name__ == "__main__":
    main()
