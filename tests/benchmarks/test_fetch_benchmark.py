"""The benchmark of fetch runs, counts what goes over the wire, and says what is missing; on archives of no size."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from imgprep.testing.archives import VirtualSpec

SMALL = VirtualSpec(classes=4, train=60, val=8, test=2, train_xml=20, val_xml=8, picture_bytes=5_000)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("fetch_benchmark", Path(__file__).with_name("fetch.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scale(benchmark: ModuleType) -> Any:
    """Everything small."""
    return benchmark.Scale(directory=SMALL, members=SMALL, whole_bytes=5_000_000, classes=2, per_class=5, given=5)


def run(benchmark: ModuleType, part: str, scale: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(benchmark, "LATENCIES", dict.fromkeys(benchmark.STEPS, (0.0,)))
    runs = benchmark.measure(part, scale, folder, repeats=1, tell=lambda _: None)
    assert not [path for path in folder.iterdir() if path.suffix != ".zip"]
    assert all(run.total.cpu_seconds > 0 and 0 < run.total.peak_bytes < 1e9 for run in runs)
    text = "\n".join(benchmark.report(benchmark.machine(), runs))
    assert all(f"| {run.contender} |" in text for run in runs)
    return {run.contender: run.total for run in runs}


def test_directory(benchmark: ModuleType, scale: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = run(benchmark, "directory", scale, tmp_path, monkeypatch)

    # The end of the archive in one request, then members of 5 kB with their headers.
    assert costs["imgprep"].requests >= 2
    assert 65_000 < costs["imgprep"].wire_bytes < 150_000
    if "remotezip" in costs:
        assert costs["remotezip"].requests >= 1 + 5


def test_members(benchmark: ModuleType, scale: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [
        contender for contender in benchmark.CONTENDERS if contender.name in ("imgprep, 1 job", "fsspec, cat_ranges")
    ]
    monkeypatch.setattr(benchmark, "CONTENDERS", ends)
    costs = run(benchmark, "members", scale, tmp_path, monkeypatch)

    # What opening costs is not counted.
    assert 1 <= costs["imgprep, 1 job"].requests <= 10
    assert 20_000 < costs["imgprep, 1 job"].wire_bytes < 65_000 + 10 * 9_000
    if "fsspec, cat_ranges" in costs:
        assert costs["fsspec, cat_ranges"].requests == 10


def test_whole(benchmark: ModuleType, scale: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = run(benchmark, "whole", scale, tmp_path, monkeypatch)

    size = (tmp_path / "whole-5000000.zip").stat().st_size
    # Besides the archive its end: to find the directory, and once more before anything is written.
    assert size <= costs["imgprep"].wire_bytes < size + 200_000
    if "curl" in costs:
        assert costs["curl"].wire_bytes == size
        assert costs["curl"].requests == 1


def test_the_archive_made_once_is_whole_and_kept(benchmark: ModuleType, tmp_path: Path) -> None:
    path = benchmark.make_zip(tmp_path, 300_000)
    made = path.stat().st_mtime_ns

    assert benchmark.make_zip(tmp_path, 300_000).stat().st_mtime_ns == made
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert sum(info.file_size for info in archive.infolist()) == 330_000


def test_a_peer_that_is_absent_is_left_out(
    benchmark: ModuleType, scale: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = benchmark.Contender(part="whole", name="peer", steps=benchmark.curl_whole, needs=("no_such_module",))
    monkeypatch.setattr(benchmark, "CONTENDERS", (absent,))
    told: list[str] = []

    assert benchmark.measure("whole", scale, tmp_path, repeats=1, tell=told.append) == []
    assert told == ["whole: peer is left out: no_such_module is not installed"]


def test_a_child_that_fails_is_an_error(benchmark: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="role contend ended with status 1"):
        benchmark.Child("contend", {"part": "whole", "name": "nobody"})


def test_work_that_was_not_done_has_no_time(benchmark: ModuleType) -> None:
    job = benchmark.Job(url="http://127.0.0.1", names=["a", "b"])

    with pytest.raises(RuntimeError, match="1 of 2 members"):
        benchmark._check_work("read", {"members": 1}, job)


def test_goals_are_told_missed(benchmark: ModuleType) -> None:
    def cost(seconds: float, peak_bytes: int) -> Any:
        return benchmark.Cost(
            seconds=seconds,
            cpu_seconds=1.0,
            peak_bytes=peak_bytes,
            wire_bytes=1,
            requests=1,
            server_seconds=0.1,
        )

    runs = [
        benchmark.Run(part="directory", contender=name, latency=0.0, round=0, total=total, steps={})
        for name, total in {"imgprep": cost(2.0, 100), "slow": cost(20.0, 900), "small": cost(9.0, 2000)}.items()
    ]

    lines = benchmark.ratios("directory", runs)
    assert "goal: 5 x as fast as the best peer: 4.50 x, MISSED" in lines
    assert "goal: 10 x less memory than the best peer: 9.00 x, MISSED" in lines


def test_usage(benchmark: ModuleType) -> None:
    result = CliRunner().invoke(benchmark.main, ["everything"])

    assert result.exit_code == 2
    assert "directory" in result.output
