"""SVHN: its MAT files become pictures and classes, up to shards."""

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from imgprep.annotations import annotations
from imgprep.catalog import catalog
from imgprep.errors import SourceError
from imgprep.fetch import fetch
from imgprep.layouts import find_layout, get_layout
from imgprep.selection import SubsetSpec
from imgprep.shard import plan_job, shard
from imgprep.shard_plan import ShardSpec
from imgprep.sources import open_source
from imgprep.subset import subset
from imgprep.testing.containers import Container, mat_file, write_source
from imgprep.workspace import Workspace


def digits(number: int, *, seed: int = 0, compressed: bool = True) -> bytes:
    """A file as SVHN has it: smooth grounds with a stroke, labels 1 to 10 in turn."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((32, 32, 3, number), np.uint8)
    pixels[:] = rng.integers(40, 200, (1, 1, 3, number))
    pixels[4:28, 14:18] = rng.integers(0, 256, (1, 1, 3, number))
    labels = (np.arange(number) % 10 + 1).astype(np.uint8).reshape(-1, 1)
    return mat_file({"X": pixels, "y": labels}, compressed=compressed)


@pytest.mark.parametrize("container", get_args(Container))
def test_digits_go_all_the_way(tmp_path: Path, container: Container) -> None:
    files = {
        "svhn/train_32x32.mat": digits(40),
        "svhn/test_32x32.mat": digits(20, seed=1, compressed=False),
        "svhn/extra_32x32.mat": digits(10, seed=2),
        "svhn/readme.txt": b"",
    }
    workspace = Workspace(tmp_path / "w")
    workspace.root.mkdir()
    fetch(workspace, write_source(tmp_path / "a", files, container))
    stats = catalog(workspace).stats.to_dict()
    assert (stats["classes"], stats["train"], stats["val"], stats["ignored"]) == (10, 50, 20, 1)
    annotations(workspace)
    subset(workspace, SubsetSpec(classes=("zero", "7")), name="main")
    spec = ShardSpec(images="original")
    result = shard(workspace, plan_job(workspace, spec, subset="main"), spec)

    manifest = pd.read_csv(workspace.subset("main") / "manifest.csv", dtype={"wnid": str})
    assert (result.stats["train"], result.stats["val"], result.stats["rejected"]) == (10, 4, 0)
    assert manifest[manifest["wnid"] == "0"]["key"].tolist() == [
        "extra_000010", "train_000010", "train_000020", "train_000030", "train_000040", "test_000010", "test_000020",
    ]  # fmt: skip
    assert manifest["path"].iloc[1] == "svhn/train/0/000010.png"


def test_the_test_part_gives_the_labels_of_validation(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a", {"test_32x32.mat": digits(10)}, "zip")
    with open_source(path) as raw:
        layout = find_layout(raw)
        with layout.mount(raw) as source:
            listing = layout.scan(source)

    assert [(synset.wnid, synset.name) for synset in listing.catalog][:2] == [("0", "zero"), ("1", "one")]
    assert listing.label_lists[0].labels["test_000010"] == "0"
    assert {image.split for image in listing.images} == {"val"}


def test_a_file_that_is_there_twice_is_named(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a", {f"{folder}/train_32x32.mat": digits(10) for folder in "ab"}, "zip")
    layout = get_layout("svhn")
    with layout.mount(open_source(path)) as source, pytest.raises(SourceError, match=r"a/train/1/.* and b/train/1/"):
        layout.scan(source)


def test_without_its_files_nothing_is_mounted(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a", {"x": b""}, "zip")
    with open_source(path) as source, pytest.raises(SourceError, match=r"no \*_32x32\.mat"):
        get_layout("svhn").mount(source)
