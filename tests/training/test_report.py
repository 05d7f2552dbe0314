from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from training.config import TrainConfig
from training.console import Console
from training.evaluate import evaluate
from training.report import report
from training.runs import Run, RunRecord, claim, find_run
from training.train import train


@pytest.fixture
def run(workspace: Path, index_path: Path, small_config: TrainConfig, console: Console) -> Run:
    run = find_run(workspace, "one")
    train(small_config, run, index_path=index_path, console=console, device="cpu", threads=1)
    return run


def test_a_report_says_what_was_trained_on_what(run: Run, console: Console) -> None:
    document, _ = evaluate(run, console=console, device="cpu", threads=1)
    text = report(run)[0].read_text()
    top1 = document["top1"]
    assert text.startswith("# Run one\n")
    assert text.count(f"{100 * top1['share']:.1f} % ({top1['correct']} of 17; ") == 2
    assert "split train: 40 samples in 2 shards" in text
    assert "6 classes: colour 0 (n00000000), " in text
    assert "| epochs | 2 of batches up to 8; seed 0 |" in text
    assert "one view, no test-time augmentation" in text
    pictures = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert pictures == ["samples.png", "curves.png", "eval.confusion.png", "eval.predictions.png"]
    assert all((run.folder / picture).exists() for picture in pictures)


def test_a_report_of_an_unevaluated_run_without_its_shards_says_so(run: Run, index_path: Path) -> None:
    shutil.rmtree(index_path.parent)
    text = report(run)[0].read_text()
    assert "the shards are no longer where run one found them" in text
    assert "Not evaluated yet: `imgprep evaluate`" in text
    assert "samples.png" not in text


def test_a_report_of_a_run_that_has_just_begun(workspace: Path, small_config: TrainConfig) -> None:
    run = find_run(workspace, "new")
    run.folder.mkdir(parents=True)
    record = RunRecord(
        config=small_config, dataset_digest="a" * 64, index_path="/gone", num_classes=6, device="cpu", versions={}
    )
    claim(run, record, resume=False)
    assert "not finished: it stands before its first full epoch" in report(run)[0].read_text()


def test_a_report_is_written_again_only_when_something_changed(run: Run, console: Console) -> None:
    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()}

    assert report(run) == (run.report, True)
    before = times()
    assert report(run) == (run.report, False)
    assert times() == before
    evaluate(run, console=console, device="cpu", threads=1)
    assert report(run)[1]
    run.curves.unlink()
    assert report(run)[1]
    assert run.curves.exists()


def test_a_report_needs_no_torch(run: Run) -> None:
    code = (
        "import sys; from pathlib import Path; from training.report import report; from training.runs import Run\n"
        "report(Run(folder=Path(sys.argv[1]))); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run.folder)], check=True, timeout=60)
