"""What changed between two runs, by query and document.

lists        the lists of two runs, side by side as numbers
spread       how numbers are distributed, as sums and counts that can be added
examples     the most telling documents and queries, with their texts where they are asked for
changes      what changed in some of the queries; adds up
comparison   all of two runs, here or on Ray
page         all of it for a browser

The rules: ids are compared as text. Of rows of a run with the same query and document the best
ranked counts; the others are taken out and what is below moves up. A row without a document id
keeps its place and is in neither run's documents. Ranks have no ties: the run has broken them.
"""

from rankmill.compare.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
