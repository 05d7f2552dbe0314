"""Benchmark of the tables: catalog, and subset with its write, from the directory of an archive; time and peak memory.

- imagenet: 1,281,167 train and 50,000 val pictures in 1000 classes, with their XML files. The goal is 10 s and 1.5 GB
  for each step.
- imagenet21k: 14,197,122 train pictures in 21,841 classes, the numbers of ImageNet-21k. The catalog is made
  and a subset is chosen.

The archives are sparse files: their directory and lists are there, their pictures are not. Each step runs in a fresh
process; its time includes the start of the interpreter and all imports. The labels of the val pictures are written
beforehand, as `imgprep annotations` would from 594,546 XML files that are not there.

python tests/benchmarks/catalog.py
python tests/benchmarks/catalog.py imagenet21k --repeats 1
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import click
import numpy as np

from imgprep.sources.adopted import SourceRecord, write_source_record
from imgprep.testing.archives import VirtualImagenet, VirtualSpec
from imgprep.workspace import Workspace

MB: Final = 1_000_000
GOAL_SECONDS: Final = 10.0
GOAL_BYTES: Final = 1500 * MB

_TAIL: Final = 64 << 20
"""Bytes before the directory that hold all lists of a virtual archive."""
_PIECE: Final = 16 << 20

_RECORD: Final = np.dtype(
    [("head", "S10"), ("method", "<u2"), ("stamp", "<u4"), ("crc32", "<u4"), ("packed", "<u4"), ("num_bytes", "<u4"),
     ("name_length", "<u2"), ("extra_length", "<u2"), ("rest", "V10"), ("offset", "<u4")]
)  # fmt: skip
"""One entry of a directory (APPNOTE.TXT 4.3.12), name and extra field not counted."""
_ZIP64: Final = np.dtype([("tag", "<u2"), ("length", "<u2"), ("offset", "<u8")])
_END64: Final = struct.Struct("<4sQ2H2I4Q4sIQI")
"""The zip64 end record and its locator (4.3.14 and 4.3.15)."""
_END: Final = struct.Struct("<4s4H2IH")
"""The end record (4.3.16)."""
_LOCAL_HEADER_BYTES: Final = 30
_FULL32: Final = 0xFFFF_FFFF


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is.

    Attributes:
        imagenet: The archive of ImageNet.
        classes: How many classes are chosen of it.
        per_class: How many pictures of each.
        synsets: Classes of the larger archive.
        pictures: Pictures of the larger archive.
        many: How many classes are chosen of it.
        per_class_of_many: How many pictures of each.
    """

    imagenet: VirtualSpec = field(default_factory=lambda: VirtualSpec(test=0))
    classes: int = 100
    per_class: int = 500
    synsets: int = 21_841
    pictures: int = 14_197_122
    many: int = 1000
    per_class_of_many: int = 100


@dataclass(frozen=True, kw_only=True)
class Run:
    """One step in one round: what it took and how many rows its manifest has."""

    part: str
    step: str
    seconds: float
    peak_bytes: int
    rows: int


# Archives


def write_sparse(archive: VirtualImagenet, path: Path) -> None:
    """Write of a virtual archive what the tables need: its first header, its lists and its directory."""
    with path.open("wb") as file:
        file.write(archive.pread(_LOCAL_HEADER_BYTES, 0))
        for start in range(max(0, archive.directory_offset - _TAIL), archive.size, _PIECE):
            file.seek(start)
            file.write(archive.pread(_PIECE, start))


