"""Optimisers, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from imgprep.errors import SpecError

if TYPE_CHECKING:
    from torch import nn

    from training.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Learning rate of a step.

    Args:
        config: Peak, shape and warm-up.
        step: From 0, over the whole run.
        total_steps: Steps of the whole run.

    Raises:
        SpecError: The run has no such step.
    """
    if not 0 <= step < total_steps:
        raise SpecError(f"step must be 0 to {total_steps - 1}, got {step}")
    warmup = math.ceil(config.warmup * total_steps)
    if step < warmup:
        start = 1 / 25 if config.schedule == "one-cycle" else 0.0
        return config.lr * (start + (1 - start) * (step + 1) / warmup)
    progress = (step + 1 - warmup) / (total_steps - warmup)
    if config.schedule == "linear":
        return config.lr * (1 - progress)
    floor = 1e-3 if config.schedule == "one-cycle" else 0.0
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Make the optimiser with two groups: matrices and kernels decay, biases and normalisation do not."""
    decaying = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    free = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.99), foreach=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, foreach=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class WeightAverage:
    """Exponential moving average of a model's parameters and buffers, kept as real copies.

    Args:
        model: The model that is trained.
        decay: Share of the average that is kept each step; smaller at first, so that the start is forgotten soon.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's present weights.

        Args:
            model: The model that is trained.
            step: Steps done so far over the whole run, from 1.
        """
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        state = model.state_dict()
        floating = [name for name, value in self.values.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.values[n] for n in floating], [state[n] for n in floating], weight)
        for name in self.values.keys() - set(floating):
            self.values[name].copy_(state[name])
