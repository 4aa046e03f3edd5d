"""Ranking quality against judgements, in the measures of trec_eval.

measures      the measures, over numbered lists
judged        a ranked table beside judgements, streamed
origin        the run whose output a table is
significance  paired tests of a difference
slices        which queries are alike; depth: had fewer candidates been scored
evaluation    all of it together

The rules that all of them keep:

- A query is judged when it has a judgement of any relevance. Means are over judged queries, as
  trec_eval's over its complete set (-c): one that the ranked table lacks counts 0, and so does one
  without a relevant document. Queries without judgements are only counted.
- A document is relevant from relevance 1 on; one without a judgement is not.
- Ids are compared as text, so the integer 1 and the text "1" are one id.
- Of rows with the same query and document the best ranked counts; the others are taken out and
  what is below moves up. A row without a document id is a document without a judgement.
- A row whose order column is null or NaN was not ranked: it is left out.
"""

from rankmill.evaluate.evaluation import Evaluation, evaluate
from rankmill.evaluate.measures import METRICS

__all__ = ["METRICS", "Evaluation", "evaluate"]
