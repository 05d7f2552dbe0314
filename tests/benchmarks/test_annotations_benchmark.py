"""The benchmark of annotations runs, compares what was written, and says whether its goal is met."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("annotations_benchmark", Path(__file__).with_name("annotations.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_all_contenders_write_the_same_boxes(benchmark: ModuleType, toy_zip: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    result = CliRunner().invoke(
        benchmark.main, ["--files", "60", "--repeats", "1", "--xml", str(toy_zip), "--json", str(numbers)]
    )

    assert result.exit_code == 0, result.exception
    assert "60 files, " in result.stdout
    assert all(f"| {name} | " in result.stdout for name in benchmark.CONTENDERS)
    assert "imgprep against etree, unpacked: " in result.stdout
    assert "goal" not in result.stdout
    assert numbers.is_file()


def test_other_boxes_are_an_error(
    benchmark: ModuleType, toy_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "other.py"
    text = Path(str(benchmark.__file__)).read_text(encoding="utf-8")
    assert text.count('"ymin", "xmax", "ymax")]') == 1
    script.write_text(text.replace('"ymin", "xmax", "ymax")]', '"ymin", "xmax", "xmax")]'), encoding="utf-8")
    monkeypatch.setattr(benchmark, "__file__", str(script))
    with pytest.raises(RuntimeError, match="the boxes of imgprep are not those of etree, unpacked and etree, zip"):
        benchmark.measure(toy_zip, 30, 1)


def test_a_contender_that_fails_is_an_error(
    benchmark: ModuleType, toy_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "CONTENDERS", {"nobody": None})
    with pytest.raises(RuntimeError, match=r"^nobody failed: KeyError"):
        benchmark.measure(toy_zip, 30, 1)


@pytest.mark.parametrize(("seconds", "verdict"), [(7.9, "met"), (8.1, "MISSED")])
def test_the_goal_is_told(benchmark: ModuleType, seconds: float, verdict: str) -> None:
    def run(seconds: float) -> dict[str, float]:
        return {"seconds": seconds, "cpu_seconds": 1.0, "peak_mb": 1.0, "boxes": 5}

    lines = benchmark.report({"imgprep": [run(seconds)], "etree, zip": [run(4.05)]}, 50_000)

    assert lines[-1] == f"goal: at most 8 s: {seconds:.2f} s, {verdict}"
    assert lines[-2] == f"imgprep against etree, zip: {4.05 / seconds:.2f} x as fast"
