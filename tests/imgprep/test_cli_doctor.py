"""Command doctor: what it prints, and how it ends."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imgprep.cli.doctor import doctor
from imgprep.errors import DamagedError, MissingInputError
from imgprep.fetch import fetch
from imgprep.findings import CODES
from imgprep.testing.toy import ToyListing
from imgprep.workspace import Workspace

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in the folder of the workspace; errors are raised."""
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(doctor, [str(arg) for arg in args], catch_exceptions=False)


def test_it_makes_what_it_needs_and_tells_what_it_found(fetched: Workspace, run: Run) -> None:
    result = run()
    lines = result.stdout.splitlines()
    again = run().stdout.splitlines()

    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["catalog", "annotations"]
    assert lines[0] == "doctor: 69 pictures, 5 odd, 0 with a twin -> imgprep-data/catalog/doctor.csv"
    assert [line.split()[:2] for line in lines[1:-1]] == [
        [code, "1"] for code in ("not-an-image", "undecodable", "truncated", "wrong-extension", "cmyk", "rotated")
    ]
    assert lines[-1] == "some of each: imgprep-data/catalog/doctor.png"
    assert again == [line.replace("doctor: ", "up to date: ") for line in lines]


def test_as_json_it_is_one_object(fetched: Workspace, run: Run) -> None:
    document = json.loads(run("--json").stdout)

    assert {name: document[name] for name in ("action", "pictures", "odd", "in_pairs", "crowded")} == {
        "action": "run",
        "pictures": 69,
        "odd": 5,
        "in_pairs": 0,
        "crowded": 0,
    }
    assert document["findings"]["cmyk"]["count"] == 1
    assert list(document["findings"]) == [code for code in CODES if code in document["findings"]]
    assert Path(document["table"]).is_file()
    assert Path(document["sheet"]).is_file()


@pytest.mark.parametrize(
    ("codes", "named"),
    [
        ("cmyk,leak", "cmyk 1"),
        ("any", "not-an-image 1, undecodable 1, truncated 1"),
        ("rotated, cmyk", "rotated 1, cmyk 1"),
    ],
)
def test_fail_on_ends_with_three_after_everything_was_written(
    fetched: Workspace, run: Run, codes: str, named: str
) -> None:
    with pytest.raises(DamagedError, match=f"found what --fail-on names: {named}") as caught:
        run("--fail-on", codes)

    assert caught.value.exit_code == 3
    assert (fetched.catalog / "doctor.csv").is_file()


def test_fail_on_a_label_conflict(tmp_path: Path, run: Run, toy: tuple[Path, ToyListing]) -> None:
    """One picture of the toy once more, under another class."""
    folder = "ILSVRC/Data/CLS-LOC/train"
    with zipfile.ZipFile(toy[0]) as source, zipfile.ZipFile(tmp_path / "more.zip", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        first = next(
            name
            for name in source.namelist()
            if name.startswith(f"{folder}/n90000001/") and Path(name).stem not in toy[1].odd
        )
        target.writestr(f"{folder}/n90000002/n90000002_999.JPEG", source.read(first))
    workspace = Workspace(tmp_path / "imgprep-data")
    workspace.root.mkdir()
    fetch(workspace, tmp_path / "more.zip")
    with pytest.raises(DamagedError, match="--fail-on names: label-conflict 2 -"):
        run("--fail-on", "label-conflict")

    lines = run().stdout.splitlines()
    assert lines[0].startswith("up to date: 70 pictures, 5 odd, 2 with a twin")
    assert [line.split()[:2] for line in lines[-3:-1]] == [["label-conflict", "2"], ["duplicate", "1"]]


def test_fail_on_what_is_not_there_is_success(fetched: Workspace, run: Run) -> None:
    assert run("--fail-on", "leak,duplicate,deep").exit_code == 0


def test_an_unknown_code_is_a_usage_error_that_lists_the_known(fetched: Workspace, run: Run) -> None:
    result = run("--fail-on", "cymk")

    assert result.exit_code == 2
    assert "'cymk' is no finding" in result.stderr
    assert "near-duplicate" in result.stderr
    assert not (fetched.catalog / "doctor.csv").exists()


@pytest.mark.parametrize("args", [("--near-distance", "9"), ("--max-pixels", "0"), ("--workers", "-1")])
def test_options_out_of_range_are_usage_errors(fetched: Workspace, run: Run, args: tuple[str, str]) -> None:
    assert run(*args).exit_code == 2


def test_annotations_that_cannot_be_used_are_no_reason_not_to_look(tmp_path: Path, run: Run, toy_zip: Path) -> None:
    with zipfile.ZipFile(toy_zip) as source, zipfile.ZipFile(tmp_path / "broken.zip", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[:40] if name.endswith(".xml") and "/train/" in name else content)
    workspace = Workspace(tmp_path / "imgprep-data")
    workspace.root.mkdir()
    fetch(workspace, tmp_path / "broken.zip")
    lines = run().stdout.splitlines()

    assert lines[0].startswith("doctor: 69 pictures, 5 odd")
    assert lines[-1].startswith("note: sizes and boxes were not compared, as the annotations cannot be used: unusable")


def test_without_a_workspace_the_first_command_is_named(run: Run) -> None:
    with pytest.raises(MissingInputError, match="start with `imgprep fetch`"):
        run()
