"""Prompts: how a causal language model reads an instruction, a query and a document.

A `Prompt` is data: the strings that the model's own code tokenizes, each by itself, and puts one
after another. Ids are made of it in `prompt_tokenizer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

QUERY, DOCUMENT, INSTRUCTION, TEXT = "{query}", "{document}", "{instruction}", "{text}"


class Prompt(BaseModel):
    """The strings that a model's own code tokenizes, each by itself, for one pair.

    pieces: those strings, with the marks {query} and {document}, each once and in this order, and
    at most one {instruction}, before the query in the same piece.
    instructed: what stands for {instruction} where there is one, with the mark {text}; None when
    the model takes none, and pieces have no such mark. plain: what stands there otherwise.
    instruction: the one that is used when none is given.
    strips: texts lose the white space around them.
    true_token, false_token: tokens, or their ids. The score is the logit of the first after the
    prompt, less that of the second if there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pieces: tuple[str, ...] = Field(min_length=1)
    instructed: str | None = None
    plain: str = ""
    instruction: str | None = None
    strips: bool = False
    true_token: str | int
    false_token: str | int | None = None

    @model_validator(mode="after")
    def _marks_stand_where_they_must(self) -> Self:
        whole = "\0".join(self.pieces)
        at, end = whole.find(QUERY), whole.find(DOCUMENT)
        if whole.count(QUERY) != 1 or whole.count(DOCUMENT) != 1 or at > end:
            raise ValueError(f"pieces must hold {QUERY} and {DOCUMENT}, once each and in order")
        if whole.count(INSTRUCTION) != int(self.instructed is not None):
            raise ValueError(f"pieces must hold {INSTRUCTION} once where something stands for it")
        if INSTRUCTION in whole and INSTRUCTION not in whole[:at].rpartition("\0")[2]:
            raise ValueError(f"{INSTRUCTION} must stand before {QUERY}, in the same piece")
        if self.instructed is not None and self.instructed.count(TEXT) != 1:
            raise ValueError(f"instructed must hold {TEXT} once")
        if self.instruction is not None and self.instructed is None:
            raise ValueError("a prompt with an instruction must say where it stands")
        return self

    def query_text(self, query: str, instruction: str | None = None) -> PromptQuery:
        """A query as the model reads it. instruction: in place of the usual one."""
        given, words = instruction or self.instruction, self.plain
        if given is not None and self.instructed is not None:
            words = self.instructed.replace(TEXT, self._stripped(given))
        parts = self.parts()
        head = parts.head.replace(INSTRUCTION, words)
        return PromptQuery(head, self._stripped(query), parts.tail)

    def document_text(self, document: str) -> str:
        """A document with the white space that the prompt has before it."""
        return self.parts().lead + self._stripped(document)

    def parts(self) -> Parts:
        """The prompt taken apart around its two texts."""
        return _taken_apart(self.pieces)

    def _stripped(self, text: str) -> str:
        return text.strip() if self.strips else text


@dataclass(frozen=True)
class Parts:
    """A prompt around the query's text (head, query, tail) and the document's (lead, document).

    The other strings are tokenized by themselves, but for those that touch the two texts: the
    first of `after`, the last of `between`, and, when `joined`, that last one on both sides.
    """

    before: tuple[str, ...]
    head: str
    tail: str
    between: tuple[str, ...]
    lead: str
    after: tuple[str, ...]
    joined: bool

    def strings(self, query: str, document: str) -> list[str]:
        """What the model's own code tokenizes, string by string, for two wrapped texts."""
        ends = self.between[-1] + document + self.after[0]
        middle = [query + ends] if self.joined else [query, *self.between[:-1], ends]
        return [*self.before, *middle, *self.after[1:]]

    def places(self, query: str, document: str) -> list[tuple[int, int, int]]:
        """Where the wrapped texts lie in those strings: the string, from and to which character."""
        first = len(self.before)
        second = first if self.joined else first + len(self.between)
        start = len(self.between[-1]) + (len(query) if self.joined else 0)
        return [(first, 0, len(query)), (second, start, start + len(document))]


@cache
def _taken_apart(pieces: tuple[str, ...]) -> Parts:
    first = next(i for i, piece in enumerate(pieces) if QUERY in piece)
    second = next(i for i, piece in enumerate(pieces) if DOCUMENT in piece)
    head, _, tail = pieces[first].partition(QUERY)
    opening, _, rest = pieces[second].partition(DOCUMENT)
    if first == second:
        link = tail.partition(DOCUMENT)[0]
        # A line's end may grow together with the query's, a space with the document's start.
        tail = link[: len(link) - len(link.lstrip())]
        opening = link[len(tail) :]
    return Parts(
        before=pieces[:first],
        head=head,
        tail=tail,
        between=(*pieces[first + 1 : second], opening.rstrip()),
        lead=opening[len(opening.rstrip()) :],
        after=(rest, *pieces[second + 1 :]),
        joined=first == second,
    )


class PromptQuery(str):
    """A query as the model reads it: instruction, query and the prompt's own words around it.

    A string, because pairs are told apart by what the model reads. start: how many of its
    characters stand before the query itself, which alone may be cut.
    """

    __slots__ = ("start",)
    start: int

    def __new__(cls, head: str, query: str, tail: str) -> Self:
        """Put the three together."""
        text = super().__new__(cls, head + query + tail)
        text.start = len(head)
        return text
