"""Duplicates: the search finds what comparing all pairs finds, and stays quick where all hashes are alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from imgprep import twins
from imgprep.errors import SpecError
from imgprep.twins import MAX_DISTANCE, NONE, Twins, find_copies, find_twins

Hashes = NDArray[np.uint64]


Pictures = list[tuple[int, int, int]]
"""Hash (or digest), split and class of each."""


def brute_force(pictures: Pictures, distance: int) -> tuple[list[int], ...]:
    """All pairs, one after another: the nearest of each kind, and of those the first."""
    earlier: list[int] = []
    leak: list[int] = []
    conflict: list[int] = []
    for place, (value, split, label) in enumerate(pictures):
        near = [
            ((value ^ other[0]).bit_count(), at, other[1], other[2])
            for at, other in enumerate(pictures)
            if at != place and (value ^ other[0]).bit_count() <= distance
        ]
        before = [(bits, at) for bits, at, there, _ in near if there == split and at < place]
        later = [(bits, at) for bits, at, there, _ in near if there > split]
        against = [
            (bits, at)
            for bits, at, there, other in near
            if there >= split and NONE not in {label, other} and other != label
        ]
        for found, pairs in ((earlier, before), (leak, later), (conflict, against)):
            found.append(min(pairs, default=(0, NONE))[1])
    return earlier, leak, conflict


def listed(found: Twins) -> tuple[list[int], ...]:
    return found.earlier.tolist(), found.leak.tolist(), found.conflict.tolist()


def columns(pictures: Pictures) -> tuple[Hashes, NDArray[np.int64], NDArray[np.int64]]:
    values, splits, classes = ([picture[field] for picture in pictures] for field in range(3))
    return np.array(values, np.uint64), np.array(splits, np.int64), np.array(classes, np.int64)


def of_one_split(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits and classes of pictures that are all of train and of one class."""
    return np.zeros(count, np.int64), np.zeros(count, np.int64)


SPLIT_AND_CLASS = st.tuples(st.integers(0, 2), st.integers(NONE, 3))


@st.composite
def neighbourhoods(draw: st.DrawFn) -> Pictures:
    """Hashes around a few centres, a few bits away, so that distances near the limit are common."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    pictures = []
    for _ in range(draw(st.integers(0, 24))):
        flips = draw(st.lists(st.integers(0, 63), max_size=MAX_DISTANCE))
        value = draw(st.sampled_from(centres))
        for bit in flips:
            value ^= 1 << bit
        pictures.append((value, *draw(SPLIT_AND_CLASS)))
    return pictures


@given(neighbourhoods(), st.integers(0, MAX_DISTANCE))
def test_the_search_finds_what_all_pairs_find(pictures: Pictures, distance: int) -> None:
    hashes, splits, classes = columns(pictures)
    found = find_twins(hashes, splits, classes, distance=distance)

    assert listed(found) == brute_force(pictures, distance)
    assert found.crowded == 0


def test_the_search_finds_what_all_pairs_find_among_many_that_are_alike() -> None:
    """Long chains of merges, which few pictures cannot make: 250 that differ in five bits at most."""
    for seed in range(6):
        rng = np.random.Generator(np.random.PCG64(seed))
        # Five bits: at most 32 hashes in three splits, which is no crowd, and all are near another.
        spread = rng.choice(64, 5, replace=False)
        bits = rng.integers(0, 2, (250, 5), dtype=np.uint64)
        hashes = (bits << spread.astype(np.uint64)).sum(axis=1, dtype=np.uint64)
        splits = rng.integers(0, 3, 250) if seed % 2 else np.zeros(250, np.int64)
        classes = rng.integers(NONE, 2 + seed, 250)
        pictures = list(zip(hashes.tolist(), splits.tolist(), classes.tolist(), strict=True))
        for distance in (0, 1, 4):
            found = find_twins(hashes, splits, classes, distance=distance)
            assert found.crowded == 0
            assert listed(found) == brute_force(pictures, distance)


def test_a_conflict_is_found_behind_a_nearer_twin_of_the_same_class() -> None:
    hashes = np.array([0, 1, 7, 7], np.uint64)
    classes = np.array([0, 0, 1, NONE])
    found = find_twins(hashes, np.zeros(4, np.int64), classes, distance=4)

    assert listed(found) == ([NONE, 0, 1, 2], [NONE] * 4, [2, 2, 1, NONE])


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
    found = find_twins(hashes, *of_one_split(count), distance=4)

    assert (found.earlier[0], set(found.earlier[1:].tolist()), found.crowded) == (NONE, {0}, 0)


def test_a_crowd_is_told_and_takes_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 different hashes that agree in 52 bits: pairs may be missed, a pair that is named is a true one."""
    hashes = np.arange(3000, dtype=np.uint64)
    compared = 0
    count_ones = twins._count_ones

    def counted(words: Hashes) -> NDArray[np.uint8]:
        nonlocal compared
        compared += len(words)
        return count_ones(words)

    monkeypatch.setattr(twins, "_count_ones", counted)
    found = find_twins(hashes, *of_one_split(3000), distance=2)
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


def test_any_number_of_labels_under_one_hash_costs_no_more_than_two() -> None:
    count = 50_000
    hashes = np.full(count, 0x00FF00FF00FF00FF, np.uint64)
    found = find_twins(hashes, np.zeros(count, np.int64), np.arange(count), distance=4)

    assert (found.conflict[0], set(found.conflict[1:].tolist()), found.crowded) == (1, {0}, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(NONE, 3)), max_size=30))
def test_copies_are_those_with_the_same_digest(pictures: Pictures) -> None:
    # Digests that agree in one half only are different ones.
    digests = np.array([(value // 2, value % 2) for value, _, _ in pictures], np.uint64).reshape(-1, 2)
    _, splits, classes = columns(pictures)

    assert listed(find_copies(digests, splits, classes)) == brute_force(pictures, distance=0)


@pytest.mark.parametrize("distance", [-1, MAX_DISTANCE + 1])
def test_a_distance_out_of_range_is_refused(distance: int) -> None:
    with pytest.raises(SpecError, match="from 0 to 8 bits"):
        find_twins(np.zeros(0, np.uint64), *of_one_split(0), distance=distance)
