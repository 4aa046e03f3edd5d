"""Recipes for the field's benchmarks: a local copy in its public layout in, candidate tables out.

jqara, jacwir, jsquad, miracl, beir, llamaindex   a benchmark each: what its files hold, who says so
files         JSON lines, JSON and Parquet, read some at a time, faults named
documents     the texts of those documents that are candidates, on disk
first_stage   candidates by BM25 or from a TREC run
table         candidate lists written as candidates and judgements
prepare       the benchmarks by name

A list is in memory at a time, and of a collection what BM25 needs to search it; a run that was
made elsewhere needs some bytes a candidate. Nothing here reaches for a hub.
"""

from rankmill.recipes.prepare import BENCHMARKS, prepare
from rankmill.recipes.table import Prepared

__all__ = ["BENCHMARKS", "Prepared", "prepare"]
