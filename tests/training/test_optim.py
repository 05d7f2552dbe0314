from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from imgprep.errors import SpecError
from training.config import OptimConfig
from training.optim import WeightAverage, build_optimizer, learning_rate, set_learning_rate


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "linear"])
def test_the_learning_rate_rises_to_its_peak_and_falls(schedule: str) -> None:
    config = OptimConfig(lr=0.4, schedule=schedule, warmup=0.25)  # type: ignore[arg-type]
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(0.4)
    assert rates.index(max(rates)) == 24
    assert all(a < b for a, b in itertools.pairwise(rates[:25]))
    assert all(a > b for a, b in itertools.pairwise(rates[24:]))
    assert rates[-1] <= 0.4 * 1e-3


def test_linear_is_linear_and_one_cycle_starts_at_a_twenty_fifth() -> None:
    linear = OptimConfig(lr=1.0, schedule="linear", warmup=0.0)
    assert [learning_rate(linear, step, 4) for step in range(4)] == pytest.approx([0.75, 0.5, 0.25, 0.0])
    cycle = OptimConfig(lr=1.0, schedule="one-cycle", warmup=0.5)
    assert learning_rate(cycle, 0, 1000) == pytest.approx(1 / 25, abs=0.003)


def test_steps_outside_the_run_are_refused() -> None:
    with pytest.raises(SpecError, match="step must be 0 to 9, got 10"):
        learning_rate(OptimConfig(), 10, 10)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_normalisation_and_biases_do_not_decay(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    config = OptimConfig(optimizer=name, lr=0.1, momentum=0.0, weight_decay=0.5)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            assert torch.allclose(parameter, before[key] * (1 - 0.1 * 0.5))
        else:
            assert torch.equal(parameter, before[key])


def test_every_group_gets_the_learning_rate() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig())
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_the_average_is_a_copy_that_follows() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.weight.add_(8)
        model.num_batches_tracked.add_(3)
    assert average.values["weight"].tolist() == [1, 1]
    average.update(model, 1000)
    assert average.values["weight"].tolist() == [5, 5]
    assert average.values["num_batches_tracked"].item() == 3
    # Early on little of the start is kept, whatever the decay.
    early = WeightAverage(nn.BatchNorm1d(2), 0.999)
    early.update(model, 1)
    assert early.values["weight"].tolist() == pytest.approx([1 + 8 * (1 - 2 / 11)] * 2)
