"""Files of a run that were edited, cut short, lost or moved: one clear error, or the work is done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imgprep.errors import DamagedError, ImgprepError
from training import checkpoint as checkpoints
from training.config import TrainConfig
from training.console import Console
from training.evaluate import evaluate
from training.report import report
from training.runs import Run, find_run, index_of, read_json, read_record, stored_index_path
from training.train import train

NESTED = "[" * 200_000


@pytest.fixture(scope="module")
def _done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"root": tmp_path_factory.mktemp("done") / "workspace"}


@pytest.fixture
def run(_done: dict[str, Path], workspace: Path, small_config: TrainConfig, console: Console) -> Run:
    """A finished and evaluated run, trained once for all tests here."""
    if not _done["root"].exists():
        made = find_run(workspace, "one")
        train(small_config, made, index_path=workspace / "shards/main/index.json", console=console, threads=1)
        evaluate(made, console=console, threads=1)
        shutil.copytree(workspace, _done["root"])
    shutil.copytree(_done["root"], workspace, dirs_exist_ok=True)
    return find_run(workspace, "one")


def go_on(run: Run, console: Console) -> dict[str, Any]:
    record = read_record(run)
    return train(record.config, run, index_path=index_of(run, record), console=console, threads=1, resume=True)


def measure(run: Run, console: Console) -> object:
    return evaluate(run, console=console, device="cpu", threads=1)


def write_up(run: Run, console: Console) -> object:
    return report(run)


def edited(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


@pytest.mark.parametrize("use", [go_on, write_up])
@pytest.mark.parametrize("content", ['{"run": 1}', "{}", "", NESTED, '{"top1": 1', "\xff"])
def test_a_broken_outcome_is_damage(run: Run, console: Console, content: str, use: Callable[..., object]) -> None:
    run.finished.write_text(content, encoding="latin-1")
    with pytest.raises(DamagedError, match=r"finished\.json is .* - remove it, and `imgprep train .*--resume"):
        use(run, console)


def test_removing_a_broken_outcome_writes_it_again(run: Run, console: Console) -> None:
    known = read_json(run.finished, advice="")
    run.finished.unlink()
    again = go_on(run, console)
    assert (again["top1"], again["checkpoint_sha256"]) == (known["top1"], known["checkpoint_sha256"])


@pytest.mark.parametrize("content", ["{}", '{"top1": {}}', "", NESTED])
def test_broken_measurements_are_made_again_and_not_reported(run: Run, console: Console, content: str) -> None:
    file = run.folder / "eval.json"
    known = file.read_text()
    if content.startswith('{"'):
        edited(file, lambda document: document.update(json.loads(content)))
    else:
        file.write_text(content)
    with pytest.raises(DamagedError, match=r"eval\.json is .* - run `imgprep evaluate one`$"):
        report(run)
    document, measured_now = evaluate(run, console=console, device="cpu", threads=1)
    assert measured_now
    assert document == json.loads(known)
    assert report(run)[1]


def test_the_advice_names_the_measurement(run: Run) -> None:
    (run.folder / "eval-best-val.json").write_text("{}")
    with pytest.raises(DamagedError, match="run `imgprep evaluate one --checkpoint best --split val`"):
        report(run)


@pytest.mark.parametrize("picture", ["eval.confusion.png", "eval.predictions.png"])
def test_a_lost_picture_is_drawn_again(run: Run, console: Console, picture: str) -> None:
    (run.folder / picture).unlink()
    assert evaluate(run, console=console, device="cpu", threads=1)[1]
    assert (run.folder / picture).exists()
    report(run)
    assert not report(run)[1]


@pytest.mark.parametrize("use", [go_on, write_up])
@pytest.mark.parametrize("line", [b"\xff\xfe", b"{}", b'{"kind": "epoch"}'])
def test_broken_metrics_are_damage(run: Run, console: Console, line: bytes, use: Callable[..., object]) -> None:
    with run.metrics.open("ab") as stream:
        stream.write(line + b"\n")
    run.finished.unlink()
    with pytest.raises(DamagedError, match=r"line 5 of .*metrics\.jsonl is not a line of metrics"):
        use(run, console)


@pytest.mark.parametrize("use", [go_on, measure, write_up])
@pytest.mark.parametrize("content", [NESTED, "", "[]", "{}", "\xff"])
def test_a_broken_record_is_damage(run: Run, console: Console, content: str, use: Callable[..., object]) -> None:
    run.config.write_text(content, encoding="latin-1")
    with pytest.raises(DamagedError, match=r"config\.json is .* - train anew with --name one --overwrite"):
        use(run, console)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(index_path="a\0b"),
        lambda document: document.update(index_path="\ud800"),
        lambda document: document.update(num_classes=None),
        lambda document: document.update(versions=[]),
        lambda document: document["config"].update(checkpoint_seconds=10**400),
    ],
)
def test_odd_values_in_a_record_are_damage(run: Run, change: Callable[[dict[str, Any]], object]) -> None:
    edited(run.config, change)
    with pytest.raises(DamagedError, match=r"config\.json is incomplete or was edited"):
        read_record(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(num_classes=7), "num_classes: 7 is not 6"),
        (lambda document: document["config"]["model"].update(width=0.25), r"model\.width: 0\.25 is not 0\.125"),
    ],
)
def test_an_edited_record_is_not_measured(
    run: Run, console: Console, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edited(run.config, change)
    with pytest.raises(DamagedError, match=rf"config\.json was edited: its checkpoint says otherwise \({message}\)"):
        measure(run, console)


def test_a_broken_report_is_written_again(run: Run) -> None:
    report(run)
    run.report.write_bytes(b"\xff" + run.report.read_bytes())
    assert report(run)[1]
    assert run.report.read_text().startswith("# Run one")


def test_a_finished_run_without_its_weights_is_trained_again(run: Run, console: Console) -> None:
    known = read_json(run.finished, advice="")
    run.checkpoint("last").unlink()
    assert not run.is_finished
    assert go_on(run, console)["top1"] == known["top1"]
    assert run.is_finished
    shutil.rmtree(run.folder / "checkpoints")
    run.finished.unlink()
    assert go_on(run, console)["top1"] == known["top1"]


def test_a_finished_run_with_other_weights_is_not_complete(run: Run, console: Console) -> None:
    known = read_json(run.finished, advice="")
    state, _ = checkpoints.load(run.checkpoint("last"))
    run.checkpoint("last").write_bytes(checkpoints.to_bytes(state) + b"\0")
    assert go_on(run, console)["top1"] == known["top1"]
    run.checkpoint("last").write_bytes(b"cut")
    with pytest.raises(DamagedError, match=r"last\.pt is not a readable checkpoint"):
        go_on(run, console)
    with pytest.raises(ImgprepError):
        evaluate(run, console=console)


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_a_moved_or_copied_workspace_uses_its_own_shards(
    run: Run, console: Console, tmp_path_factory: pytest.TempPathFactory, how: Callable[..., object]
) -> None:
    old, new = run.workspace, tmp_path_factory.mktemp("elsewhere") / "workspace"
    assert json.loads(run.config.read_text())["index_path"] == "shards/main/index.json"
    how(old, new)
    shutil.rmtree(old / "shards", ignore_errors=True)
    moved = find_run(new, "one")
    (moved.folder / "eval.json").unlink()
    assert evaluate(moved, console=console, device="cpu", threads=1)[1]
    assert "split train: 40 samples" in report(moved)[0].read_text()
    moved.finished.unlink()
    assert go_on(moved, console)["run"] == "one"


def test_shards_outside_the_workspace_are_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "shards").symlink_to(tmp_path / "far")
    monkeypatch.chdir(tmp_path)
    run = find_run(Path("space"), "one")
    assert stored_index_path(run, Path("far/index.json")) == str(tmp_path / "far" / "index.json")
    for inside in (Path("space/shards/index.json"), tmp_path / "space/shards/index.json"):
        assert stored_index_path(run, inside) == "shards/index.json"
    assert stored_index_path(find_run(tmp_path / "far", "one"), Path("space/../far/index.json")) == "index.json"


def test_the_folder_of_an_index_will_do(run: Run, console: Console) -> None:
    folder = run.workspace / "shards" / "main"
    (run.folder / "eval.json").unlink()
    assert evaluate(run, console=console, device="cpu", threads=1, index_path=folder)[1]
    assert "split train: 40 samples" in report(run, index_path=folder)[0].read_text()
