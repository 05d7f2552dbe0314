"""Benchmark of reading annotations: 50,000 XML files from a zip to CSV tables, against plain loops over xml.etree.

The files are the real ones of an archive again and again under other names. Contenders:

- imgprep: the stage ``annotations``, from the zip to ``val.csv`` and ``boxes.csv``. It checks every CRC-32, resolves
  every class, applies the rules and hashes what it wrote.
- etree, unpacked: a loop over the same files unpacked to a folder, with xml.etree and csv. It checks nothing.
- etree, zip: the same over zipfile.

Every contender runs in a fresh process, in turn. Times begin when its libraries are imported and the archive is
adopted, and end when the tables are written; all must have written the same boxes.

python tests/benchmarks/annotations.py
python tests/benchmarks/annotations.py --files 5000 --repeats 5 --xml ARCHIVE.zip
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import platform
import pyexpat
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import click

REAL: Final = Path(__file__).resolve().parents[3] / "shared" / "data" / "annotations-real.zip"
GOAL_SECONDS: Final = 8.0
"""For 50,000 files on two processors."""

_FOLDER: Final = "Annotations/CLS-LOC/"
_COLUMNS: Final = ("ImageId", "split", "wnid", "xmin", "ymin", "xmax", "ymax", "width", "height")


def make(source: Path, folder: Path, files: int) -> None:
    """Write ``annotations.zip`` and the same unpacked to ``tree``: the XML files of an archive, repeated.

    Args:
        source: An archive with an ILSVRC tree and its mapping.
        folder: Where to write.
        files: How many files.
    """
    with zipfile.ZipFile(source) as old:
        names = [name for name in old.namelist() if _FOLDER in name and name.endswith(".xml")]
        texts = {name: old.read(name) for name in names}
        mapping = old.read("LOC_synset_mapping.txt")
    with zipfile.ZipFile(folder / "annotations.zip", "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("LOC_synset_mapping.txt", mapping)
        for number in range(files):
            name = names[number % len(names)]
            place, _, basename = name.rpartition("/")
            stem = basename.removesuffix(".xml")
            key = f"{stem.rpartition('_')[0]}_{number:08d}"
            content = texts[name].replace(f"<filename>{stem}<".encode(), f"<filename>{key}<".encode())
            new.writestr(f"{place}/{key}.xml", content)
    with zipfile.ZipFile(folder / "annotations.zip") as made:
        made.extractall(folder / "tree")


def imgprep_stage(folder: Path) -> Callable[[], Path]:
    """The stage, on an adopted zip."""
    # What it loads on the way is no part of its time, as with the others.
    import pandas as pd

    from imgprep.annotations import BOXES, annotations
    from imgprep.fetch import fetch
    from imgprep.workspace import Workspace

    pd.DataFrame({"warm": [1]}).to_csv(folder / "warm.csv")
    workspace = Workspace(folder / "workspace")
    fetch(workspace, folder / "annotations.zip")

    def run() -> Path:
        annotations(workspace)
        return workspace.catalog / BOXES

    return run


def etree_unpacked(folder: Path) -> Callable[[], Path]:
    """A loop over unpacked files."""

    def contents() -> Iterator[tuple[str, bytes]]:
        for top, _, names in os.walk(folder / "tree"):
            for name in names:
                if name.endswith(".xml"):
                    path = os.path.join(top, name)  # noqa: PTH118  # the quickest way, to be fair
                    with open(path, "rb") as file:  # noqa: PTH123
                        yield path, file.read()

    return lambda: _write(folder / "etree.csv", contents())


def etree_zip(folder: Path) -> Callable[[], Path]:
    """A loop over zipfile."""

    def contents() -> Iterator[tuple[str, bytes]]:
        with zipfile.ZipFile(folder / "annotations.zip") as archive:
            for name in archive.namelist():
                if name.endswith(".xml"):
                    yield name, archive.read(name)

    return lambda: _write(folder / "etree.csv", contents())


def _write(path: Path, contents: Iterable[tuple[str, bytes]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        for name, content in contents:
            table.writerows(_rows(name, content))
    return path


def _rows(name: str, content: bytes) -> Iterator[Sequence[str | None]]:
    root = ET.fromstring(content)
    key, split = name.rpartition("/")[2][:-4], "train" if "/train/" in name else "val"
    width, height = root.findtext("size/width"), root.findtext("size/height")
    for item in root.iterfind("object"):
        box = item.find("bndbox")
        assert box is not None
        sides = [box.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax")]
        yield key, split, item.findtext("name"), *sides, width, height


CONTENDERS: Final[Mapping[str, Callable[[Path], Callable[[], Path]]]] = {
    "imgprep": imgprep_stage,
    "etree, unpacked": etree_unpacked,
    "etree, zip": etree_zip,
}


def contend(name: str, folder: Path) -> dict[str, float]:
    """Run one contender; what it cost, and the sum over its sorted rows."""
    run = CONTENDERS[name](folder)
    before, cpu = time.perf_counter(), time.process_time()
    table = run()
    seconds, cpu = time.perf_counter() - before, time.process_time() - cpu
    with table.open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.reader(file))
    (folder / f"{name}.rows.json").write_text(json.dumps(rows), encoding="utf-8")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak, "boxes": len(rows) - 1}


def measure(source: Path, files: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Run all contenders so many times, each in a process of its own.

    Raises:
        RuntimeError: One fails, or two wrote other boxes.
    """
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="imgprep-benchmark-") as scratch:
        folder = Path(scratch)
        make(source, folder, files)
        for _ in range(repeats):
            for name, found in runs.items():
                shutil.rmtree(folder / "workspace", ignore_errors=True)
                child = [sys.executable, __file__, "contend", name, scratch]
                answer = subprocess.run(child, capture_output=True, text=True, check=False)
                if answer.returncode:
                    raise RuntimeError(f"{name} failed: {answer.stderr.strip().rpartition(chr(10))[2]}")
                found.append(json.loads(answer.stdout))
        tables = {name: (folder / f"{name}.rows.json").read_bytes() for name in runs}
    others = [name for name, rows in tables.items() if rows != tables["imgprep"]]
    if others:
        raise RuntimeError(f"the boxes of imgprep are not those of {' and '.join(others)}")
    return runs


