from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from training.checkpoint import load
from training.cli import evaluate, report, train
from training.metrics import read_metrics
from training.runs import find_run, list_runs, read_record

# Real pictures of 16 pixels are enlarged to the recipe's 80: about 30 ms a step.
OPTIONS = ["--epochs", "3", "--batch-size", "4", "--log-every", "2", "--threads", "1", "--device", "cpu"]
HEAVY = ("torch", "torchvision", "numpy", "pandas", "cv2", "matplotlib", "rich")


def command(workspace: Path, *arguments: str) -> list[str]:
    name, *rest = arguments
    return [sys.executable, "-m", "training", name, "-w", str(workspace), *rest]


def call(workspace: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(workspace, *arguments),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def interrupt(workspace: Path, name: str, number: signal.Signals, lines: int) -> tuple[int, str]:
    """Start a run and send it a signal once it has written some lines of metrics."""
    arguments = command(workspace, "train", "--name", name, *OPTIONS)
    metrics = find_run(workspace, name).metrics
    with subprocess.Popen(
        arguments, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        deadline = time.monotonic() + 60
        while len(read_metrics(metrics)) < lines and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(number)
        _, spoken = process.communicate(timeout=60)
    return process.returncode, spoken


def final_weights(workspace: Path, name: str) -> dict[str, torch.Tensor]:
    state, _ = load(find_run(workspace, name).checkpoint("last"))
    assert (state.epoch, state.step) == (3, 0)
    return state.model | {f"average.{key}": value for key, value in (state.average or {}).items()}


def numbers(workspace: Path, name: str) -> list[tuple[Any, ...]]:
    keys = ("kind", "epoch", "step", "global_step", "loss", "top1", "top5", "lr", "val_loss", "val_correct")
    return [tuple(line.get(key) for key in keys) for line in read_metrics(find_run(workspace, name).metrics)]


@pytest.mark.slow
def test_a_run_killed_or_interrupted_goes_on_to_the_same_weights(workspace: Path) -> None:
    assert call(workspace, "train", "--name", "whole", *OPTIONS).returncode == 0
    expected = final_weights(workspace, "whole")
    assert len(numbers(workspace, "whole")) == 3 * (5 + 1)

    # 10 steps an epoch: 8 lines are the first epoch's six and two of the second.
    code, spoken = interrupt(workspace, "killed", signal.SIGKILL, 8)
    assert code == -signal.SIGKILL
    code, spoken = interrupt(workspace, "stopped", signal.SIGINT, 8)
    assert code == 130
    assert "stopped at epoch 2 step " in spoken
    assert "--resume --name stopped" in spoken
    assert "Traceback" not in spoken
    stopped, _ = load(find_run(workspace, "stopped").checkpoint("last"))
    assert stopped.epoch == 1
    assert stopped.step > 0

    # Both ways to go on: by --resume, and by the command that started the run.
    for name, again in (("killed", ["--resume", "--threads", "1"]), ("stopped", OPTIONS)):
        assert not find_run(workspace, name).is_finished
        refused = call(workspace, "train", "--name", name, *OPTIONS, "--seed", "7")
        assert refused.returncode == 2
        assert "seed: 0 is not 7" in refused.stderr
        resumed = call(workspace, "train", "--name", name, *again)
        assert resumed.returncode == 0, resumed.stderr
        found = final_weights(workspace, name)
        assert all(torch.equal(found[key], value) for key, value in expected.items())
        assert numbers(workspace, name) == numbers(workspace, "whole")


@pytest.mark.slow
def test_the_street_from_train_to_report(workspace: Path) -> None:
    trained = call(workspace, "train", *OPTIONS, "--json")
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    assert result["run"] == "tiny-1"
    assert "recipe tiny: AlexNet-BN at 64 px" in trained.stderr
    assert "because the training split has 40 samples (under 20,000)" in trained.stderr
    evaluated = call(workspace, "evaluate", "--json", "--threads", "1")
    assert json.loads(evaluated.stdout)["top1"] == result["top1"]
    again = call(workspace, "evaluate", "tiny-1", "--threads", "1")
    assert "nothing to do" in again.stderr
    assert again.stdout.startswith("run tiny-1, last on val: top-1 ")
    reported = call(workspace, "report")
    assert Path(reported.stdout.strip()).read_text().startswith("# Run tiny-1")
    done = call(workspace, "train", "--name", "tiny-1", *OPTIONS)
    assert done.returncode == 0
    assert "run tiny-1 is complete; nothing to do" in done.stderr
    other = call(workspace, "train", "--name", "tiny-1", *OPTIONS, "--seed", "5")
    assert other.returncode == 2
    assert "seed: 0 is not 5" in other.stderr
    nothing = call(workspace, "train", "--resume")
    assert nothing.returncode == 2
    assert "no unfinished run" in nothing.stderr


def test_a_dry_run_writes_nothing(workspace: Path) -> None:
    planned = call(workspace, "train", "--dry-run", "--epochs", "7", "--seed", "3", PYTHONWARNINGS="error")
    plan = json.loads(planned.stdout)
    assert (plan["run"], plan["train_samples"], plan["steps_per_epoch"], plan["steps"]) == ("tiny-1", 40, 1, 7)
    assert (plan["config"]["epochs"], plan["config"]["seed"]) == (7, 3)
    assert list_runs(workspace) == []
    assert not (workspace / "runs").exists()


def in_process(workspace: Path, *arguments: str) -> str:
    """Call ``train`` here, which spares loading torch; returns what it says and prints."""
    options = ["-w", str(workspace), "--device", "cpu", "--threads", "1", *arguments]
    result = CliRunner().invoke(train, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def names(workspace: Path) -> list[str]:
    return sorted(run.name for run in list_runs(workspace))


def test_the_command_that_started_a_run_goes_on_with_it_and_is_done_once(workspace: Path) -> None:
    first = in_process(workspace, "--epochs", "1")
    run = find_run(workspace, "tiny-1")
    trained_at = run.checkpoint("last").stat().st_mtime_ns

    again = in_process(workspace, "--epochs", "1")
    assert "run tiny-1 did this already; nothing to do (another --seed or --name makes another run)\n" in again
    assert again.splitlines()[-1] == first.splitlines()[-1]
    assert json.loads(in_process(workspace, "--epochs", "1", "--dry-run").partition("\n")[2])["run"] == "tiny-1"
    assert run.checkpoint("last").stat().st_mtime_ns == trained_at

    # As a kill would leave it.
    run.finished.unlink()
    gone_on = in_process(workspace, "--epochs", "1")
    assert "run tiny-1 has these options and is not finished; this goes on with it\n" in gone_on
    assert "going on with run tiny-1 at epoch 2 step 0" in gone_on
    assert run.is_finished
    assert names(workspace) == ["tiny-1"]

    for other in (["--seed", "1"], ["--overwrite"]):
        in_process(workspace, "--epochs", "1", *other)
    assert names(workspace) == ["tiny-1", "tiny-2", "tiny-3"]
    # A run that cannot be read is no obstacle to others.
    find_run(workspace, "tiny-3").config.write_text("{}")
    assert "run tiny-1 did this already" in in_process(workspace, "--epochs", "1")


def test_other_shards_make_another_run(workspace: Path, shard_writer: Callable[..., Path]) -> None:
    in_process(workspace, "--epochs", "1")
    shard_writer(workspace / "shards" / "more", splits={"train": 12, "val": 6}, seed=1)
    in_process(workspace, "--epochs", "1", "--shards", "more")
    assert names(workspace) == ["tiny-1", "tiny-2"]
    record = read_record(find_run(workspace, "tiny-2"))
    assert record.index_path == "shards/more/index.json"


def test_missing_shards_are_a_usage_error(tmp_path: Path) -> None:
    for arguments in (["train"], ["train", "--index", str(tmp_path)], ["evaluate"], ["report", "tiny-7"]):
        refused = call(tmp_path, *arguments)
        assert refused.returncode == 2
        assert refused.stderr.startswith("Error: ")
        assert "Traceback" not in refused.stderr


def test_a_missing_shard_and_a_damaged_one(workspace: Path, index_path: Path) -> None:
    shard = index_path.parent / "imgprep-train-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:600] + bytes([content[600] ^ 1]) + content[601:])
    shard.rename(shard.with_suffix(".away"))
    missing = call(workspace, "train", *OPTIONS)
    assert missing.returncode == 2
    assert "imgprep-train-000001.tar is missing" in missing.stderr
    assert list_runs(workspace) == []
    shard.with_suffix(".away").rename(shard)
    damaged = call(workspace, "train", *OPTIONS)
    assert damaged.returncode == 3
    assert "imgprep-train-000001.tar: CRC-32" in damaged.stderr
    assert "offset 512" in damaged.stderr
    assert "imgprep shard --overwrite" in damaged.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "0"],
        ["--batch-size", "0"],
        ["--lr", "0"],
        ["--seed", "-1"],
        ["--threads", "0"],
        ["--recipe", "huge"],
        ["--resume", "--overwrite"],
        ["--name", "../x"],
        ["--name", ""],
        ["--shards", "../../x"],
        ["--shards", ""],
        ["--shards", ".hidden"],
        ["--threads", "1025"],
    ],
)
def test_impossible_options_are_usage_errors(workspace: Path, arguments: list[str]) -> None:
    refused = call(workspace, "train", *arguments)
    assert refused.returncode == 2
    assert "Error: " in refused.stderr
    assert not (workspace / "runs").exists()


def test_resuming_with_other_options_is_refused(workspace: Path) -> None:
    interrupt(workspace, "one", signal.SIGINT, 1)
    refused = call(workspace, "train", "--resume", "--epochs", "9")
    assert refused.returncode == 2
    assert "run one was started with other options (epochs: 3 is not 9)" in refused.stderr


@pytest.mark.parametrize("name", ["train", "evaluate", "report"])
def test_help_loads_nothing_heavy_and_shows_examples(name: str) -> None:
    code = (
        "import sys; import training.cli\n"
        f"try: training.cli.{name}.main(['--help'], prog_name='imgprep {name}')\n"
        f"finally: assert not set(sys.modules) & set({HEAVY!r}), set(sys.modules) & set({HEAVY!r})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert f"Examples:\n    imgprep {name}" in shown.stdout
    assert "\\b" not in shown.stdout


def test_the_commands_can_be_mounted() -> None:
    assert [entry.name for entry in (train, evaluate, report)] == ["train", "evaluate", "report"]
