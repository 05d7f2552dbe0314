"""Benchmark of shard: pictures a second against other writers and against the bare work, on the same processors.

- copies: a stored zip of photographs into tars of 1,000, with index, sample table and SHA-256. Beside imgprep: a bare
  loop of `pread`, CRC-32, a USTAR header, `writev` and SHA-256 on threads; zipfile with webdataset's ShardWriter;
  `unzip`, then `tar`.
- shrinks: the same photographs to a short side of 256 at quality 90. Beside imgprep: the bare calls that decode, shrink
  and encode, on threads, without a tar; a pool of processes with Pillow, and webdataset's ShardWriter; img2dataset and
  LitData, where `--img2dataset` and `--litdata` name a Python that has them.

Contenders take turns, round after round; ratios are those of medians. The archive is made of the JPEGs of a zip, again
and again under new names. `--folder` should be in memory: this measures the work, not a disk.

python tests/benchmarks/shard.py photos.zip --copies 20000 --shrinks 3000 --rounds 5 --folder /dev/shm
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import platform
import random
import shutil
import statistics
import subprocess
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click
import cv2
import simplejpeg
from PIL import Image

from imgprep.annotations import annotations as read_annotations
from imgprep.catalog import catalog
from imgprep.executors import make_executor
from imgprep.fetch import fetch
from imgprep.images import shrink
from imgprep.packing import tar_header
from imgprep.selection import SubsetSpec
from imgprep.shard import plan_job, shard
from imgprep.shard_plan import ShardSpec
from imgprep.subset import subset
from imgprep.workspace import Workspace

SAMPLES: Final = 1000
SIDE: Final = 256
QUALITY: Final = 90
CLASSES: Final = 100


@dataclass(frozen=True)
class Given:
    """What all contenders work on: an archive, its members in an order that mixes them, and room for results."""

    archive: Path
    workspace: Workspace
    names: list[str]
    workers: int
    out: Path

    def parts(self) -> list[list[str]]:
        """The members of each tar."""
        return [self.names[start : start + SAMPLES] for start in range(0, len(self.names), SAMPLES)]


def make_given(photos: list[bytes], number: int, folder: Path, workers: int) -> Given:
    """Write the archive, adopt it, and choose all of it."""
    folder.mkdir()
    archive = folder / "photos.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for place in range(number):
            name = f"c{place % CLASSES:03d}/p{place:07d}.jpg"
            packed.writestr(zipfile.ZipInfo(name), photos[place % len(photos)])
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
    random.Random(0).shuffle(names)
    workspace = Workspace(folder / "workspace")
    workspace.root.mkdir()
    fetch(workspace, archive)
    catalog(workspace)
    read_annotations(workspace)
    subset(workspace, SubsetSpec(), name="main")
    return Given(archive, workspace, names, workers, folder / "out")


def imgprep(given: Given, *, engine: str, side_files: bool = False, **options: object) -> None:
    """Our stage, from the plan to the published folder."""
    spec = ShardSpec(samples_per_shard=SAMPLES, side_files=side_files, **options)  # type: ignore[arg-type]
    job = plan_job(given.workspace, spec, subset="main", name="out", overwrite=True)
    shard(given.workspace, job, spec, executor=make_executor(given.workers, engine))
    shutil.move(given.workspace.shards("out"), given.out)


# Copies.


def bare_copies(given: Given) -> None:
    """Nothing but the work, on threads."""
    with zipfile.ZipFile(given.archive) as packed:
        infos = {info.filename: info for info in packed.infolist()}
    handle = os.open(given.archive, os.O_RDONLY)
    template = tar_header("x", 0)
    given.out.mkdir()

    def write(place: int, names: list[str]) -> str:
        out = os.open(given.out / f"{place:06d}.tar", os.O_WRONLY | os.O_CREAT)
        digest = hashlib.sha256()
        for name in names:
            info = infos[name]
            # The archive was written without extra fields.
            content = os.pread(handle, info.file_size, info.header_offset + 30 + len(name))
            if zlib.crc32(content) != info.CRC:
                raise ValueError(name)
            header = (
                name[5:].encode().ljust(100, b"\0") + template[100:124] + b"%011o\0" % len(content) + template[136:]
            )
            parts = (header, content, bytes(-len(content) % 512))
            os.writev(out, parts)
            for part in parts:
                digest.update(part)
        os.write(out, bytes(1024))
        digest.update(bytes(1024))
        os.fsync(out)
        os.close(out)
        return digest.hexdigest()

    with ThreadPoolExecutor(given.workers) as pool:
        list(pool.map(write, range(len(given.parts())), given.parts()))
    os.close(handle)


def webdataset_copies(given: Given) -> None:
    """zipfile and webdataset's writer, in one process."""
    import webdataset

    given.out.mkdir()
    writer = webdataset.ShardWriter(str(given.out / "%06d.tar"), maxcount=SAMPLES, verbose=0)
    with zipfile.ZipFile(given.archive) as packed, writer:
        for name in given.names:
            label = int(name[1:4])
            writer.write({"__key__": name[5:-4], "jpg": packed.read(name), "cls": label, "json": {"label": label}})


