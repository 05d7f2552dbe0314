"""The gate: everything a change has to pass, in one command. The tests come last, so their summary closes the output.

python tests/gate.py            all of it
python tests/gate.py -k shard   only these tests, after the other checks
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CHECKS: dict[str, list[str]] = {
    "format": ["-m", "ruff", "format", "--check", "--quiet", "."],
    "lint": ["-m", "ruff", "check", "--quiet", "."],
    "types": ["-m", "mypy"],
    "import contracts": ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
    "tests": ["-m", "pytest", "-q"],
}


def main(arguments: list[str]) -> int:
    """Run the checks one after another; arguments go to pytest.

    Returns:
        0 when all passed, else 1.
    """
    failed = []
    for name, command in CHECKS.items():
        print(f"== {name}", flush=True)  # noqa: T201  # the gate talks to a person
        start = time.monotonic()
        extra = arguments if name == "tests" else []
        result = subprocess.run([sys.executable, *command, *extra], cwd=ROOT, check=False)
        if result.returncode:
            failed.append(name)
            print(f"== {name} failed", flush=True)  # noqa: T201
        elif name != "tests":
            print(f"== {name} passed in {time.monotonic() - start:.0f} s", flush=True)  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
