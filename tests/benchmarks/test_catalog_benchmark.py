"""The benchmark of the tables runs, on archives of no size, and says what is missed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from imgprep.catalog import catalog
from imgprep.tables import read_catalog, read_manifest
from imgprep.testing.archives import VirtualImagenet, VirtualSpec

SMALL = VirtualSpec(classes=4, train=60, val=8, test=0, train_xml=20, val_xml=8, picture_bytes=5_000)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("catalog_benchmark", Path(__file__).with_name("catalog.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_both_parts_count_their_rows(benchmark: ModuleType, tmp_path: Path) -> None:
    scale = benchmark.Scale(imagenet=SMALL, classes=2, per_class=5, synsets=7, pictures=50, many=3, per_class_of_many=2)

    runs = [run for part in benchmark.PARTS.values() for run in part(scale, tmp_path, 1)]

    assert [(run.part, run.step, run.rows) for run in runs] == [
        ("imagenet", "catalog", 68),
        ("imagenet", "subset", 2 * 5 + 2 * 2),
        ("imagenet21k", "catalog", 50),
        ("imagenet21k", "subset", 3 * 2),
    ]
    assert all(0 < run.seconds < 100 and 10e6 < run.peak_bytes < 1e9 for run in runs)
    assert [*tmp_path.iterdir()] == []
    lines = benchmark.report(runs)
    assert "| imagenet | catalog | 68 |" in lines[2]
    assert lines[2].endswith("goal 10 s, 1,500 MB: met")


def test_a_sparse_archive_has_the_tables_of_the_whole(benchmark: ModuleType, tmp_path: Path) -> None:
    archive = VirtualImagenet(SMALL)
    archive.write(tmp_path / "whole.zip")
    benchmark.write_sparse(archive, tmp_path / "sparse.zip")

    tables = []
    for name in ("whole", "sparse"):
        workspace = benchmark.adopt(tmp_path / f"{name}.zip", tmp_path / name)
        catalog(workspace)
        tables.append([(workspace.catalog / table).read_bytes() for table in ("classes.csv", "manifest.csv")])
    assert tables[0] == tables[1]
    benchmark.label_val(workspace, tmp_path / "sparse.zip")
    assert (workspace.catalog / "val.csv").read_text().count("\n") == 1 + SMALL.val


def test_a_directory_of_pictures_is_one_to_others_too(benchmark: ModuleType, tmp_path: Path) -> None:
    benchmark.write_directory(tmp_path / "many.zip", synsets=3, pictures=20)
    workspace = benchmark.adopt(tmp_path / "many.zip", tmp_path / "many")

    catalog(workspace)

    rows = read_manifest(workspace.catalog / "manifest.csv", made_by="")
    with zipfile.ZipFile(tmp_path / "many.zip") as archive:
        listed = {info.filename: (info.file_size, info.CRC) for info in archive.infolist()}
    assert {
        path: (n, crc) for path, n, crc in zip(rows["path"], rows["num_bytes"], rows["crc32"], strict=True)
    } == listed
    assert len(read_catalog(workspace.catalog / "classes.csv")) == 3


def test_the_memory_of_a_catalog_grows_by_few_bytes_a_row(benchmark: ModuleType, tmp_path: Path) -> None:
    def peak(synsets: int) -> int:
        archive = tmp_path / f"{synsets}.zip"
        benchmark.write_directory(archive, synsets=synsets, pictures=synsets * 1000)
        workspace = benchmark.adopt(archive, tmp_path / str(synsets))
        tracemalloc.start()
        try:
            catalog(workspace)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # what is loaded once
    small, large = peak(20), peak(60)

    # An object for each picture takes some 500; a row of the manifest alone has 109.
    assert (large - small) / 40_000 < 90


def test_goals_are_told_missed(benchmark: ModuleType) -> None:
    slow = benchmark.Run(part="imagenet", step="subset", seconds=10.1, peak_bytes=1, rows=1)
    large = benchmark.Run(part="imagenet", step="catalog", seconds=1.0, peak_bytes=1_500_000_001, rows=1)

    assert [line.rpartition(" ")[2] for line in benchmark.report([slow, large])[2:]] == ["MISSED", "MISSED"]


def test_a_step_that_fails_is_an_error(benchmark: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        benchmark.measure("imagenet", "catalog", benchmark.Workspace(tmp_path / "none"))


def test_usage(benchmark: ModuleType) -> None:
    result = CliRunner().invoke(benchmark.main, ["everything"])

    assert result.exit_code == 2
    assert "imagenet21k" in result.output
