"""The benchmark of shard runs on few pictures, and every contender comes to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from imgprep.testing.toy import ToySpec, write_toy_imagenet

SCRIPT = Path(__file__).with_name("shard.py")


def test_every_contender_is_measured(tmp_path: Path) -> None:
    write_toy_imagenet(
        tmp_path / "toy.zip", ToySpec(classes=2, per_class=6, val_per_class=1, test=0, min_side=300, max_side=320)
    )
    command: list[str | Path] = [sys.executable, "-W", "ignore", SCRIPT, tmp_path / "toy.zip"]
    command += ["--copies", "1200", "--shrinks", "60", "--rounds", "1", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    copies, shrinks = map(json.loads, done.stdout.splitlines())

    assert copies["ours_is_so_many_times_as_fast_as"].keys() == {
        "imgprep, threads", "imgprep, processes, side files", "bare loop", "zipfile + webdataset", "unzip, then tar",
    }  # fmt: skip
    assert shrinks["ours_is_so_many_times_as_fast_as"].keys() == {"bare calls", "Pillow processes + webdataset"}
    assert all(rate > 0 for rate in shrinks["images_per_second"].values())
