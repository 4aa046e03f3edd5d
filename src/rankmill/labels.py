"""Label selectors of Ray: which nodes they take.

Ray decides where an actor runs; the same rules are needed here to count the nodes that can hold
one. By ray.io/docs (label selectors): `value`, `!value`, `in(a, b)` and `!in(a, b)`; a node without
the label fits the negated forms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_SELECTOR = re.compile(rf"(?P<no>!?)(?:in\((?P<several>{_NAME}(?:, ?{_NAME})*)\)|(?P<one>{_NAME}))")


def is_selector(text: str) -> bool:
    """Whether Ray would take a text for a label's selector."""
    return _SELECTOR.fullmatch(text) is not None


def takes(selectors: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels fits all selectors (label: what `is_selector` allows)."""
    return all(_fits(selector, labels.get(label)) for label, selector in selectors.items())


def _fits(selector: str, value: str | None) -> bool:
    found = _SELECTOR.fullmatch(selector)
    assert found is not None, "settings hold selectors only"
    wanted = re.split(", ?", found["several"] or found["one"])
    return (value in wanted) != bool(found["no"])
