"""The benchmark of verify runs on shards of no size, which verify finds whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from imgprep.testing.toy import ToySpec, write_toy_imagenet

SCRIPT = Path(__file__).with_name("verify.py")


def test_it_compares_with_sha256sum(tmp_path: Path) -> None:
    write_toy_imagenet(tmp_path / "toy.zip", ToySpec(classes=2, per_class=6, val_per_class=1, test=0, min_side=32))
    command: list[str | Path] = [
        sys.executable,
        SCRIPT,
        "compare",
        tmp_path / "toy.zip",
        "--gigabytes",
        "0.002",
        "--rounds",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)

    assert found["num_bytes"] > 2_000_000
    assert found["samples"] > 100
    assert {"verify", "sha256sum"} <= found["seconds"].keys()
    assert found["ratio"]["sha256sum"] > 0
