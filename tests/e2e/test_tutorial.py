"""The tutorial is a script: it runs from an archive to a report, and a second time it has nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imgprep.testing.toy import ToySpec, write_toy_imagenet

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial"
SPEC = ToySpec(classes=6, per_class=40, val_per_class=4, test=2, min_side=40, max_side=72)


def fenced(page: str, language: str) -> list[str]:
    """The code blocks of a Markdown page in one language."""
    return [block.partition("```")[0] for block in page.split(f"```{language}\n")[1:]]


def run_script(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the tutorial's script in a folder, with the commands of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", str(TUTORIAL / "first-run.sh"), *args],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def written(folder: Path) -> dict[str, int]:
    """When each file of a workspace was written; the report is written anew each time, locks are touched."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {".lock", "report.md", "curves.png", "samples.png"}
    }


def test_page_shows_the_script() -> None:
    script = (TUTORIAL / "first-run.sh").read_text().splitlines()
    commands = [line for line in script if line and not line.startswith(("#", "set -eu"))]

    shown = "".join(fenced((TUTORIAL / "first-run.md").read_text(), "sh")).splitlines()

    assert shown == commands


@pytest.mark.slow
def test_script_runs_and_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    write_toy_imagenet(tmp_path / "toy.zip", SPEC)

    first = run_script(tmp_path, "toy.zip")

    assert first.returncode == 0, first.stderr
    assert "up to date" not in first.stdout
    report = tmp_path / "imgprep-data" / "runs" / "first" / "report.md"
    assert "## Evaluation: last checkpoint on split val" in report.read_text()
    before, text = written(tmp_path / "imgprep-data"), report.read_text()

    second = run_script(tmp_path, "toy.zip")

    assert second.returncode == 0, second.stderr
    assert second.stdout.count("up to date") == 3
    assert second.stderr.count("nothing to do") == 3
    assert written(tmp_path / "imgprep-data") == before
    assert report.read_text() == text


def test_script_without_an_archive_says_so(tmp_path: Path) -> None:
    result = run_script(tmp_path, "missing.zip")

    assert result.returncode == 2
    assert "missing.zip does not exist" in result.stderr
    assert list(tmp_path.iterdir()) == []
