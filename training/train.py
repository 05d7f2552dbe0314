"""``imgprep train``: open the shards, claim a run, and train."""

from __future__ import annotations

import os
import platform
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imgprep.errors import MissingInputError, UsageError
from imgprep.index import ShardIndex, read_index
from training.devices import DeviceName, choose_device, describe_device, usable_cores
from training.loader import PixelSource, choose_mode, open_source
from training.reader import ShardReader
from training.runs import Run, RunRecord, begin, claim, locked, stored_index_path
from training.signals import StopRequest
from training.trainer import Trainer

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.console import Console


def train(
    config: TrainConfig,
    run: Run,
    *,
    index_path: Path,
    console: Console,
    device: DeviceName = "auto",
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    found: bool = False,
) -> dict[str, Any]:
    """Train a model on shards and keep everything about it in a run.

    Args:
        config: What to do.
        run: Where to keep it.
        index_path: The ``index.json`` of the shards.
        console: Where progress goes.
        device: Where to compute.
        threads: For arithmetic and decoding; all usable cores when not given. Another number may change the last bits.
        resume: Go on with a run that was stopped.
        overwrite: Remove what an earlier run of that name wrote, once the shards are open.
        found: The run was not named but found by its options: says so when it is complete.

    Returns:
        The content of ``finished.json``.

    Raises:
        UsageError: More than one process, no such device, or no samples to learn from or to measure on.
        OutputExistsError: The run exists, was made with other options or from other shards, and is not to be replaced.
        MissingInputError: There is nothing to resume, or the shards are missing.
        DamagedError: A shard, a sample or the checkpoint is damaged.
        LockedError: Another process trains this run.
        ImgprepError: The loss stopped being a finite number.
        KeyboardInterrupt: A signal came; a checkpoint was saved and the console says how to go on.
    """
    require_one_process()
    index = read_index(index_path)
    require_splits(config, index)
    where = choose_device(device)
    torch.set_num_threads(threads or usable_cores())
    with ExitStack() as stack:
        # Shards are opened first: when one is missing, no run is begun.
        readers = {
            split: stack.enter_context(ShardReader(index_path, index, split))
            for split in (config.data.train_split, config.data.val_split)
        }
        stack.enter_context(locked(run))
        record = RunRecord(
            config=config,
            dataset_digest=index.dataset_digest,
            index_path=stored_index_path(run, index_path),
            num_classes=len(index.classes),
            device=describe_device(where),
            versions=package_versions(),
        )
        replacing = overwrite and run.exists
        if not replacing and (finished := claim(run, record, resume=resume)):
            again = "(another --seed or --name makes another run)"
            console.say(
                f"run {run.name} did this already; nothing to do {again}"
                if found
                else f"run {run.name} is complete; nothing to do"
            )
            return finished
        sources = {}
        for split, reader in readers.items():
            sources[split] = _open_source(reader, config, device=where, console=console)
            stack.callback(sources[split].close)
        if replacing:
            # Only now: while the shards could not be decoded, the old run was all there is.
            begin(run, record)
        stop = stack.enter_context(StopRequest())
        trainer = Trainer(
            config,
            run,
            index,
            train_source=sources[config.data.train_split],
            val_source=sources[config.data.val_split],
            device=where,
            console=console,
            stop=stop,
        )
        return trainer.fit()


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    versions = {"python": platform.python_version()}
    for package in ("imgprep", "torch", "numpy", "opencv-python-headless", "simplejpeg"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return versions


def require_one_process() -> None:
    """Refuse to start under a launcher of several processes.

    Raises:
        UsageError: ``WORLD_SIZE`` is above 1.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world not in ("", "1"):
        raise UsageError(f"WORLD_SIZE is {world}: training runs in a single process", "start it without torchrun")


def require_splits(config: TrainConfig, index: ShardIndex) -> None:
    """Refuse shards without samples to learn from or to measure on.

    Raises:
        MissingInputError: A split is missing or empty; says how to get one.
    """
    known = ", ".join(sorted(index.splits)) or "none"
    for split, option in ((config.data.train_split, "--per-class"), (config.data.val_split, "--val-per-class")):
        if split not in index.splits or not index.splits[split].num_samples:
            state = "have no" if split not in index.splits else "have no samples in"
            raise MissingInputError(
                f"these shards {state} split {split!r}; they have: {known}",
                f"choose again with `imgprep subset {option} 1` or more, then run `imgprep shard`",
            )


def _open_source(reader: ShardReader, config: TrainConfig, *, device: torch.device, console: Console) -> PixelSource:
    size = config.data.image_size
    mode, reason = choose_mode(config.data.input_mode, num_bytes=len(reader) * size * size * 3, device=device)
    console.say(f"{reader.split}: {len(reader):,} samples; {reason}")
    with console.task(f"decode {reader.split}", len(reader), "images") as advance:
        return open_source(reader, size, mode=mode, device=device, threads=torch.get_num_threads(), progress=advance)
