"""Duplicates: for each picture the others that have the same bytes, and those that look most like it.

Looks are compared by 64-bit hashes that differ in few bits. All pairs of 1.3 million pictures would be 10^12
comparisons: only pairs that agree in three whole blocks of their bits are compared (blocks as in G. S. Manku, A. Jain
and A. Das Sarma, Detecting Near-Duplicates for Web Crawling, WWW 2007, 3.1). The bits are cut into ``distance + 3``
blocks; two hashes that differ in at most ``distance`` bits differ in at most so many blocks, so that three blocks are
left in which they agree: each choice of three is tried, and no pair is missed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from imgprep.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_DISTANCE: Final = 8
"""The largest distance one may ask for: beyond, unrelated photographs are found by the thousand."""

WINDOW: Final = 128
"""Hashes that one hash is compared with for each choice of blocks, at most. See :func:`find_twins`."""

NONE: Final = -1

Numbers: TypeAlias = "NDArray[np.signedinteger[Any]]"
"""Small numbers of pictures, in as few bytes as they need."""

_AGREEING: Final = 3
_BITS: Final = 64
_FAR: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Which pictures have a twin; arrays with an entry a picture, :data:`NONE` where there is none.

    Attributes:
        earlier: Place of the most similar picture before this one in its split.
        leak: Place of the most similar picture of a later split.
        conflict: Place of the most similar picture of another class, in its split or a later one.
        crowded: Number of different hashes of a split that share blocks with more than :data:`WINDOW` others.
    """

    earlier: NDArray[np.int64]
    leak: NDArray[np.int64]
    conflict: NDArray[np.int64]
    crowded: int = 0


def find_copies(digests: NDArray[np.uint64], splits: Numbers, classes: Numbers) -> Twins:
    """Find the pictures that are, byte for byte, others; of several the first.

    Args:
        digests: 128 bits of a cryptographic hash of each picture, uint64 of shape (pictures, 2).
        splits: The number of the split of each: 0 for train, and up in the order in which splits are held out.
        classes: The number of the class of each, :data:`NONE` where it has no label, which contradicts none.
    """
    pairs = np.ascontiguousarray(digests).view([("high", np.uint64), ("low", np.uint64)]).ravel()
    _, group = np.unique(pairs, return_inverse=True)
    nodes = _Nodes.of(group, splits, classes)
    return _find(nodes, nodes.equal_pairs())


