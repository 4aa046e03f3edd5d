"""What the README shows is what its commands print."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rankmill import Scorer

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_shown_scores_are_those_of_the_shown_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(import pyarrow .*?)```", README, re.DOTALL)
    exec(code, {})
    table = pq.read_table("candidates.parquet").to_pylist()
    texts = {row["doc_id"]: (row["query"], row["document"]) for row in table}
    ((header, lines),) = re.findall(r"\n(query_id doc_id .*?)\n(.*?)```", README, re.DOTALL)
    shown = [dict(zip(header.split(), line.split())) for line in lines.splitlines()]
    assert {row["doc_id"] for row in shown} == texts.keys()

    exact = Scorer("demo", backend="torch", device="cpu", precision="fp32")
    scores = exact.score([texts[row["doc_id"]] for row in shown])
    assert [float(row["rerank_score"]) for row in shown] == pytest.approx(scores, abs=0.02)
    for row in shown:
        sigmoid = 1 / (1 + math.exp(-float(row["rerank_score"])))
        assert float(row["rerank_sigmoid"]) == pytest.approx(sigmoid, abs=1e-4)
    for query in ("q1", "q2"):
        of_query = [row for row in shown if row["query_id"] == query]
        assert [row["rerank_rank"] for row in of_query] == ["1", "2", "3"]
        best_first = [float(row["rerank_score"]) for row in of_query]
        assert best_first == sorted(best_first, reverse=True)
