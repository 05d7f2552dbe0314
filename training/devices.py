"""Where the arithmetic runs, and in which precision."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from imgprep.errors import UsageError

DeviceName = Literal["auto", "cpu", "cuda"]


def choose_device(name: DeviceName) -> torch.device:
    """Turn ``--device`` into a device; ``auto`` prefers a GPU.

    Raises:
        UsageError: ``cuda`` was asked for and there is none.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device", "use --device cpu, or check the driver")
    return torch.device("cuda", torch.cuda.current_device())


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def training_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bfloat16 on a GPU that has it; full precision elsewhere."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def describe_device(device: torch.device) -> str:
    """Name of the device for logs and reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
