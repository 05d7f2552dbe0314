"""``imgprep demo`` as a user runs it: a process of its own, twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image


def run_demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IMGPREP")}
    return subprocess.run(
        [sys.executable, "-m", "imgprep", "demo", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_walks_the_street_and_redoes_nothing(tmp_path: Path) -> None:
    first = run_demo(tmp_path)
    assert first.returncode == 0, first.stderr
    workspace = tmp_path / "imgprep-demo"
    run = workspace / "runs" / "demo"
    written = {p: p.stat().st_mtime_ns for p in workspace.rglob("*") if p.is_file() and p.name != ".lock"}
    start = time.monotonic()
    second = run_demo(tmp_path)
    seconds = time.monotonic() - start

    # What it says: every stage, and where the report and the grid are.
    for text in ("[1/7]", "$ imgprep fetch", "$ imgprep subset", "$ imgprep shard", "$ imgprep train", "[7/7]"):
        assert text in first.stdout
    report, grid = (line.split()[-1] for line in first.stdout.splitlines()[-2:])
    assert (tmp_path / report).read_text().startswith("# ")
    with Image.open(tmp_path / grid) as image:
        assert min(image.size) > 200
    # What it learned: well above the 10 % of chance on ten classes.
    evaluation = json.loads((run / "eval.json").read_text())
    assert evaluation["top1"]["total"] == 200
    assert evaluation["top1"]["share"] > 0.5
    # The second time nothing is done again.
    assert second.returncode == 0, second.stderr
    again = {p: p.stat().st_mtime_ns for p in workspace.rglob("*") if p.is_file() and p.name != ".lock"}
    assert again == written
    assert (second.stdout + second.stderr).count("up to date") == 4
    assert (second.stdout + second.stderr).count("nothing to do") == 3
    assert seconds < 60


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_fetches_a_part_as_if_online(tmp_path: Path) -> None:
    first = run_demo(tmp_path, "--online-like")
    assert first.returncode == 0, first.stderr
    workspace = tmp_path / "imgprep-demo-online"
    part = workspace / "raw" / "imagenet-object-localization-challenge"
    record = json.loads((part / "fetch.json").read_text())
    share = re.search(r"MB on the wire \((\d+\.\d+)% of the archive\)", first.stdout)
    second = run_demo(tmp_path, "--online-like")

    assert share is not None
    assert 0 < float(share[1]) < 60
    assert json.loads((workspace / "raw" / "source.json").read_text())["kind"] == "part"
    assert record["num_members"] == len([path for path in part.rglob("*") if path.is_file()]) - 2
    assert json.loads((workspace / "runs" / "demo" / "eval.json").read_text())["top1"]["share"] > 0.5
    assert second.returncode == 0, second.stderr
    assert (second.stdout + second.stderr).count("up to date") == 4