def report(runs: Mapping[str, Sequence[Mapping[str, float]]], files: int) -> list[str]:
    """The costs as a table in Markdown, the ratios, and whether the goal is met."""
    medians = {name: statistics.median(run["seconds"] for run in found) for name, found in runs.items()}
    lines = [
        f"{files:,} files, {runs['imgprep'][0]['boxes']:,.0f} boxes, n={len(runs['imgprep'])}",
        "",
        "| contender | seconds: median (each) | CPU s | peak MB |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in runs.items():
        each = ", ".join(f"{run['seconds']:.2f}" for run in found)
        cpu, peak = (statistics.median(run[what] for run in found) for what in ("cpu_seconds", "peak_mb"))
        lines.append(f"| {name} | {medians[name]:.2f} ({each}) | {cpu:.2f} | {peak:.0f} |")
    lines += ["", *(f"imgprep against {name}: {seconds / medians['imgprep']:.2f} x as fast"
                    for name, seconds in medians.items() if name != "imgprep")]  # fmt: skip
    if files == 50_000:
        verdict = "met" if medians["imgprep"] <= GOAL_SECONDS else "MISSED"
        lines.append(f"goal: at most {GOAL_SECONDS:.0f} s: {medians['imgprep']:.2f} s, {verdict}")
    return lines


def machine() -> dict[str, str]:
    """The hardware, how busy it is, and the versions of everything that takes part."""
    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    model = next((line.partition(": ")[2] for line in cpus if line.startswith("model name")), platform.processor())
    return {
        "processor": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("imgprep", "lxml", "pandas", "numpy")},
        "expat (etree)": pyexpat.EXPAT_VERSION.removeprefix("expat_"),
    }


@click.command()
@click.option("--files", type=click.IntRange(1), default=50_000, show_default=True, help="Number of XML files.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Rounds over all contenders.")
@click.option(
    "--xml",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=REAL,
    help="Zip with an ILSVRC tree whose XML files are repeated; by default the real ones beside the checkout.",
)
@click.option("--json", "numbers", type=click.Path(dir_okay=False, path_type=Path), help="Also write all raw numbers.")
def main(files: int, repeats: int, source: Path, numbers: Path | None) -> None:
    """Measure reading annotations against loops over xml.etree."""
    found = machine()
    runs = measure(source, files, repeats)
    head = [f"command: {shlex.join(['python', *sys.argv])}", *(f"{name}: {value}" for name, value in found.items())]
    click.echo("\n".join([*head, "", *report(runs, files)]))
    if numbers is not None:
        document: dict[str, Any] = {"command": sys.argv, "machine": found, "files": files, "runs": runs}
        numbers.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["contend"]:
        click.echo(json.dumps(contend(sys.argv[2], Path(sys.argv[3]))))
    else:
        main()
