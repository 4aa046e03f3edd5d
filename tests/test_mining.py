"""Which rows become positives and negatives: each rule alone, and what holds for any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmill.export import mining
from rankmill.export.mining import RankedRows, mine
from rankmill.export.recipe import ExportConfig

NAN = float("nan")


def ranked(
    scores: Sequence[Sequence[float]],
    *others: Sequence[Sequence[float]],
    grade: Sequence[Sequence[int]] | None = None,
    text: Sequence[Sequence[int]] | None = None,
    document: Sequence[Sequence[int]] | None = None,
    query_text: Sequence[Sequence[int]] | None = None,
) -> RankedRows:
    """Lists of falling scores (NaN last), and what is said of their rows, in the same shape."""
    sizes = [len(of_list) for of_list in scores]
    distinct = [range(size) for size in sizes]

    def flat(values: Sequence[Sequence[Any]], kind: type = np.int64) -> Any:
        return np.array([value for of_list in values for value in of_list], kind)

    return RankedRows(
        lists=np.repeat(np.arange(len(sizes)), sizes),
        keys=[f"q{number}" for number in range(len(sizes))],
        rank=flat([range(1, size + 1) for size in sizes]),
        scores=tuple(flat(each, np.float64) for each in (scores, *others)),
        query_text=flat(query_text or [[0] * size for size in sizes]),
        text=flat(text or distinct),
        document=flat(document or distinct),
        grade=None if grade is None else flat(grade),
    )


def found(rows: RankedRows, needed: int = 0, **rules: Any) -> tuple[list[int], list[int], dict]:
    """The rows that are positive, those that are negative, and why the others are neither."""
    mined = mine(rows, ExportConfig(format="labeled-pair", **rules), needed)
    positive, negative = np.flatnonzero(mined.positive), np.flatnonzero(mined.negative)
    return positive.tolist(), negative.tolist(), mined.counts.dropped


# Positives


def test_judged_relevant_documents_are_the_positives() -> None:
    rows = ranked([[3, 2, 1]], grade=[[0, 2, 0]])
    assert found(rows) == ([1], [0, 2], {})


def test_the_first_ranks_are_positive() -> None:
    assert found(ranked([[3, 2, 1], [5, 4]]), positive_max_rank=1) == ([0, 3], [1, 2, 4], {})


def test_a_score_of_at_least_the_bound_is_positive() -> None:
    assert found(ranked([[3, 2, 1]]), positive_min_score=2) == ([0, 1], [2], {})


def test_a_relevant_document_outside_the_bounds_is_neither_positive_nor_negative() -> None:
    rows = ranked([[3, 2, 1]], grade=[[1, 0, 1]])
    assert found(rows, positive_min_score=2) == ([0], [1], {mining.WEAK_POSITIVE: 1})


def test_a_query_without_a_positive_is_left_out_whole() -> None:
    rows = ranked([[3, 2], [3, 2]], grade=[[0, 0], [0, 1]])
    assert found(rows) == ([3], [2], {mining.NO_POSITIVE: 2})


def test_without_a_rule_for_positives_every_scored_document_counts() -> None:
    assert found(ranked([[3, 2, NAN]])) == ([], [0, 1], {mining.UNSCORED: 1})


# Negatives


@pytest.mark.parametrize(
    ("rule", "negatives", "why"),
    [
        ({"negative_min_rank": 3}, [2, 3, 4], mining.OUTSIDE_RANKS),
        ({"negative_max_rank": 3}, [1, 2], mining.OUTSIDE_RANKS),
        ({"negative_min_score": 2}, [1, 2, 3], mining.TOO_LOW),
        ({"negative_max_score": 2}, [3, 4], mining.TOO_HIGH),
        ({"margin": 2}, [2, 3, 4], mining.TOO_CLOSE),
        ({"relative_margin": 0.6}, [3, 4], mining.TOO_CLOSE),
        ({"negatives": 3}, [1, 2, 3], mining.SURPLUS),
    ],
)
def test_a_rule_for_negatives_keeps_what_fits_and_counts_the_rest(
    rule: dict[str, Any], negatives: list[int], why: str
) -> None:
    rows = ranked([[5, 4, 3, 2, 1]])
    dropped = {why: 4 - len(negatives)}
    assert found(rows, positive_max_rank=1, **rule) == ([0], negatives, dropped)


def test_a_margin_counts_from_the_lowest_positive() -> None:
    rows = ranked([[5, 4, 3, 2, 1]], grade=[[1, 0, 1, 0, 0]])
    assert found(rows, margin=0) == ([0, 2], [3, 4], {mining.TOO_CLOSE: 1})


def test_a_relative_margin_below_zero_still_counts_downwards() -> None:
    rows = ranked([[-4, -4.1, -4.5]])
    # 5 % of 4 is 0.2: what scores above -4.2 is too close.
    assert found(rows, positive_max_rank=1, relative_margin=0.05)[1] == [2]


@pytest.mark.parametrize(
    ("other", "rules", "negatives", "dropped"),
    [
        ([9, 8, 1, 2], {"margin": 5}, [2, 3], {mining.NOT_AGREED: 1}),
        ([9, 8, 1, 2], {"margin": 0}, [1, 2, 3], {}),
        ([9, 8, 1, 2], {"negative_max_score": 6}, [2, 3], {mining.NOT_AGREED: 1}),
        ([9, NAN, 1, 2], {"margin": 5}, [2, 3], {mining.NOT_SCORED_BY_ALL: 1}),
        ([NAN, 8, 1, 2], {"margin": 5}, [], {mining.NOT_SCORED_BY_ALL: 3}),
        ([NAN, 8, 1, 2], {"negative_max_score": 6}, [2, 3], {mining.NOT_AGREED: 1}),
    ],
)
def test_another_model_must_keep_the_bounds_by_its_own_scores(
    other: list[float], rules: dict[str, Any], negatives: list[int], dropped: dict[str, int]
) -> None:
    rows = ranked([[10, 3, 2, 1]], [other])
    assert found(rows, positive_max_rank=1, **rules) == ([0], negatives, dropped)


def test_all_models_must_agree() -> None:
    rows = ranked([[9, 3, 2, 1]], [[9, 9, 1, 1]], [[9, 1, 9, 1]])
    assert found(rows, positive_max_rank=1, margin=1)[1] == [3]


def test_the_hardest_are_those_with_the_highest_scores_of_the_chosen_model() -> None:
    rows = ranked([[1, 9, 2, 8]])  # ranked by another model than the one whose scores count
    assert found(rows, negatives=2)[1] == [1, 3]


def test_a_list_with_too_few_negatives_is_left_out_with_its_positives() -> None:
    rows = ranked([[3, 2], [3, 2, 1]])
    assert found(rows, needed=2, positive_max_rank=1) == ([2], [3, 4], {mining.TOO_FEW: 2})


# Random draws


def test_a_draw_depends_on_the_seed() -> None:
    rows = ranked([list(range(50, 0, -1))])
    drawn = [found(rows, negatives=5, sampling="random", seed=seed)[1] for seed in range(4)]
    assert all(len(each) == 5 for each in drawn)
    assert len({tuple(each) for each in drawn}) == 4


def test_a_draw_does_not_depend_on_the_lists_before() -> None:
    falling = list(range(50, 0, -1))
    alone = ranked([falling])
    behind = ranked([[2, 1], falling])
    behind.keys[1] = alone.keys[0]
    rules = {"negatives": 5, "sampling": "random"}
    assert [row - 2 for row in found(behind, **rules)[1][2:]] == found(alone, **rules)[1]


def test_every_row_is_drawn_about_as_often_as_any_other() -> None:
    rows = ranked([list(range(10, 0, -1))])
    drawn = [found(rows, negatives=3, sampling="random", seed=seed)[1] for seed in range(400)]
    times = np.bincount(np.concatenate(drawn), minlength=10)
    # 120 expected, with a standard deviation of 9.
    assert (abs(times - 120) < 45).all()


# Doubles


def test_the_double_of_a_positive_is_no_negative() -> None:
    rows = ranked([[3, 2, 1]], text=[[7, 7, 8]])
    assert found(rows, positive_max_rank=1) == ([0], [2], {mining.DUPLICATE: 1})


def test_one_document_id_twice_counts_once_whatever_its_text() -> None:
    rows = ranked([[3, 2, 1]], document=[[7, 7, 8]])
    assert found(rows, positive_max_rank=1) == ([0], [2], {mining.DUPLICATE: 1})


def test_the_same_document_in_two_lists_is_no_double() -> None:
    assert found(ranked([[3, 2], [3, 2]]), positive_max_rank=1)[2] == {}


def test_a_text_is_relevant_when_one_of_its_doubles_is_judged_so() -> None:
    rows = ranked([[3, 2, 1]], text=[[7, 8, 7]], grade=[[0, 0, 2]])
    assert found(rows) == ([0], [1], {mining.DUPLICATE: 1})
    assert mine(rows, ExportConfig(format="labeled-pair"), 0).grade.tolist() == [2, 0, 2]


def test_the_double_of_a_relevant_text_without_a_score_is_no_negative() -> None:
    rows = ranked([[3, 2, NAN]], text=[[7, 8, 8]], grade=[[0, 0, 1]])
    assert found(rows) == ([1], [0], {mining.UNSCORED: 1})


def test_rows_with_another_query_text_than_the_best_are_left_out() -> None:
    rows = ranked([[3, 2, 1]], query_text=[[0, 1, 0]])
    assert found(rows) == ([], [0, 2], {mining.OTHER_QUERY: 1})


def test_no_rows_give_nothing() -> None:
    assert found(ranked([]), positive_max_rank=1, negatives=2, margin=1) == ([], [], {})


# What holds for all of them

floats = st.floats(-5, 5, width=32)
rules = st.fixed_dictionaries(
    {},
    optional={
        "positive_max_rank": st.integers(1, 4),
        "positive_min_score": floats,
        "negatives": st.integers(1, 4),
        "sampling": st.sampled_from(["hardest", "random"]),
        "negative_min_rank": st.integers(1, 4),
        "negative_max_rank": st.integers(1, 8),
        "negative_min_score": floats,
        "negative_max_score": floats,
        "margin": st.floats(0, 3),
        "relative_margin": st.floats(0, 1),
    },
)


@st.composite
def some_rows(draw: st.DrawFn) -> RankedRows:
    sizes = draw(st.lists(st.integers(1, 7), max_size=5))
    value = st.one_of(st.just(NAN), floats)

    def each(values: st.SearchStrategy[Any]) -> list[list[Any]]:
        return [draw(st.lists(values, min_size=size, max_size=size)) for size in sizes]

    scores = [sorted(of_list, key=lambda s: (np.isnan(s), -s)) for of_list in each(value)]
    codes = st.integers(0, 4)
    return ranked(
        scores,
        *([each(value)] * draw(st.integers(0, 2))),
        grade=draw(st.one_of(st.none(), st.just(each(st.integers(0, 2))))),
        text=each(codes),
        document=each(codes),
        query_text=each(st.integers(0, 1)),
    )


@given(rows=some_rows(), rules=rules, needed=st.integers(0, 3))
def test_counts_add_up_and_no_document_is_both_positive_and_negative(
    rows: RankedRows, rules: dict[str, Any], needed: int
) -> None:
    mined = mine(rows, ExportConfig(format="labeled-pair", **rules), needed)
    counts = mined.counts
    used = mined.positive | mined.negative
    assert not (mined.positive & mined.negative).any()
    assert counts.rows == len(rows.lists) == used.sum() + sum(counts.dropped.values())
    assert counts.positives == mined.positive.sum()
    assert not np.isnan(rows.scores[0][used]).any()
    for code in (rows.text, rows.document):
        pairs = list(zip(rows.lists[used], code[used]))
        assert len(pairs) == len(set(pairs)), "a list holds a document twice"
    for number in range(len(rows.keys)):
        here = rows.lists == number
        negatives = int((mined.negative & here).sum())
        assert negatives <= rules.get("negatives", 7)
        assert not (used & here).any() or negatives >= needed
    assert len(np.unique(rows.lists[used])) <= counts.queries_used


@given(rows=some_rows(), rules=rules, needed=st.integers(0, 3))
def test_what_becomes_of_a_list_does_not_depend_on_its_neighbours(
    rows: RankedRows, rules: dict[str, Any], needed: int
) -> None:
    config = ExportConfig(format="labeled-pair", **rules)
    together = mine(rows, config, needed)
    for number, key in enumerate(rows.keys):
        here = rows.lists == number
        alone = RankedRows(
            lists=np.zeros(here.sum(), np.int64),
            keys=[key],
            rank=rows.rank[here],
            scores=tuple(score[here] for score in rows.scores),
            query_text=rows.query_text[here],
            text=rows.text[here],
            document=rows.document[here],
            grade=None if rows.grade is None else rows.grade[here],
        )
        mined = mine(alone, config, needed)
        assert (mined.positive == together.positive[here]).all()
        assert (mined.negative == together.negative[here]).all()