def find_twins(hashes: NDArray[np.uint64], splits: Numbers, classes: Numbers, *, distance: int) -> Twins:
    """Find the pictures that look like others.

    Of several candidates the one with the smallest distance is taken, and of those the first. Equal hashes of a split
    are one node in the search, so that a million equal pictures cost no more than one.

    The search is exact while no more than :data:`WINDOW` + 1 nodes agree in the same three blocks. Where more do, as
    made-up hashes may, they are sorted and each is compared with the next :data:`WINDOW`: time stays bounded, pairs may
    be missed, and ``crowded`` says so.

    Args:
        hashes: uint64, one a picture, in the order that decides which is earlier.
        splits: As in :func:`find_copies`.
        classes: As in :func:`find_copies`.
        distance: Bits that may differ, 0 to :data:`MAX_DISTANCE`.

    Raises:
        SpecError: The distance is out of range.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise SpecError(f"the distance must be from 0 to {MAX_DISTANCE} bits, got {distance}")
    unique, group = np.unique(hashes, return_inverse=True)
    nodes = _Nodes.of(group, splits, classes)
    sorted_hashes = unique[nodes.group]
    crowded = np.zeros(len(sorted_hashes), bool)
    del unique, group  # a tenth of the memory
    found = _find(nodes, _near_pairs(sorted_hashes, distance, crowded))
    return replace(found, crowded=int(crowded.sum()))


_Pairs: TypeAlias = "Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint8]]]"
"""Batches of two nodes and the bits in which they differ. No node stands twice on one side of a batch."""


@dataclass(frozen=True, slots=True)
class _Nodes:
    """What is searched: the pictures of one split with one hash are one node; nodes are sorted by hash, then split.

    Two places say all that other classes may ask of a node: the first picture with a label, and the first with another
    one than that. Whatever class is to be contradicted, one of the two does it, and no picture before it does.

    Attributes:
        node: Of each picture.
        classes: Of each picture.
        group: Number of the hash of each node.
        split: Of each node.
        first: Place of the first picture of each node.
        labelled: Place of the first one with a label, or :data:`_FAR`.
        other: Place of the first one with another label than that, or :data:`_FAR`.
    """

    node: NDArray[np.intp]
    classes: Numbers
    group: NDArray[np.int64]
    split: Numbers
    first: NDArray[np.int64]
    labelled: NDArray[np.int64]
    other: NDArray[np.int64]

    @classmethod
    def of(cls, group: NDArray[np.intp], splits: Numbers, classes: Numbers) -> _Nodes:
        """Make nodes of pictures."""
        num_splits = int(splits.max(initial=0)) + 1
        code = group * num_splits + splits
        is_there = np.zeros(num_splits * (group.max(initial=-1) + 1), bool)
        is_there[code] = True
        node = (np.cumsum(is_there) - 1)[code]
        codes = np.flatnonzero(is_there)
        is_counted = np.ones(len(node), bool)
        first = _first_places(node, is_counted, len(codes))
        is_counted = classes != NONE
        labelled = _first_places(node, is_counted, len(codes))
        is_counted[is_counted] = classes[is_counted] != classes[labelled[node[is_counted]]]
        other = _first_places(node, is_counted, len(codes))
        return cls(
            node, classes, codes // num_splits, (codes % num_splits).astype(splits.dtype), first, labelled, other
        )

    def equal_pairs(self) -> _Pairs:
        """The nodes of one hash, which are at most as many as there are splits."""
        for step in range(1, int(self.split.max(initial=0)) + 1):
            start = np.flatnonzero(self.group[step:] == self.group[:-step])
            yield start, start + step, np.zeros(len(start), np.uint8)


def _find(nodes: _Nodes, pairs: _Pairs) -> Twins:
    """The nearest of each kind, over pairs of nodes; a pair may come more than once."""
    # The best so far, as one number that orders by distance, then by place. A node is at distance 0 from itself.
    earlier, leak = (np.full(len(nodes.group), _FAR) for _ in range(2))
    conflict = _Conflicts(nodes.classes, nodes.labelled.copy(), nodes.other.copy())
    for one, other, differing in pairs:
        for here, there in ((one, other), (other, one)):
            ahead = nodes.split[there] - nodes.split[here]
            before = (ahead == 0) & (nodes.first[there] < nodes.first[here])
            _lower(earlier, here[before], _rank(differing[before], nodes.first[there[before]]))
            later = ahead > 0
            _lower(leak, here[later], _rank(differing[later], nodes.first[there[later]]))
            for place in (nodes.labelled, nodes.other):
                known = (ahead >= 0) & (place[there] != _FAR)
                conflict.offer(here[known], _rank(differing[known], place[there[known]]))
    # All but the first picture of a node have that first one as their twin.
    first = nodes.first[nodes.node]
    return Twins(
        earlier=np.where(first < np.arange(len(first)), first, _place(earlier)[nodes.node]),
        leak=_place(leak)[nodes.node],
        conflict=conflict.answer(nodes.node),
    )


@dataclass(frozen=True, slots=True)
class _Conflicts:
    """For each node the nearest picture, and the nearest of another class than that one, as ranks.

    So the nearest of another class is known for every class without a table of nodes by classes.
    """

    classes: Numbers
    nearest: NDArray[np.int64]
    runner_up: NDArray[np.int64]

    def offer(self, node: NDArray[np.intp], rank: NDArray[np.int64]) -> None:
        """Tell of a picture near each of some nodes, none of them twice."""
        useful = rank < self.runner_up[node]
        node, rank = node[useful], rank[useful]
        nearest, runner_up = self.nearest[node], self.runner_up[node]
        # Where there is no nearest yet, there is no runner-up either, and neither answer changes that.
        differs = self.classes[_place(rank)] != self.classes[_place(nearest)]
        self.runner_up[node] = np.where(differs, np.maximum(rank, nearest), runner_up)
        self.nearest[node] = np.minimum(nearest, rank)

    def answer(self, node: NDArray[np.intp]) -> NDArray[np.int64]:
        """For each picture, given its node, the place of the nearest one of another class."""
        nearest = _place(self.nearest)[node]
        found = np.where(self.classes[nearest] != self.classes, nearest, _place(self.runner_up)[node])
        return np.where(self.classes != NONE, found, NONE)


def _first_places(node: NDArray[np.intp], is_counted: NDArray[np.bool_], num_nodes: int) -> NDArray[np.int64]:
    """For each node, the place of its first picture among those that are counted, or :data:`_FAR`."""
    first = np.full(num_nodes, _FAR)
    places = np.flatnonzero(is_counted)
    np.minimum.at(first, node[places], places)
    return first


def _lower(best: NDArray[np.int64], node: NDArray[np.intp], rank: NDArray[np.int64]) -> None:
    """Lower the best of some nodes, none of them twice."""
    best[node] = np.minimum(best[node], rank)


def _rank(differing: NDArray[np.uint8], place: NDArray[np.int64]) -> NDArray[np.int64]:
    return (differing.astype(np.int64) << 48) | place


def _place(rank: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(rank == _FAR, NONE, rank & ((1 << 48) - 1))


def _near_pairs(hashes: NDArray[np.uint64], distance: int, crowded: NDArray[np.bool_]) -> _Pairs:
    """All pairs of sorted hashes at most so many bits apart, in batches; a pair may come more than once."""
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
