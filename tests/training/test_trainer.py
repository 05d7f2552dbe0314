from __future__ import annotations

import io
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from imgprep.errors import ImgprepError, MemberError, MissingInputError, OutputExistsError, UsageError
from training import checkpoint as checkpoints
from training import trainer as trainers
from training.config import TrainConfig
from training.console import Console
from training.metrics import read_metrics
from training.order import num_steps
from training.runs import Run, find_run, read_json
from training.train import train
from training.trainer import Trainer

TIMES = {"seconds", "images_per_second", "input_wait_share"}


@pytest.fixture
def start(workspace: Path, index_path: Path, small_config: TrainConfig) -> Callable[..., tuple[Run, Any, str]]:
    def start(name: str, config: TrainConfig = small_config, **options: Any) -> tuple[Run, Any, str]:
        run, stream = find_run(workspace, name), io.StringIO()
        console = Console(stream, terminal=False)
        try:
            result = train(config, run, index_path=index_path, console=console, device="cpu", threads=1, **options)
        except KeyboardInterrupt:
            result = None
        return run, result, stream.getvalue()

    return start


def weights(run: Run, which: str = "last") -> dict[str, torch.Tensor]:
    state, _ = checkpoints.load(run.checkpoint(which))
    return state.model | {f"average.{name}": value for name, value in (state.average or {}).items()}


def assert_same_run(one: Run, other: Run) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert lines(one) == lines(other)


def lines(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run.metrics)]


def stop_at(monkeypatch: pytest.MonkeyPatch, global_step: int, number: signal.Signals = signal.SIGINT) -> None:
    """Send a signal during a step, once."""
    original = Trainer.train_step

    def step(self: Trainer, batch: Any) -> None:
        if self.position.global_step == global_step:
            monkeypatch.setattr(Trainer, "train_step", original)
            os.kill(os.getpid(), number)
        original(self, batch)

    monkeypatch.setattr(Trainer, "train_step", step)


def test_a_run_leaves_what_it_promises(start: Callable[..., Any], small_config: TrainConfig) -> None:
    run, result, spoken = start("one")
    assert result == read_json(run.finished, advice="")
    assert result["epochs"] == 2
    assert result["checkpoint_sha256"] == checkpoints.load(run.checkpoint("last"))[1]
    assert run.curves.read_bytes().startswith(b"\x89PNG")
    recorded = read_metrics(run.metrics)
    assert [line["kind"] for line in recorded] == ["step", "epoch", "step", "epoch"]
    epochs = [line for line in recorded if line["kind"] == "epoch"]
    assert [(line["epoch"], line["global_step"]) for line in epochs] == [(1, 5), (2, 10)]
    for key in ("loss", "top1", "top5", "images_per_second", "input_wait_share", "val_loss", "val_top1", "val_top5"):
        assert all(isinstance(line[key], float) for line in epochs), key
    assert "input memory" in spoken
    assert spoken.count("epoch 1/2") == 1


def test_the_same_run_twice_is_the_same_to_the_bit(start: Callable[..., Any], small_config: TrainConfig) -> None:
    one, other = start("one")[0], start("two")[0]
    assert_same_run(one, other)
    different = start("three", replace(small_config, seed=1))[0]
    assert not torch.equal(weights(one)["head.weight"], weights(different)["head.weight"])


