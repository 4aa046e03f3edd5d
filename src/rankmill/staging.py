"""What is brought into order before a run: lists that lie apart, and texts that come by id.

It is planned from footers and the candidates' keys (`find`), and done by tasks while the run holds
its output (`Staging.carry_out`), into a folder beside the output that readers pass over. The
folder's name holds what was asked for; every file in it is whole or not there. So a staging that
was cut off goes on where it was, and another input's is never taken for this one's.

Ray's own sort is not used: its partitions follow the cluster, and what it has done lies in the
object store and is lost with the driver.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from rankmill import apart, exchange, lookup, partitions, pipeline, plan, scan, storage
from rankmill.apart import Arrangement, Sorting
from rankmill.config import ComputeConfig
from rankmill.errors import DoubledIds, InputError
from rankmill.lease import Lease
from rankmill.listing import RowGroup
from rankmill.load import Load
from rankmill.partitions import Joining, ShardTexts, Strategy
from rankmill.plan import ListsApart, Plan
from rankmill.read import Lookup
from rankmill.source import Source, TextTable
from rankmill.staging_progress import parent_and_name, staging_folders, staging_url, tell_step
from rankmill.store import Store

log = logging.getLogger("rankmill")
_VERSION = 1
_SORTED = "sorted"


@dataclass(frozen=True)
class Cost:
    """What turns rows into work: the settings of `plan.make_plan`."""

    loads: tuple[Load, ...]
    limit: int | None
    times: float


@dataclass(frozen=True)
class Staging:
    """What is to be done before shards can be read, if anything.

    arrangement: of rows that lie apart. strategies: one for each table of `source.texts`. output:
    beside which the folder lies.
    """

    source: Source
    whole: Plan
    arrangement: Arrangement | None
    strategies: tuple[Strategy, ...]
    output: Store

    @property
    def needs_folder(self) -> bool:
        """Whether anything is written."""
        return self.arrangement is not None or any(s.partitions for s in self.strategies)

    @cached_property
    def store(self) -> Store:
        """The staging folder. Raises `ConfigError` where there is no place beside the output."""
        return Store(staging_url(self.output, self._digest), self.output.access)

    @property
    def _digest(self) -> str:
        tables = (self.source, *self.source.texts)
        identity = {
            "version": _VERSION,
            "sizes": (exchange.SPILL_BYTES, exchange.CHUNK_BYTES, partitions.PARTITION_BYTES),
            "files": [[(f.url, f.size, f.version) for f in table.files] for table in tables],
            "schemas": [str(table.table_schema) for table in tables],
            "texts": [(table.key, table.texts) for table in self.source.texts],
            "key": self.source.query_key,
            "plan": self.whole.digest,
            "groups": [(group.file, group.rows) for group in self.whole.groups],
            "strategies": [asdict(strategy) for strategy in self.strategies],
        }
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """For plan and manifest."""
        found: dict[str, Any] = {}
        if self.arrangement is not None:
            held = sum(g.total_bytes for g in self.whole.groups)
            # Texts that come by id are not sorted, only counted to the rows.
            texts = sum(g.text_bytes for g in self.whole.groups) if self.source.texts else 0
            rows = int(self.whole.bounds[-1])
            found["sorted"] = {"rows": rows, "bytes": held - texts}
        for strategy in self.strategies:
            found[strategy.table] = {
                "rows": strategy.rows,
                "bytes": strategy.bytes,
                "strategy": strategy.name,
            }
        return found

    def carry_out(self, lease: Lease) -> tuple[Source, tuple[Lookup, ...]]:
        """Do it: the source that shards are read from, and where their texts come from.

        Tables that every node holds come first: what is wrong with them costs no sort.

        Raises `InputError` for what is wrong in the data (a broken page, an id that stands twice),
        and `OutputBusy` when another run has taken over the output.
        """
        try:
            return self._carry_out(lease)
        except DoubledIds:
            # Whatever mends that is another input, whose staging has another name.
            with suppress(OSError):
                self.remove()
            raise

    def _carry_out(self, lease: Lease) -> tuple[Source, tuple[Lookup, ...]]:
        source = self.source
        texts = list(zip(source.texts, self.strategies, strict=True))
        held = {
            table.name: pipeline.hold(lookup.index_all, table)
            for table, strategy in texts
            if not strategy.partitions
        }
        if self.needs_folder:
            with storage.reaching(self.store.url):
                self._remove(but=self.store.url)
        if self.arrangement is not None:
            source = self._sort(self.arrangement, lease)
        return source, tuple(
            held[table.name] if table.name in held else self._join(source, table, strategy, lease)
            for table, strategy in texts
        )

    def _sort(self, arrangement: Arrangement, lease: Lease) -> Source:
        names = [f"{_SORTED}/{file:06d}" for file in range(arrangement.files)]
        sorting = Sorting(self.source, arrangement, self.store)
        steps = _Steps(self.store, lease)
        items = [(name, (name, file)) for file, name in enumerate(names)]
        if steps.left(items):
            facts = self.to_json()["sorted"]
            log.info(
                "Rows of candidate lists lie apart: sorting %s rows (%s MB) into %s.",
                f"{facts['rows']:,}",
                f"{facts['bytes'] / 1e6:,.0f}",
                self.store.url,
            )
            handed = steps.hand_out("rows", apart.hand_out, sorting, self.source.row_groups)
            steps.run(apart.put_in_order, replace(sorting, handed=handed), items)
        steps.remove("rows")
        with storage.reaching(self.store.url):
            files = storage.list_files([self.store.url + f"/{_SORTED}"], self.store.access)
        if len(files) != len(names):
            raise InputError(
                f"{self.store.url}/{_SORTED} shows {len(files)} of {len(names)} sorted files.",
                "Run the same command again.",
            )
        return apart.sorted_source(self.source, self.whole, files)

    def _join(self, source: Source, texts: TextTable, strategy: Strategy, lease: Lease) -> Lookup:
        steps = _Steps(self.store, lease)
        names = [f"{texts.name}/{number:05d}.done" for number in range(strategy.partitions)]
        items = [(name, (name, number)) for number, name in enumerate(names)]
        if steps.left(items):
            log.info(
                "input.%s (%s rows, %s MB) is joined by %s in %s.",
                texts.name,
                f"{strategy.rows:,}",
                f"{strategy.bytes / 1e6:,.0f}",
                strategy.name,
                self.store.url,
            )
            joining = Joining(source, texts, self.whole.bounds, strategy, self.store)
            asked = steps.hand_out(_asked(texts), partitions.ask, joining, source.row_groups)
            handed = steps.hand_out(_handed(texts), partitions.hand_out, joining, texts.row_groups)
            joining = replace(joining, asked=asked, handed=handed)
            steps.run(partitions.put_down, joining, items)
        steps.remove(_asked(texts), _handed(texts))
        return ShardTexts(self.store, texts, strategy)

    def remove(self) -> None:
        """Remove the folder, and those of earlier inputs of this output. Raises `OSError`."""
        if self.needs_folder:
            self._remove()

    def _remove(self, but: str | None = None) -> None:
        for url in staging_folders(self.output):
            if url != but:
                Store(url, self.output.access).delete_folder("")


class _Steps:
    """Steps of a staging: tasks each of which leaves a file when it is done."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self._store, self._lease = store, lease

    def left(self, items: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Those whose files are not there yet."""
        folders = {name.rpartition("/")[0] for name, _ in items}
        with storage.reaching(self._store.url):
            there = {f"{each}/{name}" for each in folders for name in self._store.sizes(each)}
        return [item for item in items if item[0] not in there]

    def run(
        self, function: Callable[..., Any], shared: Sorting | Joining, items: Sequence[Any]
    ) -> dict[str, Any]:
        """Do what is left; what was returned by the file's name."""
        left = self.left(items)
        if left:
            with storage.reaching(self._store.url):
                tell_step(self._store, [name for name, _ in items])
        done = pipeline.map_shared(
            _Step(function), shared, [arguments for _, arguments in left], cpus=1.0
        )
        results = {}
        for (name, _), result in zip(left, done, strict=True):
            results[name] = result
            if self._lease.lost:
                self._lease.refuse_lost()
        return results

    def hand_out(
        self,
        folder: str,
        function: Callable[..., list[str]],
        shared: Sorting | Joining,
        groups: Sequence[RowGroup],
    ) -> tuple[str, ...]:
        """Have all row groups split into sections; the files in the order of their rows."""
        chunks = enumerate(exchange.chunks(groups))
        prefixes = {f"{folder}/{number:05d}": chunk for number, chunk in chunks}
        items = [(f"{prefix}.done", (prefix, chunk)) for prefix, chunk in prefixes.items()]
        files = self.run(function, shared, items)
        with storage.reaching(self._store.url):
            earlier = self._store.read_many([name for name, _ in items if name not in files])
        for name, content in earlier.items():
            files[name] = exchange.split_files(name.removesuffix(".done"), content)
        return tuple(file for name, _ in items for file in files[name])

    def remove(self, *folders: str) -> None:
        """Remove what was only on its way."""
        with storage.reaching(self._store.url):
            for folder in folders:
                self._store.delete_folder(folder)


@dataclass(frozen=True)
class _Step:
    function: Callable[..., Any]

    def __call__(self, shared: Sorting | Joining, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401
        with storage.reaching(shared.store.url):
            return self.function(shared, *arguments)


def find(source: Source, compute: ComputeConfig, cost: Cost, output: Store) -> Staging:
    """The plan of a run, and what must be done before it. Writes nothing.

    Raises `InputError` when the candidates' keys cannot be read.
    """
    settings = vars(cost)
    arrangement = None
    try:
        whole = plan.make_plan(source, scan.scan(source, compute), **settings)
    except ListsApart:
        lists = apart.find_lists(source.row_groups, scan.scan(source, compute))
        whole, arrangement = apart.arrange(lists, **settings)
    strategies = tuple(partitions.choose(texts, whole) for texts in source.texts)
    staging = Staging(source, whole, arrangement, strategies, output)
    if staging.needs_folder:
        parent_and_name(output.url)
    return staging


def _asked(texts: TextTable) -> str:
    return f"{texts.name}-asked"


def _handed(texts: TextTable) -> str:
    return f"{texts.name}-handed"
