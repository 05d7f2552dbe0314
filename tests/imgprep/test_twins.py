"""Duplicates: the search finds what comparing all pairs finds, and stays quick where all hashes are alike."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from imgprep import twins
from imgprep.errors import SpecError
from imgprep.twins import MAX_DISTANCE, NONE, find_copies, find_twins

Hashes = NDArray[np.uint64]


def brute_force(hashes: list[int], splits: list[int], distance: int) -> tuple[list[int], list[int]]:
    """All pairs, one after another: the nearest, and of those the first."""
    earlier, leak = [], []
    for place, (value, split) in enumerate(zip(hashes, splits, strict=True)):
        apart = [((value ^ other).bit_count(), at) for at, other in enumerate(hashes)]
        near = [(bits, at) for bits, at in apart if bits <= distance and split == 0]
        earlier.append(min((pair for pair in near if splits[pair[1]] == 0 and pair[1] < place), default=(0, NONE))[1])
        leak.append(min((pair for pair in near if splits[pair[1]] == 1), default=(0, NONE))[1])
    return earlier, leak


@st.composite
def neighbourhoods(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Hashes around a few centres, a few bits away, so that distances near the limit are common; and their splits."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    hashes = []
    for _ in range(draw(st.integers(0, 24))):
        flips = draw(st.lists(st.integers(0, 63), max_size=MAX_DISTANCE))
        value = draw(st.sampled_from(centres))
        for bit in flips:
            value ^= 1 << bit
        hashes.append(value)
    return hashes, draw(st.lists(st.integers(0, 2), min_size=len(hashes), max_size=len(hashes)))


@given(neighbourhoods(), st.integers(0, MAX_DISTANCE))
def test_the_search_finds_what_all_pairs_find(drawn: tuple[list[int], list[int]], distance: int) -> None:
    hashes, splits = drawn
    where = np.array(splits, int)
    found = find_twins(np.array(hashes, np.uint64), where == 0, where == 1, distance=distance)

    assert (found.earlier.tolist(), found.leak.tolist()) == brute_force(hashes, splits, distance)
    assert found.crowded == 0


@pytest.mark.parametrize("distance", range(MAX_DISTANCE + 1))
def test_some_block_choice_sees_every_pattern_of_differing_bits(distance: int) -> None:
    """The guarantee itself: whatever bits differ, one of the masks does not look at them."""
    masks = [int(mask) for mask in twins._masks(distance)]
    rng = np.random.Generator(np.random.PCG64(distance))
    for _ in range(300):
        differing = sum(1 << int(bit) for bit in rng.choice(64, distance, replace=False))
        assert any(mask & differing == 0 for mask in masks)
    assert all(mask.bit_count() >= 3 * (64 // (distance + 3)) for mask in masks)


def test_equal_hashes_cost_no_more_than_one() -> None:
    count = 50_000
    hashes = np.full(count, 0x00FF00FF00FF00FF, np.uint64)
    everyone = np.ones(count, bool)
    found = find_twins(hashes, everyone, ~everyone, distance=4)

    assert (found.earlier[0], set(found.earlier[1:].tolist()), found.crowded) == (NONE, {0}, 0)


def test_a_crowd_is_told_and_takes_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 different hashes that agree in 52 bits: pairs may be missed, a pair that is named is a true one."""
    hashes = np.arange(3000, dtype=np.uint64)
    everyone = np.ones(3000, bool)
    compared = 0
    count_ones = twins._count_ones

    def counted(words: Hashes) -> NDArray[np.uint8]:
        nonlocal compared
        compared += len(words)
        return count_ones(words)

    monkeypatch.setattr(twins, "_count_ones", counted)
    found = find_twins(hashes, everyone, ~everyone, distance=2)
    named = np.flatnonzero(found.earlier != NONE)

    assert found.crowded > 2000
    assert compared <= 10 * 3000 * twins.WINDOW  # ten choices of three blocks out of five
    assert np.all(count_ones(hashes[named] ^ hashes[found.earlier[named]]) <= 2)
    assert len(named) > 2900


def test_ones_are_counted_the_same_with_an_old_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.random.Generator(np.random.PCG64(0)).integers(0, 2**64, 200, dtype=np.uint64)
    words[:2] = 0, 2**64 - 1
    expected = [int(word).bit_count() for word in words]
    assert twins._count_ones(words).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)

    assert twins._count_ones(words).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=30))
def test_copies_are_those_with_the_same_digest(drawn: list[tuple[int, int]]) -> None:
    # Digests that agree in one half only are different ones.
    digests = np.array([(value // 2, value % 2) for value, _ in drawn], np.uint64).reshape(-1, 2)
    splits = [split for _, split in drawn]
    where = np.array(splits, int)
    found = find_copies(digests, where == 0, where == 1)
    first = {key: min(at for at, _ in group) for key, group in _grouped(drawn)}
    earlier = [
        first[value, 0] if split == 0 and first[value, 0] < at else NONE for at, (value, split) in enumerate(drawn)
    ]
    leak = [first.get((value, 1), NONE) if split == 0 else NONE for value, split in drawn]

    assert (found.earlier.tolist(), found.leak.tolist()) == (earlier, leak)


def _grouped(drawn: list[tuple[int, int]]) -> list[tuple[tuple[int, int], list[tuple[int, tuple[int, int]]]]]:
    numbered = sorted(enumerate(drawn), key=lambda pair: pair[1])
    return [(key, list(group)) for key, group in itertools.groupby(numbered, key=lambda pair: pair[1])]


@pytest.mark.parametrize("distance", [-1, MAX_DISTANCE + 1])
def test_a_distance_out_of_range_is_refused(distance: int) -> None:
    nothing = np.zeros(0, bool)
    with pytest.raises(SpecError, match="from 0 to 8 bits"):
        find_twins(np.zeros(0, np.uint64), nothing, nothing, distance=distance)
