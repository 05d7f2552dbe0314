"""usage: the steps it names are those that trained on the sample."""

from __future__ import annotations

import io
import os
import signal
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import DamagedError
from training import checkpoint as checkpoints
from training.config import TrainConfig
from training.console import Console
from training.loader import Batch
from training.order import batch_samples, num_steps
from training.recipes import tiny
from training.runs import Run, RunRecord, find_run, read_record
from training.train import train
from training.trainer import Trainer
from training.usage import Reached, Use, reached, uses

RECORD = RunRecord(
    config=tiny(), dataset_digest="a" * 64, index_path="index.json", num_classes=6, device="cpu", versions={}
)
NUM_TRAIN = 40

Train = Callable[..., tuple[Run, dict[int, list[Use]]]]


@pytest.fixture
def watched(workspace: Path, index_path: Path, small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train, stop before a step if one is named, and tell which steps saw which sample."""

    def start(*, stop_before: int | None = None) -> tuple[Run, dict[int, list[Use]]]:
        seen: dict[int, list[Use]] = defaultdict(list)
        original = Trainer.train_step

        def step(self: Trainer, batch: Batch) -> None:
            original(self, batch)
            where = self.position
            for place, sample in enumerate(batch.samples.tolist()):
                seen[sample].append(
                    Use(epoch=where.epoch + 1, step=where.step, global_step=where.global_step, position=place)
                )
            if where.global_step == stop_before:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(Trainer, "train_step", step)
        run = find_run(workspace, "one")
        console = Console(io.StringIO(), terminal=False)
        try:
            train(small_config, run, index_path=index_path, console=console, device="cpu", threads=1)
        except KeyboardInterrupt:
            assert stop_before is not None
        return run, seen

    return start


@pytest.mark.parametrize("stop_before", [None, 1, 5, 8])
def test_the_steps_are_those_that_trained_on_the_sample(watched: Train, stop_before: int | None) -> None:
    run, seen = watched(stop_before=stop_before)
    record = read_record(run)
    until = reached(run, record, NUM_TRAIN)

    assert until.source in (("finished.json",) if stop_before is None else ("last.pt", "metrics.jsonl"))
    assert any(seen.values())
    for sample in range(NUM_TRAIN):
        assert uses(record, sample, NUM_TRAIN, until) == seen[sample]


def test_without_a_checkpoint_the_metrics_say_how_far_a_run_is(watched: Train) -> None:
    run, _ = watched(stop_before=9)
    run.checkpoint("last").unlink()
    record = read_record(run)

    # A line every three steps, and one after the epoch of five.
    assert reached(run, record, NUM_TRAIN) == Reached(epochs=1, steps=3, source="metrics.jsonl")
    run.metrics.unlink()
    assert reached(run, record, NUM_TRAIN) == Reached(epochs=0, steps=0, source="config.json")


def test_files_of_a_run_that_contradict_its_config_are_damaged(watched: Train) -> None:
    run, _ = watched(stop_before=9)
    record = read_record(run)
    run.metrics.write_text('{"kind": "epoch", "epoch": 3, "global_step": 15}\n')

    with pytest.raises(DamagedError, match="the run has 2 epochs of 5"):
        reached(run, record, NUM_TRAIN)
    run.metrics.unlink()
    run.checkpoint("last").write_bytes(b"nothing")
    with pytest.raises(DamagedError, match="not a readable checkpoint"):
        reached(run, record, NUM_TRAIN)


def test_a_finished_run_needs_no_checkpoint_to_be_read(watched: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = watched()
    monkeypatch.setattr(checkpoints, "load", None)

    assert reached(run, read_record(run), NUM_TRAIN).epochs == 2


@given(
    num_samples=st.integers(1, 90),
    batch_size=st.integers(1, 40),
    epochs=st.integers(0, 4),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_uses_and_batches_agree(num_samples: int, batch_size: int, epochs: int, share: float, seed: int) -> None:
    config = replace(tiny(), seed=seed, epochs=5, data=replace(tiny().data, batch_size=batch_size))
    record = replace(RECORD, config=config)
    steps = num_steps(num_samples, batch_size)
    until = Reached(epochs=epochs, steps=int(share * steps), source="")
    found = {
        (use.epoch - 1, use.step - 1, use.position): sample
        for sample in range(num_samples)
        for use in uses(record, sample, num_samples, until)
    }
    expected: dict[tuple[int, int, int], int] = {}
    for epoch in range(epochs + 1):
        for step in range(steps if epoch < epochs else until.steps):
            batch = batch_samples(seed, epoch, step, num_samples=num_samples, batch_size=batch_size)
            expected |= {(epoch, step, place): sample for place, sample in enumerate(batch.tolist())}

    assert found == expected


@pytest.mark.parametrize("sample", [-1, 40])
def test_samples_that_do_not_exist_are_refused(sample: int) -> None:
    with pytest.raises(DamagedError, match="no sample"):
        uses(RECORD, sample, 40, Reached(epochs=1, steps=0, source=""))
