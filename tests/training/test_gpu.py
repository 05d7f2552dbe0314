"""Training on a CUDA device against the CPU. One command where there is one: ``python -m pytest -m gpu``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imgprep.index import ShardIndex
from training.augment import NUM_DRAWS, training_batch
from training.config import TrainConfig
from training.console import Console
from training.evaluate import evaluate
from training.loader import open_source
from training.metrics import read_metrics
from training.order import permutation, split_steps, uniforms
from training.reader import ShardReader
from training.runs import find_run
from training.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def test_pixels_are_the_same_on_both_devices_and_in_both_input_modes(index_path: Path, index: ShardIndex) -> None:
    steps = split_steps(permutation(0, 0, 40), 7)
    found = []
    with ShardReader(index_path, index, "train") as reader:
        for device in ("cpu", "cuda"):
            for mode in ("memory", "stream"):
                source = open_source(reader, 16, mode=mode, device=torch.device(device), threads=2)  # type: ignore[arg-type]
                found.append(torch.cat([batch.pixels.cpu() for batch in source.batches(steps)]))
                source.close()

    assert all(torch.equal(found[0], other) for other in found[1:])


def test_augmentation_agrees_with_the_cpu_to_a_hundredth(small_config: TrainConfig) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8))
    draws = torch.from_numpy(uniforms(0, 0, np.arange(32), NUM_DRAWS)).float()
    cpu = training_batch(pixels, draws, small_config.augment, size=16, erase=True)
    gpu = training_batch(pixels.cuda(), draws.cuda(), small_config.augment, size=16, erase=True)

    # A pixel whose place falls just on an edge may be taken from either side.
    close = (cpu - gpu.cpu()).abs() < 0.01
    assert close.float().mean() > 0.999


def test_training_on_the_gpu_follows_the_cpu_and_evaluates_alike(
    workspace: Path, index_path: Path, small_config: TrainConfig, console: Console
) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        run = find_run(workspace, device)
        train(small_config, run, index_path=index_path, console=console, device=device)  # type: ignore[arg-type]
        losses[device] = [line["loss"] for line in read_metrics(run.metrics) if line["kind"] == "epoch"]

    # bfloat16 has 8 bits of mantissa, and dropout draws from another generator on the device.
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.15)
    on_cpu, _ = evaluate(find_run(workspace, "cuda"), console=console, device="cpu")
    assert abs(on_cpu["top1"]["correct"] - read_metrics(find_run(workspace, "cuda").metrics)[-1]["val_correct"]) <= 1


def test_a_run_stopped_on_the_gpu_goes_on(
    workspace: Path, index_path: Path, small_config: TrainConfig, console: Console
) -> None:
    run = find_run(workspace, "two")
    result = train(small_config, run, index_path=index_path, console=console, device="cuda")
    run.finished.unlink()
    again = train(small_config, run, index_path=index_path, console=console, device="cuda", resume=True)

    assert again["top1"] == result["top1"]