def write_directory(path: Path, *, synsets: int, pictures: int, seed: int = 0) -> None:
    """Write a zip64 archive of training pictures that has a directory, a first header, and nothing else."""
    rng = np.random.default_rng(seed)
    name_length = len(_name(0, 0))
    sizes = rng.integers(20_000, 200_000, pictures, dtype=np.uint32)
    ends = np.cumsum(sizes + np.uint64(_LOCAL_HEADER_BYTES + name_length))
    record = np.dtype([("fixed", _RECORD), ("name", np.uint8, name_length), ("zip64", _ZIP64)])
    bounds = np.arange(synsets + 1) * pictures // synsets
    with path.open("wb") as file:
        file.write(b"PK\3\4" + bytes(_LOCAL_HEADER_BYTES - 4))
        file.seek(int(ends[-1]))
        for synset, (first, end) in enumerate(pairwise(bounds.tolist())):
            rows = np.zeros(end - first, record)
            fixed, zip64 = rows["fixed"], rows["zip64"]
            fixed["head"], fixed["offset"] = b"PK\1\2", _FULL32
            fixed["name_length"], fixed["extra_length"] = name_length, _ZIP64.itemsize
            fixed["packed"] = fixed["num_bytes"] = sizes[first:end]
            fixed["crc32"] = rng.integers(1 << 32, size=end - first, dtype=np.uint32)
            names = "".join(_name(synset, number) for number in range(end - first)).encode()
            rows["name"] = np.frombuffer(names, np.uint8).reshape(-1, name_length)
            zip64["tag"], zip64["length"] = 1, 8
            zip64["offset"] = ends[first:end] - sizes[first:end] - np.uint64(_LOCAL_HEADER_BYTES + name_length)
            file.write(rows.tobytes())
        start, at = int(ends[-1]), file.tell()
        file.write(
            _END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, pictures, pictures, at - start, start, b"PK\6\7", 0, at, 1)
            + _END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, _FULL32, _FULL32, 0)
        )


def _name(synset: int, number: int) -> str:
    return f"ILSVRC/Data/CLS-LOC/train/n{synset:08d}/n{synset:08d}_{number:05d}.JPEG"


def adopt(archive: Path, root: Path) -> Workspace:
    """A workspace that has adopted the archive. Its listing is not read: that is what `imgprep fetch` does."""
    workspace = Workspace(root)
    root.mkdir()
    status = archive.stat()
    record = SourceRecord(
        path=str(archive),
        kind="zip",
        layout="ilsvrc",
        num_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        num_members=0,
        listing_sha256="",
    )
    write_source_record(workspace, record)
    return workspace


def label_val(workspace: Workspace, archive: Path) -> None:
    """Write ``val.csv`` from the list in the archive, as `imgprep annotations` does where there is no XML."""
    from imgprep.layouts.ilsvrc import VAL_SOLUTION, parse_solution
    from imgprep.sources.zip import ZipSource
    from imgprep.tables import read_catalog

    with ZipSource(archive) as source:
        labels = parse_solution(source.read(VAL_SOLUTION), where=VAL_SOLUTION)
    catalog = read_catalog(workspace.catalog / "classes.csv")
    rows = "".join(f"{key},{wnid},{catalog.by_wnid(wnid).index}\n" for key, wnid in sorted(labels.items()))
    (workspace.catalog / "val.csv").write_text(f"ImageId,wnid,label\n{rows}", encoding="utf-8")


# Steps, each in a process of its own


def make_catalog(workspace: Workspace) -> int:
    """`imgprep catalog`; returns the rows of the manifest."""
    from imgprep.catalog import catalog

    stats = catalog(workspace).stats
    return stats["train"] + stats["val"] + stats["test"]


def make_subset(workspace: Workspace, classes: int, per_class: int) -> int:
    """`imgprep subset`: read the tables, choose, write; returns the rows that were chosen."""
    from imgprep.selection import SubsetSpec
    from imgprep.subset import subset

    spec = SubsetSpec(classes=classes, per_class=per_class)
    chosen = subset(workspace, spec, name="main", overwrite=True).selection
    return 0 if chosen is None else len(chosen.manifest)


def step(name: str, root: str, *numbers: str) -> None:
    """What a process of this script does: one step, and a line about it."""
    steps: dict[str, Callable[..., int]] = {"catalog": make_catalog, "subset": make_subset}
    rows = steps[name](Workspace(Path(root)), *map(int, numbers))
    # VmHWM begins anew with a program, unlike ru_maxrss, which starts from what the parent had.
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"rows": rows, "peak_bytes": peak}))  # noqa: T201  # it is what the pipe is for