def test_streaming_trains_to_the_same_weights(start: Callable[..., Any], small_config: TrainConfig) -> None:
    streaming = replace(small_config, data=replace(small_config.data, input_mode="stream"))
    assert_same_run(start("one")[0], start("two", streaming)[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("global_step", [0, 3, 4, 7, 9])
def test_a_stopped_run_goes_on_to_the_same_weights(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, global_step: int, number: signal.Signals
) -> None:
    whole, result, _ = start("whole")
    stop_at(monkeypatch, global_step, number)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    run, stopped, spoken = start("one")
    assert stopped is None
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    epoch, step = global_step // 5 + 1, global_step % 5 + 1
    assert f"stopped at epoch {epoch} step {step}; go on with: imgprep train -w " in spoken
    assert "--resume --name one" in spoken
    _, resumed, spoken = start("one", resume=True)
    assert f"going on with run one at epoch {epoch} step {step}" in spoken
    assert_same_run(whole, run)
    assert resumed["top1"] == result["top1"]
    assert resumed["loss"] == result["loss"]


def test_a_checkpoint_is_saved_inside_long_epochs(
    start: Callable[..., Any], small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Trainer, batch: Any) -> None:
        if self.position.global_step == 3:
            raise RuntimeError("power cut")
        original(self, batch)

    original = Trainer.train_step
    config = replace(small_config, checkpoint_seconds=1e-9)
    whole = start("whole", config)[0]
    monkeypatch.setattr(Trainer, "train_step", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        start("one", config)
    monkeypatch.setattr(Trainer, "train_step", original)
    run, _, spoken = start("one", config, resume=True)
    assert "at epoch 1 step 3" in spoken
    assert_same_run(whole, run)


def test_killed_between_an_epoch_s_line_and_its_checkpoint(
    start: Callable[..., Any], small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Trainer, *which: str) -> str:
        if self.position.step == 0:
            raise RuntimeError("power cut")
        return original(self, *which)

    original = Trainer.save
    config = replace(small_config, checkpoint_seconds=1e-9)
    whole = start("whole", config)[0]
    monkeypatch.setattr(Trainer, "save", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        start("one", config)
    monkeypatch.setattr(Trainer, "save", original)
    run, _, spoken = start("one", config, resume=True)
    assert "at epoch 1 step 5" in spoken
    assert_same_run(whole, run)


def test_a_complete_run_is_not_done_again(start: Callable[..., Any], small_config: TrainConfig) -> None:
    run, result, _ = start("one")
    before = run.checkpoint("last").stat().st_mtime_ns
    for resume in (False, True):
        _, again, spoken = start("one", resume=resume)
        assert again == result
        assert spoken == "run one is complete; nothing to do\n"
    assert run.checkpoint("last").stat().st_mtime_ns == before
    with pytest.raises(OutputExistsError, match=r"run one was made otherwise \(seed: 0 is not 9\)"):
        start("one", replace(small_config, seed=9))
    start("one", replace(small_config, seed=9), overwrite=True)
    assert read_json(run.finished, advice="")["seed"] == 9
    assert len(lines(run)) == len({(line["kind"], line["global_step"]) for line in lines(run)})


def test_killed_between_the_last_checkpoint_and_the_end(start: Callable[..., Any]) -> None:
    run, result, _ = start("one")
    run.finished.unlink()
    _, again, _ = start("one", resume=True)
    assert again["top1"] == result["top1"]
    assert again["checkpoint_sha256"] == result["checkpoint_sha256"]


def test_best_is_the_most_correct_epoch_and_no_alias(start: Callable[..., Any], small_config: TrainConfig) -> None:
    config = replace(small_config, epochs=6, optim=replace(small_config.optim, lr=0.01))
    run = start("one", config)[0]
    correct = [line["val_correct"] for line in lines(run) if line["kind"] == "epoch"]
    best, _ = checkpoints.load(run.checkpoint("best"))
    assert best.best_correct == max(correct)
    assert best.epoch == correct.index(max(correct)) + 1
    last, _ = checkpoints.load(run.checkpoint("last"))
    assert last.epoch == 6
    assert not run.checkpoint("best").samefile(run.checkpoint("last"))


def test_averaged_weights_are_what_is_measured(start: Callable[..., Any], small_config: TrainConfig) -> None:
    run = start("one")[0]
    state, _ = checkpoints.load(run.checkpoint("last"))
    assert state.average is not None
    assert state.evaluated_weights is state.average
    assert not torch.equal(state.average["head.weight"], state.model["head.weight"])
    plain = start("two", replace(small_config, optim=replace(small_config.optim, ema=0.0)))[0]
    assert checkpoints.load(plain.checkpoint("last"))[0].average is None
    # Averaging changes what is measured, never what is trained.
    assert torch.equal(weights(plain)["head.weight"], weights(run)["head.weight"])


def test_it_learns(start: Callable[..., Any], small_config: TrainConfig) -> None:
    config = replace(
        small_config,
        epochs=14,
        augment=replace(small_config.augment, mixup=0.0, cutmix=0.0, erase=0.0),
        model=replace(small_config.model, dropout=0.0),
        optim=replace(small_config.optim, lr=0.01),
    )
    run, result, _ = start("one", config)
    assert result["top1"]["share"] > 0.8
    losses = [line["loss"] for line in lines(run) if line["kind"] == "epoch"]
    assert losses[-1] < losses[0] / 1.5


def test_a_diverging_run_stops_with_advice(start: Callable[..., Any], small_config: TrainConfig) -> None:
    config = replace(small_config, optim=replace(small_config.optim, optimizer="sgd", lr=1e30, warmup=0.0))
    with pytest.raises(ImgprepError, match=r"the loss is not a finite number in epoch 1 - try a lower --lr"):
        start("one", config)


def test_a_validation_that_diverges_saves_nothing_and_finishes_nothing(
    start: Callable[..., Any], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainers.count_correct
    monkeypatch.setattr(trainers, "count_correct", lambda *a, **k: replace(original(*a, **k), loss=float("nan")))
    with pytest.raises(ImgprepError, match=r"the validation loss is not a finite number in epoch 1 - try a lower --lr"):
        start("one")
    run = find_run(workspace, "one")
    assert not run.is_finished
    assert list((run.folder / "checkpoints").iterdir()) == []


def test_a_run_is_replaced_only_once_the_shards_are_decoded(
    start: Callable[..., Any], small_config: TrainConfig, index_path: Path
) -> None:
    run, result, _ = start("one")
    shard = index_path.parent / "imgprep-train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 255
    shard.write_bytes(content)
    with pytest.raises(MemberError):
        start("one", replace(small_config, seed=3), overwrite=True)
    assert read_json(run.finished, advice="") == result
    assert run.checkpoint("last").exists()
    content[600] ^= 255
    shard.write_bytes(content)
    assert start("one", replace(small_config, seed=3), overwrite=True)[1]["seed"] == 3


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": 8}, "have no split 'val'; they have: train - choose again with `imgprep subset --val-per-class 1`"),
        ({"train": 8, "val": 0}, "have no samples in split 'val'"),
        ({"val": 8}, "have no split 'train'; they have: val - choose again with `imgprep subset --per-class 1`"),
    ],
)
def test_shards_without_a_split_are_refused_with_advice(
    tmp_path: Path,
    small_config: TrainConfig,
    console: Console,
    shard_writer: Callable[..., Path],
    splits: dict[str, int],
    message: str,
) -> None:
    path = shard_writer(tmp_path / "few", splits=splits)
    with pytest.raises(MissingInputError, match=re.escape(message)):
        train(small_config, find_run(tmp_path, "one"), index_path=path, console=console, device="cpu")
    assert not (tmp_path / "runs").exists()


def test_damage_is_found_while_streaming(
    start: Callable[..., Any], small_config: TrainConfig, index_path: Path
) -> None:
    shard = index_path.parent / "imgprep-train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 255
    shard.write_bytes(content)
    streaming = replace(small_config, data=replace(small_config.data, input_mode="stream"))
    with pytest.raises(MemberError, match=r"offset 512 of .*imgprep-train-000000\.tar"):
        start("one", streaming)


def test_several_processes_are_refused(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="WORLD_SIZE is 2"):
        start("one")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused(
    workspace: Path, index_path: Path, small_config: TrainConfig, console: Console
) -> None:
    with pytest.raises(UsageError, match="--device cuda: PyTorch finds no CUDA device"):
        train(small_config, find_run(workspace, "one"), index_path=index_path, console=console, device="cuda")


def test_steps_follow_the_order(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = Trainer.train_step

    def step(self: Trainer, batch: Any) -> None:
        seen.extend(batch.samples.tolist())
        original(self, batch)

    monkeypatch.setattr(Trainer, "train_step", step)
    start("one")
    assert num_steps(40, 8) == 5
    assert sorted(seen[:40]) == sorted(seen[40:]) == list(range(40))
    assert seen[:40] != seen[40:]
