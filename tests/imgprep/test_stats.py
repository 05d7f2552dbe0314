"""Counters add."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imgprep.stats import Stats

COUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 100))


@given(COUNTS, COUNTS, COUNTS)
def test_adding_is_associative_and_commutative(a: dict[str, int], b: dict[str, int], c: dict[str, int]) -> None:
    assert (Stats(a) + Stats(b)) + Stats(c) == Stats(c) + (Stats(b) + Stats(a))


def test_adding_leaves_both_parts_alone() -> None:
    first, second = Stats({"a": 1}), Stats({"a": 2, "b": 0})
    total = first + second

    assert (total.to_dict(), first.to_dict(), second["a"]) == ({"a": 3}, {"a": 1}, 2)
