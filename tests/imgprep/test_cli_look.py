"""The commands stats and grid: what they print, what they write, and what they refuse."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from imgprep.cli.look import grid, stats
from imgprep.doctor import DoctorSpec, plan_doctor
from imgprep.errors import MissingInputError, UnknownClassError
from imgprep.fetch import fetch
from imgprep.findings import COLUMNS
from imgprep.workspace import Workspace

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one of the two commands in an empty folder; errors are raised."""
    monkeypatch.chdir(tmp_path)

    def invoke(name: str, *args: str) -> Result:
        return CliRunner().invoke({"stats": stats, "grid": grid}[name], list(args), catch_exceptions=False)

    return invoke


def test_stats_makes_its_tables_and_tells_where_sizes_come_from(fetched: Workspace, run: Run) -> None:
    result = run("stats")
    first = result.stdout.splitlines()
    again = run("stats").stdout.splitlines()

    assert result.stderr.startswith("catalog: 7 classes, 46 train, 20 val and 3 test pictures")
    assert first == again
    assert again[0].startswith("catalog: 5 classes, 69 pictures, ")
    assert again[0].endswith("; 2 more classes have no picture")
    assert "test: 3 pictures without a class, " in again[3]
    rows = {line.rsplit(maxsplit=7)[0]: line.split()[-7:] for line in again if line.split()[-7:-6] and line[:1].strip()}
    assert rows["val pictures a class"] == ["4"] * 7
    assert {"kB a picture", "width", "height", "width / height", "% of picture a box"} <= rows.keys()
    assert any(line.startswith("sizes in pixels: ") and "with XML annotations" in line for line in again)


def test_stats_of_a_subset_with_all_classes(sharded: Workspace, run: Run) -> None:
    lines = run("stats", "--subset", "main", "--per-class").stdout.splitlines()
    table = lines[lines.index("") :]

    assert lines[0].startswith("subset main: 4 classes, 48 pictures, ")
    assert table[-5].split() == ["label", "wnid", "train", "val", "MB", "name"]
    assert [line.split()[2:4] for line in table[-4:]] == [["8", "4"]] * 4


def test_stats_as_json_is_everything(fetched: Workspace, run: Run, tmp_path: Path) -> None:
    document = json.loads(run("stats", "--json", "--plot", "new/stats.png").stdout)

    assert document["splits"]["train"]["pictures"] == 46
    assert document["sizes"]["from"] == "boxes"
    assert document["boxes"]["per_picture"]["min"] >= 1
    assert len(document["classes"]) == 7
    assert sum(each["val"] for each in document["classes"]) == 20
    assert document["plot"] == "new/stats.png"
    with Image.open(tmp_path / "new" / "stats.png") as image:
        assert image.format == "PNG"


def test_stats_of_a_sample_and_of_findings(sharded: Workspace, run: Run) -> None:
    header = ",".join(COLUMNS)
    key = (sharded.catalog / "manifest.csv").read_text().splitlines()[1].partition(",")[0]
    cells = ["20" if name in ("width", "height") else "cmyk leak" if name == "findings" else "" for name in COLUMNS]
    (sharded.catalog / "doctor.csv").write_text(f"{header}\n{','.join([key, *cells[1:]])}\n")
    plan_doctor(sharded, DoctorSpec())[1].write(sharded.catalog, ["doctor.csv"], {})

    from_doctor = run("stats").stdout
    sampled = run("stats", "--sizes", "sample", "--sample", "9").stdout

    assert "sizes in pixels: 1 pictures in doctor.csv" in from_doctor
    assert "findings of doctor: cmyk 1, leak 1" in from_doctor
    assert "headers of a sample of 9 pictures, chosen by keyed hash" in sampled


def test_an_archive_without_xml_is_sampled(run: Run, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, "JPEG")
    with zipfile.ZipFile(tmp_path / "bare.zip", "w") as archive:
        archive.writestr("Data/CLS-LOC/train/n00000001/a.JPEG", stream.getvalue())
        archive.writestr("Data/CLS-LOC/train/n00000001/b.JPEG", b"")
    workspace = Workspace(tmp_path / "imgprep-data")
    workspace.root.mkdir()
    fetch(workspace, tmp_path / "bare.zip")

    lines = run("stats").stdout.splitlines()

    assert "headers of a sample of 1 pictures, chosen by keyed hash (1 more have no size that is known)" in lines[-1]
    assert next(line for line in lines if line.startswith("width / height")).split()[3:] == ["1.50"] * 7
    assert not any("box" in line for line in lines[2:])


def test_grid_writes_where_it_is_told(sharded: Workspace, run: Run, tmp_path: Path) -> None:
    default = run("grid", "--classes", "disc,ring", "--per-class", "2", "--boxes", "--split", "val").stdout
    document = json.loads(run("grid", "--subset", "main", "--rows", "3", "--out", "g.png", "--json").stdout)

    assert default.startswith("grid: 2 classes, 4 pictures, ")
    assert default.endswith(" boxes -> imgprep-data/grid.png\n")
    assert document["pages"] == ["g-1.png", "g-2.png"]
    assert (document["classes"], document["pictures"], document["boxes"]) == (4, 32, 0)
    assert (tmp_path / "g-2.png").is_file()
    assert run("grid", "--subset", "main").stdout.endswith("-> imgprep-data/grid-main.png\n")


def test_grid_names_what_it_could_not_draw(fetched: Workspace, run: Run) -> None:
    lines = run("grid", "--classes", "all", "--per-class", "50").stdout.splitlines()

    odd = [line for line in lines if line.startswith("not drawn ")]
    assert len(odd) == 2
    assert any("an empty file" in line for line in odd)
    assert lines[-1].startswith("grid: 5 classes, 46 pictures -> ")


def test_what_is_not_there(run: Run, fetched: Workspace) -> None:
    with pytest.raises(MissingInputError, match="no workspace yet"):
        run("stats", "--workspace", "nowhere")
    with pytest.raises(MissingInputError, match=r"run `imgprep subset --name none` first"):
        run("stats", "--subset", "none")
    with pytest.raises(UnknownClassError, match="did you mean"):
        run("grid", "--classes", "dsc")
    assert run("grid", "--tile", "5").exit_code == 2