def unzip_copies(given: Given) -> None:
    """Two programs of the system, one after the other."""
    folder = given.out / "unpacked"
    folder.mkdir(parents=True)
    subprocess.run(["unzip", "-q", str(given.archive), "-d", str(folder)], check=True)
    for place, names in enumerate(given.parts()):
        command = [
            "tar",
            "--create",
            "--file",
            str(given.out / f"{place:06d}.tar"),
            "--directory",
            str(folder),
            "-T",
            "-",
        ]
        subprocess.run(command, input="\n".join(names), text=True, check=True)


# Shrinks.


def bare_shrinks(given: Given) -> None:
    """The calls that decode, shrink and encode, on threads; what they make is dropped."""
    given.out.mkdir()
    contents = read_all(given)

    def work(content: bytes) -> int:
        pixels = simplejpeg.decode_jpeg(content, colorspace="BGR")
        height, width = pixels.shape[:2]
        scale = SIDE / min(height, width)
        if scale < 1:
            pixels = shrink(pixels, (max(SIDE, round(width * scale)), max(SIDE, round(height * scale))))
        ok, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        return len(jpeg) if ok else 0

    with ThreadPoolExecutor(given.workers) as pool:
        assert all(pool.map(work, contents))


def read_all(given: Given) -> list[bytes]:
    with zipfile.ZipFile(given.archive) as packed:
        return [packed.read(name) for name in given.names]


