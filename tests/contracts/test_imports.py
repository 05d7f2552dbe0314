"""What a command loads before it runs: `--help` must stay quick, so it may load click and little else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from imgprep.cli import main

HEAVY = {
    "torch",
    "torchvision",
    "pandas",
    "numpy",
    "cv2",
    "PIL",
    "lxml",
    "simplejpeg",
    "rich",
    "webdataset",
    "matplotlib",
}

PROBE = """
import sys
from imgprep.cli import main
try:
    main({args!r}, prog_name="imgprep")
except SystemExit as exit:
    assert exit.code == 0, exit.code
print(sorted({{name.partition(".")[0] for name in sys.modules}} & set({heavy!r})), file=sys.stderr)
"""


def loaded_by(*args: str) -> str:
    """The heavy packages that a command line loads."""
    code = PROBE.format(args=list(args), heavy=sorted(HEAVY))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stderr.strip()


@pytest.mark.parametrize(
    "command", [[], *([name] for name in main.commands)], ids=lambda args: " ".join(args) or "imgprep"
)
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    assert loaded_by(*command, "--help") == "[]"


def test_version_loads_nothing_heavy() -> None:
    assert loaded_by("--version") == "[]"


def test_the_probe_notices_a_heavy_import() -> None:
    code = "import numpy\n" + PROBE.format(args=["--version"], heavy=sorted(HEAVY))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stderr.strip() == "['numpy']"


@pytest.mark.parametrize("module", ["imgprep", "training"])
def test_packages_run_as_modules(module: str) -> None:
    result = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)

    assert "Commands:" in result.stdout
    assert result.stderr == ""


def test_preparing_a_dataset_needs_no_torch(tmp_path: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import imgprep.fetch, imgprep.catalog, imgprep.annotations, imgprep.subset, imgprep.shard, imgprep.demo\n"
        "print('torchvision' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout == "False\n"
