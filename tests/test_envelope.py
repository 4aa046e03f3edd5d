"""What travels between the stages: nothing lost, and texts never written twice."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from rankmill.envelope import Envelope

ROWS = pa.table({"document": ["bees", None], "n": pa.array([1, 2], pa.int8())})
SCORES = pa.table({"score": pa.array([0.5], pa.float32())}).replace_schema_metadata({"cost": "{}"})


def blocks(*envelopes: Envelope) -> pa.Table:
    return pa.concat_tables([one.to_block() for one in envelopes])


def addresses(block: pa.Table, name: str) -> list[int]:
    return [chunk.buffers()[2].address for chunk in block.column(name).chunks]


def test_a_block_gives_back_its_envelopes() -> None:
    sent = [Envelope(3, rows=ROWS, scores=SCORES), Envelope(4).failed("why"), Envelope(5)]
    assert Envelope.from_block(blocks(*sent)) == sent
    assert Envelope.from_block(blocks(*sent).combine_chunks()) == sent
    (first, *_) = Envelope.from_block(blocks(*sent))
    assert first.scores is not None
    assert first.scores.schema.metadata == {b"cost": b"{}"}


def test_tables_that_a_stage_leaves_alone_are_passed_on_without_a_copy() -> None:
    came = blocks(Envelope(3, rows=ROWS))
    (read,) = Envelope.from_block(came)
    gone = replace(read, scores=SCORES).to_block()
    assert addresses(gone, "rows") == addresses(came, "rows")
    assert Envelope.from_block(gone) == [Envelope(3, rows=ROWS, scores=SCORES)]


@pytest.mark.parametrize("rows", [ROWS.slice(1), None])
def test_tables_that_a_stage_changes_are_the_new_ones(rows: pa.Table | None) -> None:
    (read,) = Envelope.from_block(blocks(Envelope(3, rows=ROWS)))
    assert Envelope.from_block(replace(read, rows=rows).to_block()) == [Envelope(3, rows=rows)]


def test_a_failed_shard_carries_nothing() -> None:
    (read,) = Envelope.from_block(blocks(Envelope(3, rows=ROWS)))
    assert Envelope.from_block(read.failed("why").to_block()) == [Envelope(3, "why")]
