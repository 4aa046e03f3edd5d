"""rankmill: batch reranking on Ray Data. Candidate tables in, ranked tables out.

config = rankmill.load_config("configs/nightly.yaml", overrides={"output.top_k": 20})
result = rankmill.rerank(config)

scorer = rankmill.Scorer("demo")            # no Ray needed
scores = scorer.score([("query", "document"), ...])
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

# Compare, evaluate and export at once, because function and package have one name.
from rankmill.compare import Comparison, compare
from rankmill.config import RunConfig, load_config
from rankmill.errors import RankmillError
from rankmill.evaluate import Evaluation, evaluate
from rankmill.export import ExportResult, export
from rankmill.masking import mask_record

if TYPE_CHECKING:
    from rankmill.completion import RunResult
    from rankmill.dataset import rerank_dataset
    from rankmill.job import rerank
    from rankmill.models import ScorerModel
    from rankmill.profile import Profile
    from rankmill.scorer import Scorer
    from rankmill.tokens import TokenBatch

# On the driver and on every node, whoever listens.
logging.getLogger("rankmill").addFilter(mask_record)

__all__ = [
    "Comparison",
    "Evaluation",
    "ExportResult",
    "Profile",
    "RankmillError",
    "RunConfig",
    "RunResult",
    "Scorer",
    "ScorerModel",
    "TokenBatch",
    "compare",
    "evaluate",
    "export",
    "load_config",
    "rerank",
    "rerank_dataset",
]

# Ray, torch and transformers take seconds to import: each name brings only what it needs.
_HOMES = {
    "Profile": "rankmill.profile",
    "RunResult": "rankmill.completion",
    "Scorer": "rankmill.scorer",
    "ScorerModel": "rankmill.models",
    "TokenBatch": "rankmill.tokens",
    "rerank": "rankmill.job",
    "rerank_dataset": "rankmill.dataset",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rankmill' has no attribute {name!r}")
