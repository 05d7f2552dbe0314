"""The benchmark of doctor runs and counts what it finds, on input of no size."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from imgprep.testing.toy import ToySpec, write_toy_imagenet

SCRIPT = Path(__file__).with_name("doctor.py")


def lines(*args: str | Path) -> list[dict[str, object]]:
    done = subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_search_finds_what_was_planted() -> None:
    found = lines("search", "--count", "3000", "--repeats", "1")

    assert [(one["kind"], one["distance"]) for one in found] == [
        ("random", 0),
        ("random", 4),
        ("random", 8),
        ("crowded", 4),
    ]
    near = [int(str(one["near"])) for one in found]
    assert near[0] < near[1] <= near[2]
    assert near[1] > 100
    assert all(float(str(one["seconds"])) > 0 for one in found)


def test_the_walk_counts_what_decodes(tmp_path: Path) -> None:
    listing = write_toy_imagenet(
        tmp_path / "toy.zip", ToySpec(classes=2, per_class=10, val_per_class=1, test=0, min_side=32, max_side=40)
    )
    with zipfile.ZipFile(tmp_path / "toy.zip") as archive:
        pictures = sum(name.endswith(".JPEG") for name in archive.namelist())
    found = lines("walk", tmp_path / "toy.zip", "--repeats", "1")

    assert [one["workers"] for one in found] == [1, 0]
    # One odd file is cut off, one is empty.
    assert {(one["pictures"], one["decoded"]) for one in found} == {(pictures, pictures - 2)}
    assert pictures == listing.train + listing.val
