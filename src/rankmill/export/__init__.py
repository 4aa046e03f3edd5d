"""Training data from ranked runs: positives and negatives chosen by judgements and scores.

recipe       the settings
ranked       the run that is read; agreement: other runs beside it
lists        a part's candidate lists; mining: which of their rows are taken, and why not
examples     rows in the columns that trainers take
part         one part file in, one out; run: all of them, on Ray
"""

from rankmill.export.run import ExportResult, export

__all__ = ["ExportResult", "export"]