def measure(part: str, name: str, workspace: Workspace, *numbers: int) -> Run:
    """Run a step in a fresh process.

    Raises:
        subprocess.CalledProcessError: It failed; why stands on stderr.
    """
    start = time.perf_counter()
    command = [sys.executable, __file__, "step", name, str(workspace.root), *map(str, numbers)]
    told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    return Run(part=part, step=name, seconds=time.perf_counter() - start, **told)


def measure_imagenet(scale: Scale, folder: Path, repeats: int) -> Iterator[Run]:
    """Catalog and subset at the scale of ImageNet."""
    archive = folder / "imagenet.zip"
    write_sparse(VirtualImagenet(scale.imagenet), archive)
    for each in range(repeats):
        workspace = adopt(archive, folder / f"imagenet-{each}")
        yield measure("imagenet", "catalog", workspace)
        label_val(workspace, archive)
        yield measure("imagenet", "subset", workspace, scale.classes, scale.per_class)
        shutil.rmtree(workspace.root)
    archive.unlink()


def measure_imagenet21k(scale: Scale, folder: Path, repeats: int) -> Iterator[Run]:
    """Catalog and subset at the scale of ImageNet-21k."""
    archive = folder / "imagenet21k.zip"
    write_directory(archive, synsets=scale.synsets, pictures=scale.pictures)
    for each in range(repeats):
        workspace = adopt(archive, folder / f"imagenet21k-{each}")
        yield measure("imagenet21k", "catalog", workspace)
        (workspace.catalog / "val.csv").write_text("ImageId,wnid,label\n")
        yield measure("imagenet21k", "subset", workspace, scale.many, scale.per_class_of_many)
        shutil.rmtree(workspace.root)
    archive.unlink()


PARTS: Final = {"imagenet": measure_imagenet, "imagenet21k": measure_imagenet21k}


def report(runs: Sequence[Run]) -> list[str]:
    """A row a step: medians, and all times in brackets."""
    lines = ["| part | step | rows | seconds | peak |", "| --- | --- | ---: | ---: | ---: |"]
    for part, name in dict.fromkeys((run.part, run.step) for run in runs):
        some = [run for run in runs if (run.part, run.step) == (part, name)]
        times, peak = [run.seconds for run in some], max(run.peak_bytes for run in some)
        listed = ", ".join(f"{seconds:.1f}" for seconds in times)
        lines.append(
            f"| {part} | {name} | {some[0].rows:,} | {statistics.median(times):.1f} ({listed}) | {peak / MB:,.0f} MB |"
        )
        if part == "imagenet":
            is_met = statistics.median(times) <= GOAL_SECONDS and peak <= GOAL_BYTES
            lines[-1] += f" goal {GOAL_SECONDS:.0f} s, {GOAL_BYTES / MB:,.0f} MB: {'met' if is_met else 'MISSED'}"
    return lines


def machine() -> str:
    """What it ran on, and how busy that was."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("imgprep", "numpy", "pandas"))
    load = " ".join(f"{load:.2f}" for load in os.getloadavg())
    return f"{len(os.sched_getaffinity(0))} processors, load {load}; Python {platform.python_version()}, {versions}"


@click.command()
@click.argument("part", type=click.Choice([*PARTS, "all"]), default="all")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Rounds.")
@click.option(
    "--scratch",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder for archives and tables, some 6 GB; by default a temporary one.",
)
def main(part: str, repeats: int, scratch: Path | None) -> None:
    """Measure the tables of large data sets."""
    click.echo(f"command: {shlex.join(['python', *sys.argv])}\n{machine()}")
    with tempfile.TemporaryDirectory(prefix="imgprep-benchmark-", dir=scratch) as folder:
        parts = PARTS if part == "all" else {part: PARTS[part]}
        runs = [run for each in parts.values() for run in each(Scale(), Path(folder), repeats)]
    click.echo("\n".join(report(runs)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["step"]:
        step(*sys.argv[2:])
    else:
        main()
