from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import SpecError
from training.order import batch_samples, num_steps, permutation, split_steps, splitmix64, step_seed, uniforms

GOLDEN = Path(__file__).parent.parent / "golden" / "training_order.json"


def test_splitmix64_matches_its_reference() -> None:
    # First outputs of the published generator seeded with 0: its state grows by the same constant each time.
    gamma = 0x9E3779B97F4A7C15
    states = np.array([0, gamma, 2 * gamma % 2**64], dtype=np.uint64)
    assert [hex(v) for v in splitmix64(states).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_order_and_draws_are_pinned() -> None:
    golden = json.loads(GOLDEN.read_text())
    order = golden["permutation"]
    assert permutation(order["seed"], order["epoch"], order["num_samples"])[:10].tolist() == order["first_ten"]
    draws = golden["uniforms"]
    samples = np.array(draws["samples"])
    assert uniforms(draws["seed"], draws["epoch"], samples, draws["count"]).tolist() == draws["values"]
    seed = golden["step_seed"]
    assert step_seed(seed["seed"], seed["epoch"], seed["step"]) == seed["value"]


@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 1000),
    num_samples=st.integers(0, 300),
    batch_size=st.integers(1, 70),
)
def test_an_epoch_sees_every_sample_exactly_once(seed: int, epoch: int, num_samples: int, batch_size: int) -> None:
    steps = [
        batch_samples(seed, epoch, step, num_samples=num_samples, batch_size=batch_size)
        for step in range(num_steps(num_samples, batch_size))
    ]
    seen = [int(sample) for samples in steps for sample in samples]
    assert sorted(seen) == list(range(num_samples))
    sizes = [len(samples) for samples in steps]
    assert all(0 < size <= batch_size for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = {permutation(seed, epoch, 50).tobytes() for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_draws_belong_to_the_sample_not_to_its_place() -> None:
    samples = np.array([5, 900_000, 3])
    together = uniforms(1, 2, samples, 4)
    assert np.array_equal(together[::-1], uniforms(1, 2, samples[::-1], 4))
    assert np.array_equal(together[1:2, :3], uniforms(1, 2, samples[1:2], 3))
    assert not np.array_equal(together, uniforms(1, 3, samples, 4))


def test_draws_are_uniform_and_uncorrelated() -> None:
    draws = uniforms(0, 0, np.arange(20_000), 3)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.allclose(draws.mean(axis=0), 0.5, atol=0.01)
    assert np.allclose(draws.var(axis=0), 1 / 12, atol=0.003)
    assert abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03


def test_numbers_outside_their_range_are_refused() -> None:
    with pytest.raises(SpecError, match="got -1"):
        permutation(-1, 0, 5)
    with pytest.raises(SpecError, match="batch size must be 1 or more, got 0"):
        split_steps(np.arange(3), 0)
    with pytest.raises(SpecError, match="no step 3"):
        batch_samples(0, 0, 3, num_samples=6, batch_size=2)
