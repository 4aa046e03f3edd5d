"""The benchmarks by name, and preparing one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rankmill import storage
from rankmill.errors import ConfigError
from rankmill.recipes import beir, jacwir, jqara, jsquad, llamaindex, miracl
from rankmill.recipes.table import CandidateList, Prepared, write


class Choices(NamedTuple):
    """Part of the benchmark, candidates a query, and a TREC run that has them."""

    split: str
    depth: int
    run: str | None


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is read, and what is published of it.

    metrics: as its figures are given. split, depth: those of the figures; None where there is no
    choice. takes_run: candidates may come from a TREC run. ordered: there is a first stage even
    without one.
    """

    read: Callable[[str, Choices], Iterator[CandidateList]]
    metrics: tuple[str, ...]
    split: str | None = None
    depth: int | None = None
    takes_run: bool = False
    ordered: bool = False


BENCHMARKS = {
    "jqara": Benchmark(
        lambda source, chosen: jqara.read(source, chosen.split),
        ("ndcg@10", "mrr@10"),
        split="test",
    ),
    "jacwir": Benchmark(lambda source, _: jacwir.read(source), ("map@10", "hit@10")),
    "jsquad": Benchmark(
        lambda source, chosen: jsquad.read(source, chosen.split, chosen.depth),
        ("map@10",),
        split="valid",
        depth=20,
        ordered=True,
    ),
    "miracl-ja": Benchmark(
        lambda source, chosen: miracl.read(source, *chosen),
        ("ndcg@10",),
        split="dev",
        depth=100,
        takes_run=True,
    ),
    "beir": Benchmark(
        lambda source, chosen: beir.read(source, *chosen),
        ("ndcg@10",),
        split="test",
        depth=100,
        takes_run=True,
        ordered=True,
    ),
    "llamaindex": Benchmark(
        lambda source, chosen: llamaindex.read(source, chosen.depth, chosen.run),
        ("hit@5", "mrr@5"),
        depth=10,
        takes_run=True,
        ordered=True,
    ),
}


def prepare(
    name: str,
    source: str | Path,
    output: str | Path,
    *,
    split: str | None = None,
    depth: int | None = None,
    run: str | Path | None = None,
) -> Prepared:
    """Write a benchmark as OUTPUT/candidates.parquet and OUTPUT/qrels.parquet.

    source: a local copy as its module describes it. Candidates have `query_id, query, doc_id,
    title, text` (text; title null where there is none) and, where there is a first stage,
    `first_stage_score` (float32) and `first_stage_rank` (int32, from 1). Without the other
    arguments it is the benchmark as its figures are published.

    Raises `ConfigError` for a name or a choice that there is not, `InputError` naming what is
    wrong with the copy, `OutputError`.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        raise ConfigError(
            f"The benchmark {name} is not known.", f"There are {', '.join(BENCHMARKS)}."
        )
    for option, given, choice in (
        ("split", split, benchmark.split is not None),
        ("depth", depth, benchmark.depth is not None),
        ("run", run, benchmark.takes_run),
    ):
        if given is not None and not choice:
            raise ConfigError(
                f"{name} is published with its candidates: there is no {option} to choose.",
                f"Leave out {option}.",
            )
    if depth is not None and depth < 2:
        raise ConfigError(f"A list needs two candidates or more, found depth {depth}.")
    chosen = Choices(
        split or benchmark.split or "",
        depth or benchmark.depth or 0,
        None if run is None else storage.absolute(str(run)),
    )
    return write(
        benchmark.read(storage.absolute(str(source)), chosen),
        Path(output),
        ordered=benchmark.ordered or run is not None,
    )
