"""Benchmark of verify: bytes a second against those of `sha256sum` over the same files with as many processes.

The folder is made of the JPEGs of a zip, repeated until it has the size asked for. Rounds are interleaved, each
measurement is a fresh process, files are in the page cache; times are medians and include the start of Python.
`openssl dgst` uses the processor's SHA instructions, which `sha256sum` of many coreutils does not: it is measured, too.

python tests/benchmarks/verify.py compare photos.zip --gigabytes 1 --rounds 5
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import simplejpeg

from imgprep.executors import make_executor
from imgprep.index import SAMPLE_FIELDS, ClassInfo, ShardIndex, ShardInfo, SplitInfo
from imgprep.packing import END, padding, sample_json, tar_header
from imgprep.receipts import Receipt
from imgprep.records import Record, Synset
from imgprep.tables import catalog_table, table_bytes, write_rejected
from imgprep.verify import RECEIPT, REJECTED, SUMS, VerifySpec, verify

SHARD_BYTES: Final = 128 << 20
SPEC: Final = {"images": "original", "seed": 0}


def photos(path: Path) -> list[tuple[bytes, int, int]]:
    """The JPEGs of a zip with their widths and heights."""
    found = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.lower().endswith((".jpeg", ".jpg")):
                content = archive.read(name)
                if simplejpeg.is_jpeg(content):
                    height, width, *_ = simplejpeg.decode_jpeg_header(content)
                    found.append((content, width, height))
    return found


def samples(pictures: list[tuple[bytes, int, int]], num_bytes: int) -> Iterator[tuple[Record, bytes, bytes]]:
    """Records with picture and JSON until the pictures have so many bytes."""
    number = 0
    while num_bytes > 0:
        content, width, height = pictures[number % len(pictures)]
        key = f"n00000000_{number}"
        record = Record(key, "train", f"train/n00000000/{key}.JPEG", "n00000000", 0, len(content), None)
        yield record, content, sample_json(record, width, height)
        num_bytes -= len(content)
        number += 1


def write_folder(folder: Path, pictures: list[tuple[bytes, int, int]], num_bytes: int) -> int:
    """Write shards with index, receipt and sums; returns the number of samples."""
    infos: list[ShardInfo] = []
    rows: list[tuple[int, int, int, int, int]] = []
    tar = bytearray()
    count = 0

    def publish() -> None:
        nonlocal count
        tar.extend(END)
        name = f"imgprep-train-{len(infos):06d}.tar"
        (folder / name).write_bytes(tar)
        sha256 = hashlib.sha256(tar).hexdigest()
        infos.append(ShardInfo(filename=name, num_samples=len(rows) - count, num_bytes=len(tar), sha256=sha256))
        count = len(rows)
        tar.clear()

    for record, jpeg, document in samples(pictures, num_bytes):
        rows.append((len(infos), len(tar) + 512, len(jpeg), 0, zlib.crc32(jpeg)))
        for suffix, content in (("jpg", jpeg), ("cls", b"0"), ("json", document)):
            tar += tar_header(f"{record.key}.{suffix}", len(content)) + content + padding(len(content))
        if len(tar) > SHARD_BYTES:
            publish()
    publish()
    np.save(folder / "train.samples.npy", np.array(rows, dtype=list(SAMPLE_FIELDS)))
    split = SplitInfo(
        num_samples=len(rows),
        samples_filename="train.samples.npy",
        samples_sha256=hashlib.sha256((folder / "train.samples.npy").read_bytes()).hexdigest(),
        shards=tuple(infos),
    )
    classes = (ClassInfo(label=0, wnid="n00000000", name="photo"),)
    index = ShardIndex(classes=classes, splits={"train": split}, spec=dict(SPEC))
    (folder / "index.json").write_text(index.to_json(), encoding="utf-8")
    write_rejected(folder / REJECTED, [])
    table = table_bytes(catalog_table([Synset("n00000000", 0, "photo")]))
    inputs = {"source": "0" * 64, "subset": "0" * 64, "classes": hashlib.sha256(table).hexdigest()}
    counts = {"train": len(rows), "in": len(rows), "out": len(rows), "shards": len(infos), "num_bytes": split.num_bytes}
    outputs = sorted(path.name for path in folder.iterdir())
    Receipt(stage="shard", inputs=inputs, options=SPEC).write(folder, outputs, counts)
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in [*outputs, RECEIPT]]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")
    return len(rows)


def timed(command: list[str], folder: Path) -> float:
    """Seconds of a command in a folder."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def contenders(workers: int) -> dict[str, list[str]]:
    """What is measured, by name."""
    each = f"ls | xargs -P {workers} -n 1"
    found = {
        "verify": [sys.executable, str(Path(__file__).resolve()), "once", str(workers), "bytes"],
        "sha256sum": ["sh", "-c", f"{each} sha256sum"],
    }
    if shutil.which("openssl"):
        found["openssl"] = ["sh", "-c", f"{each} openssl dgst -sha256"]
    return found


@click.group()
def main() -> None:
    """Measure; one JSON object a line."""


@main.command(hidden=True)
@click.argument("workers", type=int)
@click.argument("level")
def once(workers: int, level: str) -> None:
    """One verification of the working folder in this process."""
    verdict = verify(Path.cwd(), VerifySpec(level=level), executor=make_executor(workers))  # type: ignore[arg-type]
    if verdict.problems:
        raise click.ClickException(verdict.problems[0].line)
    # What getrusage counts is inherited from the process that started this one.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert peak is not None
    click.echo(json.dumps({"peak_mib": int(peak[1]) // 1024}))


@main.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--gigabytes", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("-j", "--workers", type=click.IntRange(min=0), default=0, help="0 is one a processor.")
def compare(path: Path, gigabytes: float, rounds: int, workers: int) -> None:
    """Verify against sha256sum."""
    workers = workers or len(os.sched_getaffinity(0))
    pictures = photos(path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = write_folder(folder, pictures, int(gigabytes * 1e9))
        num_bytes = sum(file.stat().st_size for file in folder.iterdir())
        commands = contenders(workers)
        inside = subprocess.run(commands["verify"], cwd=folder, stdout=subprocess.PIPE, check=True).stdout
        times: dict[str, list[float]] = {contender: [] for contender in commands}
        for _ in range(rounds):
            for contender, command in commands.items():
                times[contender].append(timed(command, folder))
    medians = {contender: statistics.median(some) for contender, some in times.items()}
    result: dict[str, Any] = {
        "samples": count,
        "num_bytes": num_bytes,
        "mean_picture": round(statistics.mean(len(content) for content, _, _ in pictures)),
        "workers": workers,
        "rounds": rounds,
        "seconds": {contender: round(value, 3) for contender, value in medians.items()},
        "range": {contender: [round(min(some), 3), round(max(some), 3)] for contender, some in times.items()},
        "gigabytes_per_second": {c: round(num_bytes / value / 1e9, 3) for c, value in medians.items()},
        "ratio": {c: round(value / medians["verify"], 3) for c, value in medians.items() if c != "verify"},
        "peak_mib": json.loads(inside)["peak_mib"],
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        "sha256sum": subprocess.run(
            ["sha256sum", "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0],
    }
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
