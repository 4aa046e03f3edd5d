"""What became of an export's lists and rows, by shard and in sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Counts:
    """What became of lists and rows: `rows = rows_used + sum(dropped)`.

    positives_missing: judged relevant, but not among their query's candidates.
    """

    queries: int = 0
    queries_used: int = 0
    queries_without_positive: int = 0
    queries_with_too_few_negatives: int = 0
    rows: int = 0
    rows_used: int = 0
    positives: int = 0
    positives_missing: int = 0
    examples: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def refuse_imbalance(self) -> None:
        """Raise `AssertionError` when a row or a list was lost or counted twice."""
        told = self.rows_used + sum(self.dropped.values())
        assert self.rows == told, f"{self.rows} rows came in, {told} are accounted for"
        left_out = self.queries_without_positive + self.queries_with_too_few_negatives
        assert self.queries == self.queries_used + left_out, "a query was lost or counted twice"


def add(counts: Iterable[Counts]) -> Counts:
    """The sum of several shards' counts."""
    totals: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for one in counts:
        values = asdict(one)
        reasons.update(values.pop("dropped"))
        totals.update(values)
    return Counts(**totals, dropped=dict(sorted(reasons.items())))