def pillow_one(content: bytes) -> bytes:
    """The usual recipe."""
    opened = Image.open(io.BytesIO(content))
    opened.draft("RGB", (SIDE, SIDE))
    image = opened.convert("RGB")
    scale = SIDE / min(image.size)
    if scale < 1:
        size = (max(SIDE, round(image.width * scale)), max(SIDE, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def pillow_shrinks(given: Given) -> None:
    """A pool of processes with Pillow, and webdataset's writer."""
    import webdataset

    given.out.mkdir()
    writer = webdataset.ShardWriter(str(given.out / "%06d.tar"), maxcount=SAMPLES, verbose=0)
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(given.workers, mp_context=context) as pool, writer:
        made = pool.map(pillow_one, _contents(given), chunksize=16)
        for name, jpeg in zip(given.names, made, strict=True):
            label = int(name[1:4])
            writer.write({"__key__": name[5:-4], "jpg": jpeg, "cls": label, "json": {"label": label}})


def _contents(given: Given) -> Iterator[bytes]:
    with zipfile.ZipFile(given.archive) as packed:
        yield from map(packed.read, given.names)


IMG2DATASET: Final = """
import sys
from img2dataset import download
if __name__ == "__main__":
    table, out, workers, samples, side, quality = sys.argv[1:]
    download(url_list=table, input_format="csv", url_col="url", output_folder=out, output_format="webdataset",
        processes_count=int(workers), thread_count=16, image_size=int(side), resize_mode="keep_ratio",
        resize_only_if_bigger=True, encode_quality=int(quality), number_sample_per_shard=int(samples),
        enable_wandb=False, compute_hash="sha256")
"""

LITDATA: Final = """
import io, sys
from PIL import Image
import litdata
def prepare(path, side, quality):
    image = Image.open(path)
    image.draft("RGB", (side, side))
    image = image.convert("RGB")
    scale = side / min(image.size)
    if scale < 1:
        image = image.resize((max(side, round(image.width * scale)), max(side, round(image.height * scale))),
            Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return {"image": out.getvalue(), "label": int(path.split("/")[-2][1:])}
if __name__ == "__main__":
    from functools import partial
    listing, out, workers, side, quality = sys.argv[1:]
    litdata.optimize(partial(prepare, side=int(side), quality=int(quality)), open(listing).read().splitlines(), out,
        num_workers=int(workers), chunk_bytes="64MB")
"""


def peer_shrinks(given: Given, *, python: str, script: str, unpacked: Path) -> None:
    """A program of another Python, over files that are unpacked already; its start is counted."""
    given.out.mkdir()
    paths = [str(unpacked / name) for name in given.names]
    code = given.out / "run.py"
    code.write_text(script)
    if script is IMG2DATASET:
        table = given.out / "table.csv"
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([["url"], *([f"file://{path}"] for path in paths)])
        arguments = [str(table), str(given.out / "made"), str(given.workers), str(SAMPLES), str(SIDE), str(QUALITY)]
    else:
        (given.out / "listing.txt").write_text("\n".join(paths))
        arguments = [
            str(given.out / "listing.txt"),
            str(given.out / "made"),
            str(given.workers),
            str(SIDE),
            str(QUALITY),
        ]
    subprocess.run([python, str(code), *arguments], check=True, capture_output=True, cwd=given.out)


# Measuring.


def measure(contenders: dict[str, Callable[[Given], None]], given: Given, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        # Each is first once: memory that nobody has used before is slower.
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            run = contenders[name]
            start = time.perf_counter()
            run(given)
            times[name].append(time.perf_counter() - start)
            shutil.rmtree(given.out)
    return times


def summarise(what: str, given: Given, times: dict[str, list[float]], ours: str, num_bytes: int) -> dict[str, object]:
    medians = {name: statistics.median(some) for name, some in times.items()}
    return {
        "what": what,
        "images": len(given.names),
        "mean_bytes": round(num_bytes / len(given.names)),
        "workers": given.workers,
        "rounds": len(next(iter(times.values()))),
        "images_per_second": {name: round(len(given.names) / value) for name, value in medians.items()},
        "range": {name: [round(min(some), 2), round(max(some), 2)] for name, some in times.items()},
        "ours_is_so_many_times_as_fast_as": {
            name: round(value / medians[ours], 2) for name, value in medians.items() if name != ours
        },
        "ours": ours,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("webdataset", "pillow", "opencv-python-headless", "simplejpeg", "numpy")
        },
    }


def photos_of(path: Path) -> list[bytes]:
    """The JPEGs of a zip."""
    with zipfile.ZipFile(path) as archive:
        found = [archive.read(name) for name in archive.namelist() if name.lower().endswith((".jpeg", ".jpg"))]
    return [content for content in found if content.endswith(b"\xff\xd9") and simplejpeg.is_jpeg(content)]


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--copies", type=click.IntRange(min=0), default=20_000, show_default=True)
@click.option("--shrinks", type=click.IntRange(min=0), default=3000, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("-j", "--workers", type=click.IntRange(min=0), default=0, help="0 is one a processor.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where to work.")
@click.option("--img2dataset", help="A Python with img2dataset.")
@click.option("--litdata", help="A Python with litdata.")
def main(
    path: Path,
    copies: int,
    shrinks: int,
    rounds: int,
    workers: int,
    folder: Path | None,
    img2dataset: str | None,
    litdata: str | None,
) -> None:
    """Measure; one JSON object a line."""
    workers = workers or len(os.sched_getaffinity(0))
    photos = photos_of(path)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        if copies:
            given = make_given(photos, copies, Path(name) / "copies", workers)
            ours = "imgprep, processes"
            times = measure(
                {
                    ours: partial(imgprep, engine="processes", images="original"),
                    "imgprep, threads": partial(imgprep, engine="threads", images="original"),
                    "imgprep, processes, side files": partial(
                        imgprep, engine="processes", images="original", side_files=True
                    ),
                    "bare loop": bare_copies,
                    "zipfile + webdataset": webdataset_copies,
                    "unzip, then tar": unzip_copies,
                },
                given,
                rounds,
            )
            click.echo(json.dumps(summarise("copies", given, times, ours, given.archive.stat().st_size)))
            shutil.rmtree(given.archive.parent)
        if shrinks:
            given = make_given(photos, shrinks, Path(name) / "shrinks", workers)
            contenders: dict[str, Callable[[Given], None]] = {
                "imgprep": partial(imgprep, engine="threads"),
                "bare calls": bare_shrinks,
                "Pillow processes + webdataset": pillow_shrinks,
            }
            unpacked = Path(name) / "unpacked"
            if img2dataset or litdata:
                with zipfile.ZipFile(given.archive) as packed:
                    packed.extractall(unpacked)
            for title, python, script in (("img2dataset", img2dataset, IMG2DATASET), ("LitData", litdata, LITDATA)):
                if python:
                    contenders[title] = partial(peer_shrinks, python=python, script=script, unpacked=unpacked)
            times = measure(contenders, given, rounds)
            click.echo(json.dumps(summarise("shrinks", given, times, "imgprep", given.archive.stat().st_size)))


if __name__ == "__main__":
    main()
