from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from imgprep.errors import DamagedError, LockedError, MissingInputError, OutputExistsError, SpecError
from training.recipes import tiny
from training.runs import (
    Run,
    RunRecord,
    begin,
    claim,
    clear,
    find_run,
    free_name,
    locked,
    newest_run,
    read_record,
    resume_command,
    write_json,
    write_record,
)

RECORD = RunRecord(
    config=tiny(), dataset_digest="a" * 64, index_path="/x/index.json", num_classes=6, device="cpu", versions={}
)

MEASURED = {"k": 1, "correct": 1, "total": 4, "share": 0.25, "low": 0.05, "high": 0.7}
FINISHED = {
    "epochs": 60,
    "seconds": 1.5,
    "top1": MEASURED,
    "top5": MEASURED | {"k": 5},
    "checkpoint_sha256": hashlib.sha256(b"weights").hexdigest(),
}


def started(workspace: Path, name: str) -> Run:
    run = find_run(workspace, name)
    run.folder.mkdir(parents=True)
    claim(run, RECORD, resume=False)
    return run


def finish(run: Run) -> None:
    run.checkpoint("last").write_bytes(b"weights")
    write_json(run.finished, FINISHED)


def test_a_record_comes_back(tmp_path: Path) -> None:
    run = started(tmp_path, "one")
    assert read_record(run) == RECORD
    run.config.write_text(run.config.read_text().replace('"epochs"', '"epoch"'))
    with pytest.raises(DamagedError, match="unknown key epoch, missing key epochs"):
        read_record(run)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../b", "/b", "-x", "a b", "a\n", "x" * 101])
def test_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="a run's name must be"):
        find_run(tmp_path, name)


def test_names_count_upwards(tmp_path: Path) -> None:
    assert free_name(tmp_path, "tiny") == "tiny-1"
    started(tmp_path, "tiny-1")
    started(tmp_path, "tiny-3")
    assert free_name(tmp_path, "tiny") == "tiny-2"


def test_the_newest_run_is_the_one_started_last(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="run `imgprep train` first"):
        newest_run(tmp_path)
    for age, name in enumerate(["b", "c", "a"]):
        run = started(tmp_path, name)
        os.utime(run.config, ns=(age, age))
    assert newest_run(tmp_path).name == "a"
    finish(find_run(tmp_path, "a"))
    assert newest_run(tmp_path, unfinished=True).name == "c"
    for name in ("b", "c"):
        finish(find_run(tmp_path, name))
    with pytest.raises(MissingInputError, match="no unfinished run"):
        newest_run(tmp_path, unfinished=True)


def test_an_unknown_run_names_the_known_ones(tmp_path: Path) -> None:
    started(tmp_path, "one")
    with pytest.raises(MissingInputError, match=r"there is no run two .*runs here: one"):
        read_record(find_run(tmp_path, "two"))


def test_claiming_an_existing_run(tmp_path: Path) -> None:
    run = started(tmp_path, "one")
    # Unfinished and the same request: the command that started it goes on with it.
    assert claim(run, RECORD, resume=False) is None
    assert claim(run, RECORD, resume=True) is None
    other = replace(RECORD, config=replace(tiny(), epochs=3), dataset_digest="b" * 64)
    with pytest.raises(OutputExistsError, match=r"epochs: \d+ is not 3; dataset digest: aaaaaaaaaaaa is not bbbbbb"):
        claim(run, other, resume=True)
    finish(run)
    assert claim(run, RECORD, resume=False) == FINISHED
    begin(run, other)
    assert read_record(run) == other
    assert not run.is_finished


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no run two to resume"):
        claim(find_run(tmp_path, "two"), RECORD, resume=True)


def test_overwriting_removes_only_what_runs_write(tmp_path: Path) -> None:
    run = started(tmp_path, "one")
    for name in ("metrics.jsonl", "eval.json", "curves.png", "notes.txt", "mine.png", "checkpoints/last.pt"):
        (run.folder / name).write_text("x")
    clear(run)
    assert sorted(path.name for path in run.folder.iterdir()) == ["mine.png", "notes.txt"]
    with pytest.raises(OutputExistsError, match="holds files but no run"):
        clear(run)
    assert (run.folder / "notes.txt").read_text() == "x"


def test_a_run_is_held_by_one_process_and_let_go_at_its_death(tmp_path: Path) -> None:
    run = started(tmp_path, "one")
    code = (
        "import sys, time; from pathlib import Path; from training.runs import *\n"
        "with locked(Run(folder=Path(sys.argv[1]))): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run.folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match="run one is in use"), locked(run):
            pass
        other.kill()
        other.wait()
        with locked(run):
            pass


def test_the_command_to_go_on_fits_the_workspace() -> None:
    assert resume_command(find_run(Path("imgprep-data"), "a")) == "imgprep train --resume --name a"
    assert resume_command(find_run(Path("my data"), "a")) == "imgprep train -w 'my data' --resume --name a"


def test_records_replace_atomically(tmp_path: Path) -> None:
    run = started(tmp_path, "one")
    write_record(run, RECORD)
    assert not list(run.folder.glob("*.tmp"))


def test_a_run_killed_before_its_record_was_written_leaves_its_name_usable(tmp_path: Path) -> None:
    run = find_run(tmp_path, "k")
    (run.folder / "checkpoints").mkdir(parents=True)
    (run.folder / ".lock").touch()

    assert claim(run, RECORD, resume=False) is None
    assert run.exists


def test_going_on_removes_half_written_checkpoints(tmp_path: Path) -> None:
    run = started(tmp_path, "one")
    half = run.folder / "checkpoints" / ".last.pt.abc.tmp"
    half.write_bytes(b"half")

    assert claim(run, RECORD, resume=True) is None
    assert not half.exists()
