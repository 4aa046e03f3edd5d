"""YAML as settings are written in it: plain values, every key once, of bounded size.

A configuration may come from elsewhere. So no tag builds an object, a key that stands twice is
refused (YAML would keep the last in silence), and a few lines cannot unfold into gigabytes.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

# Far above any configuration of ours: the example of every setting has some 60 values.
MAX_BYTES = 1 << 20
_MAX_VALUES = 10_000
_MAX_DEPTH = 32


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, as in version 1.2.

    An alias counts as all the values that it repeats, and merges (`<<`) only repeat what aliases
    name: the bound on values is a bound on memory and time.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._values, self._depth = 0, 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        alias = isinstance(event, yaml.AliasEvent)
        before = self._values
        self._depth += 1
        self._refuse(self._depth > _MAX_DEPTH, f"nested more than {_MAX_DEPTH} deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias:
            self._refuse(id(node) not in self._sizes, "an alias that holds itself", event)
            self._values += self._sizes[id(node)]
        else:
            self._values += 1
        self._refuse(self._values > _MAX_VALUES, f"more than {_MAX_VALUES:,} values", event)
        self._sizes.setdefault(id(node), self._values - before)
        if isinstance(node, yaml.MappingNode) and not alias:
            self._refuse_doubled(node)
        return node

    def _refuse_doubled(self, node: yaml.MappingNode) -> None:
        # Before merges are put in: what they bring may be set anew.
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                self._refuse(key.value in seen, f"the key {key.value} stands twice", key)
                seen.add(key.value)

    def _refuse(self, wrong: bool, why: str, where: yaml.Event | yaml.Node) -> None:
        if wrong:
            mark: Any = where.start_mark  # of libyaml, or of its Python twin
            raise yaml.MarkedYAMLError(problem=why, problem_mark=mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), "-+0123456789"
)


def parse(text: str) -> Any:  # noqa: ANN401 - whatever the text holds
    """The plain values of a YAML document.

    Raises `ValueError` with what is wrong and where, without the line itself: it may hold anything.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"{error.problem}{where}") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        place = getattr(error, "position", None)
        raise ValueError(
            "a character that YAML does not allow" + (f", number {place}" if place else "")
        ) from None
