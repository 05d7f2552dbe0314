"""Which samples a step sees, and every random draw made for a sample: pure functions of counters.

Nothing here keeps state or asks a clock, a thread or a library's random stream: the numbers come from the splitmix64
hash alone, so that a resumed run, another thread count or another NumPy meets the same samples in the same order.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import numpy as np

from imgprep.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ORDER_STREAM: Final = 1
_DRAW_STREAM: Final = 2
_STEP_STREAM: Final = 3


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash each number with the finaliser of splitmix64: a bijection of 64-bit integers.

    Args:
        values: Unsigned 64-bit integers of any shape.

    Returns:
        Hashes of the same shape.
    """
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _key(*counters: int) -> NDArray[np.uint64]:
    """Chain counters into one key of shape ``(1,)``; an array because array arithmetic wraps without a warning."""
    key = np.zeros(1, dtype=np.uint64)
    for counter in counters:
        if counter < 0:
            raise SpecError(f"seed, epoch and step must be 0 or more, got {counter}")
        key = splitmix64(key ^ np.array([counter], dtype=np.uint64))
    return key


def permutation(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """The order in which an epoch visits the samples.

    Args:
        seed: Seed of the run, 0 or more.
        epoch: Number of the epoch, from 0.
        num_samples: How many samples the split has.

    Returns:
        Shape ``(num_samples,)``: each of ``0 .. num_samples - 1`` exactly once.

    Raises:
        SpecError: A number is negative.
    """
    if num_samples < 0:
        raise SpecError(f"the number of samples must be 0 or more, got {num_samples}")
    ranks = splitmix64(_key(_ORDER_STREAM, seed, epoch) ^ np.arange(num_samples, dtype=np.uint64))
    return np.argsort(ranks, kind="stable").astype(np.int64, copy=False)


def num_steps(num_samples: int, batch_size: int) -> int:
    """Steps in an epoch: the fewest whose batches hold at most ``batch_size`` samples each.

    Raises:
        SpecError: ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise SpecError(f"the batch size must be 1 or more, got {batch_size}")
    return -(-num_samples // batch_size)


def split_steps(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Cut an epoch into batches whose sizes differ by one at most, so that no step is left with a remnant.

    A remnant of one or two samples would give that step's gradient and batch statistics an arbitrary weight.

    Args:
        order: Sample numbers of an epoch, shape ``(n,)``.
        batch_size: Largest batch.

    Returns:
        One view per step; together they are ``order``.
    """
    steps = num_steps(len(order), batch_size)
    bounds = [step * len(order) // steps for step in range(steps + 1)] if steps else [0]
    return [order[start:stop] for start, stop in itertools.pairwise(bounds)]


def batch_samples(seed: int, epoch: int, step: int, *, num_samples: int, batch_size: int) -> NDArray[np.int64]:
    """Sample numbers of one step.

    Raises:
        SpecError: The epoch has no such step.
    """
    batches = split_steps(permutation(seed, epoch, num_samples), batch_size)
    if not 0 <= step < len(batches):
        raise SpecError(f"an epoch of {num_samples} samples has {len(batches)} steps, there is no step {step}")
    return batches[step]


def uniforms(seed: int, epoch: int, samples: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Random numbers that belong to samples: the same wherever and whenever a sample is met in an epoch.

    Args:
        seed: Seed of the run, 0 or more.
        epoch: Number of the epoch, from 0.
        samples: Sample numbers, shape ``(n,)``.
        count: Draws per sample.

    Returns:
        Shape ``(n, count)``, uniform in [0, 1), with 53 random bits each.
    """
    rows = splitmix64(_key(_DRAW_STREAM, seed, epoch) ^ samples.astype(np.uint64))
    draws = splitmix64(splitmix64(rows[:, None]) ^ np.arange(count, dtype=np.uint64)[None, :])
    return (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53


def step_seed(seed: int, epoch: int, step: int) -> int:
    """Seed for whatever draws inside the model (dropout) during one step; below 2**63."""
    return int(_key(_STEP_STREAM, seed, epoch, step)[0] >> np.uint64(1))
