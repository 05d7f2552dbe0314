from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from imgprep.errors import ContradictionError, MissingInputError
from imgprep.index import ShardIndex
from training.config import ModelConfig, TrainConfig
from training.console import Console
from training.evaluate import count_correct, evaluate, evaluation_file
from training.loader import MemorySource
from training.metrics import read_metrics
from training.models import build_model
from training.reader import ShardReader
from training.runs import Run, find_run
from training.train import train

CPU = torch.device("cpu")


@pytest.fixture
def run(workspace: Path, index_path: Path, small_config: TrainConfig, console: Console) -> Run:
    run = find_run(workspace, "one")
    train(small_config, run, index_path=index_path, console=console, device="cpu", threads=1)
    return run


def counts(model: nn.Module, source: MemorySource, batch_size: int) -> Any:
    return count_correct(model, source, num_samples=40, num_classes=6, eval_size=16, batch_size=batch_size)


def test_counts_do_not_depend_on_the_batch_size(index_path: Path, index: ShardIndex) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(width=0.125), 6)
    with ShardReader(index_path, index, "train") as reader:
        source = MemorySource(reader, 16, device=CPU, threads=1)
    reference = counts(model, source, 40)
    assert 0 < reference.top1 < reference.top5 <= 40
    for batch_size in (1, 7, 39):
        found = counts(model, source, batch_size)
        assert (found.total, found.top1, found.top5) == (40, reference.top1, reference.top5)
        assert np.array_equal(found.confusion, reference.confusion)
        assert np.array_equal(found.predictions, reference.predictions)
        assert found.loss == pytest.approx(reference.loss, rel=1e-5)


def test_counting_is_in_evaluation_mode_and_changes_nothing(index_path: Path, index: ShardIndex) -> None:
    modes: list[bool] = []
    model = build_model(ModelConfig(width=0.125, dropout=0.9), 6).train()
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with ShardReader(index_path, index, "train") as reader:
        source = MemorySource(reader, 16, device=CPU, threads=1)
    first, second = counts(model, source, 16), counts(model, source, 16)
    assert modes == [False] * 6
    assert model.training
    assert first.loss == second.loss
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_confusion_adds_up(index_path: Path, index: ShardIndex) -> None:
    class Guess(nn.Module):
        """Says class 2 for everything, then class 0, 1, 3, 4, 5."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([5.0, 4.0, 9.0, 3.0, 2.0, 1.0]).expand(len(images), -1)

    with ShardReader(index_path, index, "train") as reader:
        source = MemorySource(reader, 16, device=CPU, threads=1)
        labels = reader.labels
    found = counts(Guess(), source, 9)
    assert found.top1 == (labels == 2).sum()
    assert found.top5 == (labels != 5).sum()
    assert found.confusion[:, 2].tolist() == np.bincount(labels, minlength=6).tolist()
    assert found.confusion.sum() == 40


def test_evaluation_agrees_with_training_and_is_done_once(run: Run, console: Console) -> None:
    document, measured_now = evaluate(run, console=console, device="cpu", threads=1)
    assert measured_now
    last = [line for line in read_metrics(run.metrics) if line["kind"] == "epoch"][-1]
    assert document["top1"]["correct"] == last["val_correct"]
    assert document["top1"]["total"] == last["val_samples"] == 17
    assert document["loss"] == pytest.approx(last["val_loss"])
    assert sum(info["correct"] for info in document["classes"]) == document["top1"]["correct"]
    assert document["weights"] == "average"
    assert document["views"] == "centre square, one view, no test-time augmentation"
    assert json.loads((run.folder / "eval.json").read_text()) == document
    for picture in ("eval.confusion.png", "eval.predictions.png"):
        assert (run.folder / picture).read_bytes().startswith(b"\x89PNG")

    before = (run.folder / "eval.json").stat().st_mtime_ns
    again, measured_now = evaluate(run, console=console, device="cpu", threads=1)
    assert not measured_now
    assert again == document
    assert (run.folder / "eval.json").stat().st_mtime_ns == before


def test_another_checkpoint_is_measured_anew(run: Run, console: Console) -> None:
    evaluate(run, console=console, device="cpu", threads=1)
    run.checkpoint("last").write_bytes(run.checkpoint("best").read_bytes())
    state = torch.load(run.checkpoint("last"), weights_only=True)
    state["average"]["head.bias"][3] += 1000
    torch.save(state, run.checkpoint("last"))
    document, measured_now = evaluate(run, console=console, device="cpu", threads=1)
    assert measured_now
    assert document["top1"]["correct"] == document["classes"][3]["num_samples"]


def test_other_splits_and_checkpoints_have_their_own_files(run: Run, console: Console) -> None:
    document, _ = evaluate(run, console=console, split="train", checkpoint="best", device="cpu", threads=1)
    assert document["top1"]["total"] == 40
    assert evaluation_file(run, "best", "train").exists()
    assert not (run.folder / "eval.json").exists()


def test_other_shards_are_refused(run: Run, console: Console, shard_writer: Any) -> None:
    other = shard_writer(run.folder.parent.parent / "shards" / "other", splits={"train": 40, "val": 17}, seed=1)
    with pytest.raises(ContradictionError, match="are not those of run one"):
        evaluate(run, console=console, index_path=other)


def test_a_run_without_a_checkpoint_is_a_missing_input(run: Run, console: Console) -> None:
    run.checkpoint("last").unlink()
    with pytest.raises(MissingInputError, match=r"last\.pt does not exist"):
        evaluate(run, console=console)


def test_few_classes_have_a_smaller_top(
    tmp_path: Path, small_config: TrainConfig, console: Console, shard_writer: Any
) -> None:
    index_path = shard_writer(tmp_path / "shards" / "main", splits={"train": 9, "val": 7}, num_classes=3)
    run = find_run(tmp_path, "one")
    config = replace(small_config, epochs=1, augment=replace(small_config.augment, clean_epochs=0))
    result = train(config, run, index_path=index_path, console=console, device="cpu", threads=1)
    assert result["top5"] == {
        "k": 3,
        "correct": 7,
        "total": 7,
        "share": 1.0,
        "low": pytest.approx(0.6457, abs=1e-4),
        "high": 1.0,
    }
