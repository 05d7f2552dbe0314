"""Duplicates: for each picture the earlier one that has the same bytes, or the one that looks most like it.

Looks are compared by 64-bit hashes that differ in few bits. All pairs of 1.3 million pictures would be 10^12
comparisons: only pairs that agree in three whole blocks of their bits are compared (blocks as in G. S. Manku, A. Jain
and A. Das Sarma, Detecting Near-Duplicates for Web Crawling, WWW 2007, 3.1). The bits are cut into ``distance + 3``
blocks; two hashes that differ in at most ``distance`` bits differ in at most so many blocks, so that three blocks are
left in which they agree: each choice of three is tried, and no pair is missed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from imgprep.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_DISTANCE: Final = 8
"""The largest distance one may ask for: beyond, unrelated photographs are found by the thousand."""

WINDOW: Final = 128
"""Hashes that one hash is compared with for each choice of blocks, at most. See :func:`find_twins`."""

NONE: Final = -1

_AGREEING: Final = 3
_BITS: Final = 64
_FAR: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Which training pictures have a twin; arrays with an entry a picture, :data:`NONE` where there is none.

    Attributes:
        earlier: Place of the most similar training picture before this one.
        leak: Place of the most similar validation picture.
        crowded: Number of different hashes that share blocks with more than :data:`WINDOW` others.
    """

    earlier: NDArray[np.int64]
    leak: NDArray[np.int64]
    crowded: int = 0


def find_copies(digests: NDArray[np.uint64], in_train: NDArray[np.bool_], in_val: NDArray[np.bool_]) -> Twins:
    """Find the training pictures that are, byte for byte, an earlier training picture or a validation picture.

    Args:
        digests: 128 bits of a cryptographic hash of each picture, uint64 of shape (pictures, 2).
        in_train: Which pictures are for training.
        in_val: Which are for validation.
    """
    pairs = np.ascontiguousarray(digests).view([("high", np.uint64), ("low", np.uint64)]).ravel()
    _, group = np.unique(pairs, return_inverse=True)
    first_train = _first_places(group, in_train)[group]
    first_val = _first_places(group, in_val)[group]
    return Twins(
        earlier=np.where(in_train & (first_train < np.arange(len(group))), first_train, NONE),
        leak=np.where(in_train & (first_val != _FAR), first_val, NONE),
    )


def find_twins(
    hashes: NDArray[np.uint64], in_train: NDArray[np.bool_], in_val: NDArray[np.bool_], *, distance: int
) -> Twins:
    """Find the training pictures that look like an earlier training picture, or like a validation picture.

    Of several candidates the one with the smallest distance is taken, and of those the first. Equal hashes are one hash
    in the search, so that a million equal pictures cost no more than one.

    The search is exact while no more than :data:`WINDOW` + 1 different hashes agree in the same three blocks. Where
    more do, as made-up hashes may, they are sorted and each is compared with the next :data:`WINDOW`: time stays
    bounded, pairs may be missed, and ``crowded`` says so.

    Args:
        hashes: uint64, one a picture, in the order that decides which is earlier.
        in_train: Which pictures are for training.
        in_val: Which are for validation.
        distance: Bits that may differ, 0 to :data:`MAX_DISTANCE`.

    Raises:
        SpecError: The distance is out of range.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise SpecError(f"the distance must be from 0 to {MAX_DISTANCE} bits, got {distance}")
    unique, group = np.unique(hashes, return_inverse=True)
    first_train = _first_places(group, in_train)
    first_val = _first_places(group, in_val)
    # The best so far, as one number that orders by distance, then by place.
    earlier = np.full(len(unique), _FAR)
    leak = np.where(first_val == _FAR, _FAR, first_val)
    crowded = np.zeros(len(unique), bool)
    for one, other, differing in _near_pairs(unique, distance, crowded):
        for here, there in ((one, other), (other, one)):
            before = first_train[there] < first_train[here]
            np.minimum.at(earlier, here[before], _rank(differing[before], first_train[there[before]]))
            seen = first_val[there] != _FAR
            np.minimum.at(leak, here[seen], _rank(differing[seen], first_val[there[seen]]))
    places = np.arange(len(hashes))
    # All but the first picture of a hash have that first one as their twin.
    repeats = first_train[group] < places
    nearest = np.where(repeats, first_train[group], _place(earlier)[group])
    return Twins(
        earlier=np.where(in_train, nearest, NONE),
        leak=np.where(in_train, _place(leak)[group], NONE),
        crowded=int(crowded.sum()),
    )


def _first_places(group: NDArray[np.intp], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each group, the place of its first picture among the chosen, or :data:`_FAR`."""
    first = np.full(group.max(initial=-1) + 1, _FAR)
    places = np.flatnonzero(chosen)
    np.minimum.at(first, group[places], places)
    return first


def _rank(differing: NDArray[np.uint8], place: NDArray[np.int64]) -> NDArray[np.int64]:
    return (differing.astype(np.int64) << 48) | place


def _place(rank: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(rank == _FAR, NONE, rank & ((1 << 48) - 1))


def _near_pairs(
    hashes: NDArray[np.uint64], distance: int, crowded: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint8]]]:
    """All pairs of different, sorted hashes at most so many bits apart, in batches; a pair may come more than once."""
    for mask in _masks(distance):
        keys = hashes & mask
        order = np.argsort(keys, kind="stable")
        keys, by_key = keys[order], hashes[order]
        # With the one that lies so many places further on, until no two of them have the same key.
        start = np.arange(len(keys))
        for step in range(1, WINDOW + 2):
            start = start[: np.searchsorted(start, len(keys) - step)]
            start = start[keys[start] == keys[start + step]]
            if not len(start):
                break
            if step > WINDOW:
                crowded[order[start]] = True
                break
            differing = _count_ones(by_key[start] ^ by_key[start + step])
            near = differing <= distance
            yield order[start[near]], order[start[near] + step], differing[near]


def _masks(distance: int) -> Iterator[np.uint64]:
    """One for each choice of blocks: ones in the bits of the chosen."""
    blocks = distance + _AGREEING
    edges = [_BITS * number // blocks for number in range(blocks + 1)]
    ones = [(1 << stop) - (1 << start) for start, stop in itertools.pairwise(edges)]
    for chosen in itertools.combinations(ones, _AGREEING):
        yield np.uint64(sum(chosen))


def _count_ones(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Ones in each word; by pairs, fours and bytes, as NumPy counts them itself only from version 2 on."""
    if hasattr(np, "bitwise_count"):
        counts: NDArray[np.uint8] = np.bitwise_count(words)
        return counts
    words = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    words = (words & np.uint64(0x3333333333333333)) + ((words >> np.uint64(2)) & np.uint64(0x3333333333333333))
    words = (words + (words >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return ((words * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.uint8)
