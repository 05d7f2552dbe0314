"""Benchmark of doctor: the near-duplicate search at the size of ImageNet, and pictures diagnosed in a second.

- search: 1,331,167 made-up hashes (train and val of ILSVRC 2012): random ones, of which a twentieth are others with
  three bits flipped and 2,000 are equal; and as many that are crowded into 24 bits, the worst case.
- walk: every picture of a zip, diagnosed in processes of their own as the command does it, one at a time and on all
  processors.

Each measurement runs in a fresh process; times are medians, and begin when the libraries are imported.

python tests/benchmarks/doctor.py search
python tests/benchmarks/doctor.py walk photos.zip --repeats 3
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from imgprep.decoder_process import Decoders
from imgprep.executors import make_executor
from imgprep.sources.zip import ZipSource
from imgprep.twins import NONE, find_twins

TRAIN: Final = 1_281_167
VAL: Final = 50_000
CLASSES: Final = 1000
MIB: Final = 1 << 20


def made_up_hashes(kind: str, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Hashes to search among: ``random`` with near ones planted, or ``crowded`` into 24 bits."""
    rng = np.random.Generator(np.random.PCG64(0))
    if kind == "crowded":
        return rng.integers(0, 1 << 24, count, dtype=np.uint64)
    hashes = rng.integers(0, 1 << 64, count, dtype=np.uint64)
    near = hashes[rng.integers(0, count, count // 20)]
    for _ in range(3):
        near ^= np.uint64(1) << rng.integers(0, 64, len(near)).astype(np.uint64)
    hashes[rng.integers(0, count, len(near))] = near
    hashes[rng.integers(0, count, count // 600)] = hashes[0]
    return hashes


def measure_search(kind: str, distance: int, count: int) -> dict[str, Any]:
    """One search; ``count`` pictures of 1,000 classes, of which the last twenty-seventh are for validation."""
    hashes = made_up_hashes(kind, count)
    splits = (np.arange(count) >= count * TRAIN // (TRAIN + VAL)).astype(np.int8)
    classes = np.random.Generator(np.random.PCG64(1)).integers(0, CLASSES, count, dtype=np.int16)
    started = time.perf_counter()
    found = find_twins(hashes, splits, classes, distance=distance)
    seconds = time.perf_counter() - started
    counts = {name: int((getattr(found, name) != NONE).sum()) for name in ("earlier", "leak", "conflict")}
    return {"seconds": seconds, "near": counts.pop("earlier"), **counts, "crowded": found.crowded}


def measure_walk(path: str, workers: int) -> dict[str, Any]:
    """Diagnose every picture of a zip."""
    with ZipSource(Path(path)) as source, Decoders() as decoders:
        names = [member.name for member in source.members() if member.name.lower().endswith((".jpeg", ".jpg"))]
        plans = [names[start : start + 32] for start in range(0, len(names), 32)]

        def examine(plan: list[str], tick: Callable[[], None]) -> int:
            return sum(decoders.diagnose(source.read(name), name).pillow is True for name in plan)

        started = time.perf_counter()
        decoded = sum(make_executor(workers).map(examine, plans, tick=lambda: None))
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "pictures": len(names), "decoded": decoded, "pictures_per_second": len(names) / seconds}


def repeat(repeats: int, *args: object) -> dict[str, Any]:
    """Run one measurement several times, each in a fresh process; the median of the times, and the peak of memory."""
    runs = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "once", *map(str, args)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        runs.append(json.loads(done.stdout))
    times = [run["seconds"] for run in runs]
    found: dict[str, Any] = runs[0] | {
        "seconds": statistics.median(times),
        "seconds_range": [min(times), max(times)],
        "peak_mib": max(run["peak_mib"] for run in runs),
        "load": os.getloadavg()[0],
    }
    return found


@click.group()
def main() -> None:
    """Measure; one JSON object a line."""


@main.command(hidden=True)
@click.argument("what")
@click.argument("args", nargs=-1)
def once(what: str, args: tuple[str, ...]) -> None:
    """One measurement in this process."""
    if what == "search":
        found = measure_search(args[0], int(args[1]), int(args[2]))
    else:
        found = measure_walk(args[0], int(args[1]))
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    click.echo(json.dumps(found | {"peak_mib": peak * 1024 // MIB}))


@main.command()
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--count", type=click.IntRange(min=27), default=TRAIN + VAL, show_default=True)
def search(repeats: int, count: int) -> None:
    """The search for near duplicates."""
    for kind, distance in (("random", 0), ("random", 4), ("random", 8), ("crowded", 4)):
        found = repeat(1 if kind == "crowded" else repeats, "search", kind, distance, count)
        click.echo(json.dumps({"kind": kind, "distance": distance, "count": count, "numpy": np.__version__} | found))


@main.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False))
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
def walk(path: str, repeats: int) -> None:
    """The diagnosis of all pictures of a zip."""
    with zipfile.ZipFile(path) as archive:
        num_bytes = sum(info.file_size for info in archive.infolist())
    for workers in (1, 0):
        found = repeat(repeats, "walk", path, workers)
        click.echo(
            json.dumps({"workers": workers, "num_bytes": num_bytes, "python": platform.python_version()} | found)
        )


if __name__ == "__main__":
    main()
