"""Which steps of a run learned from a sample: computed, since nothing about the order of samples is drawn twice."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Final

import numpy as np

from imgprep.errors import DamagedError, MissingInputError
from training.metrics import read_metrics
from training.order import num_steps, permutation
from training.runs import Run, RunRecord, read_finished

MAX_SAMPLES: Final = 1 << 31
"""Samples of a split whose order is computed; ImageNet has 1.3 million."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """One step that learned from a sample.

    Attributes:
        epoch: From 1, as in ``metrics.jsonl``.
        step: In the epoch, from 1: after it, the run has done so many.
        global_step: In the run, from 1.
        position: In the step's batch, from 0.
    """

    epoch: int
    step: int
    global_step: int
    position: int


@dataclass(frozen=True, kw_only=True)
class Reached:
    """How far a run is known to be: whole epochs, steps of the one after them, and the file that says so."""

    epochs: int
    steps: int
    source: str


def reached(run: Run, record: RunRecord, num_samples: int) -> Reached:
    """How far a run got: the furthest of what its files say.

    Args:
        run: The run.
        record: Its record.
        num_samples: Samples of its training split.

    Raises:
        DamagedError: A file of the run is damaged.
    """
    epochs = record.config.epochs
    if run.is_finished:
        read_finished(run)
        return Reached(epochs=epochs, steps=0, source=run.finished.name)
    steps = num_steps(num_samples, record.config.data.batch_size)
    found = [(0, 0, "config.json")]
    for line in read_metrics(run.metrics):
        done = line["epoch"] if line["kind"] == "epoch" else line["epoch"] - 1
        found.append((done, 0 if line["kind"] == "epoch" else line["global_step"] - done * steps, run.metrics.name))
    # A run that was stopped is further than its last line of metrics.
    saved = _saved(run)
    if saved is not None:
        found.append((*saved, run.checkpoint("last").name))
    done, step, source = max(found)
    if not (0 <= done <= epochs and 0 <= step <= steps):
        raise DamagedError(
            f"{run.folder / source} speaks of step {step} after epoch {done}, the run has {epochs} epochs of {steps}",
            f"train anew with --name {run.name} --overwrite",
        )
    return Reached(epochs=done, steps=step, source=source)


def _saved(run: Run) -> tuple[int, int] | None:
    """Epochs and steps of the last checkpoint; None where there is none, or no torch to read it."""
    try:
        from training import checkpoint as checkpoints
    except ImportError:
        return None
    try:
        state, _ = checkpoints.load(run.checkpoint("last"))
    except MissingInputError:
        return None
    return state.epoch, state.step


def uses(record: RunRecord, sample: int, num_samples: int, until: Reached) -> list[Use]:
    """The steps that learned from a sample, in order: one in each epoch that came to it.

    Args:
        record: The run's record.
        sample: Row of the sample in the table of the training split.
        num_samples: Rows of that table.
        until: How far the run got.

    Raises:
        DamagedError: The split is too large for its order to be computed.
    """
    if not 0 <= sample < num_samples <= MAX_SAMPLES:
        raise DamagedError(f"there is no sample {sample} in a split of {num_samples}")
    config = record.config
    steps = num_steps(num_samples, config.data.batch_size)
    # As in training.order.split_steps.
    starts = [step * num_samples // steps for step in range(steps)]
    found = []
    for epoch in range(until.epochs + (until.steps > 0)):
        order = permutation(config.seed, epoch, num_samples)
        place = int(np.flatnonzero(order == sample)[0])
        step = bisect.bisect_right(starts, place)
        if epoch < until.epochs or step <= until.steps:
            position = place - starts[step - 1]
            found.append(Use(epoch=epoch + 1, step=step, global_step=epoch * steps + step, position=position))
    return found
