"""The command line: a mistake is one clear line and its exit code; success leaves what the next command needs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from imgprep import __version__
from imgprep.errors import INTERRUPTED
from imgprep.testing.toy import ToyListing
from imgprep.workspace import Workspace

Cli = Callable[..., Result]


def fails(result: Result, code: int, *said: str) -> None:
    """Check the exit code, and that stderr is one line that says all of it, after what was done before, if anything."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    passed_over = ("Usage:", "Try ", "catalog: ", "annotations: ", "odd but used: ")
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith(passed_over)]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for text in said:
        assert text in lines[0]


@pytest.fixture
def ready(cli: Cli, toy_zip: Path) -> Cli:
    """The command line in a folder where the toy archive was fetched."""
    assert cli("fetch", "--from", toy_zip).exit_code == 0
    return cli


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout == f"imgprep, version {__version__}\n"


def test_the_street_from_fetch_to_shards_finds_its_own_way(cli: Cli, toy: tuple[Path, ToyListing]) -> None:
    outputs = [
        cli("fetch", "--from", toy[0]),
        cli("subset", "--classes", "3", "--per-class", "8"),
        cli("shard", "--size", "48"),
    ]

    assert [result.exit_code for result in outputs] == [0, 0, 0]
    assert "annotations:" in outputs[1].stderr
    assert f"{toy[1].val:,} validation" in outputs[1].stderr
    assert "3 classes, 24 train and 12 val images" in outputs[1].stdout
    assert "36 images in = " in outputs[2].stdout
    assert Path("imgprep-data/shards/main/index.json").is_file()


def test_everything_again_is_up_to_date(ready: Cli, toy_zip: Path) -> None:
    commands = [["fetch", "--from", toy_zip], ["subset", "--classes", "2", "--per-class", "4"], ["shard"]]
    for command in commands:
        assert ready(*command).exit_code == 0
    before = {
        path: path.stat().st_mtime_ns
        for path in Path("imgprep-data").rglob("*.*")
        if path.name != ".lock" and path.is_file()
    }
    again = [ready(*command) for command in commands]

    assert [result.stdout.startswith("up to date") for result in again] == [True, True, True]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_new_source_makes_subset_bring_the_catalog_up_to_date(ready: Cli, toy_zip: Path, tmp_path: Path) -> None:
    ready("subset", "--classes", "2", "--per-class", "4", "--name", "first")
    with zipfile.ZipFile(toy_zip) as old, zipfile.ZipFile(tmp_path / "less.zip", "w") as new:
        for name in old.namelist():
            if "train/n90000001" not in name:
                new.writestr(name, old.read(name))
    assert ready("fetch", "--from", tmp_path / "less.zip", "--overwrite").exit_code == 0
    result = ready("subset", "--classes", "all", "--per-class", "2", "--json")

    assert "n90000001" not in json.loads(result.stdout)["classes"]
    assert ready("subset", "--classes", "n90000001", "--name", "x").exit_code == 2


def test_json_is_one_object_on_stdout(ready: Cli, toy_zip: Path) -> None:
    for command in (
        ["fetch", "--from", toy_zip],
        ["catalog"],
        ["annotations"],
        ["subset", "--per-class", "2"],
        ["shard"],
    ):
        for _ in range(2):
            document = json.loads(ready(*command, "--json").stdout)
            assert document["action"] in ("run", "skip")


def test_pictures_whose_keys_would_be_the_same_are_counted(cli: Cli, tmp_path: Path) -> None:
    for name in ("cat/x0.jpg", "cat/x0.png", "dog/1.jpg"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"")
    assert cli("fetch", "--from", tmp_path / "tree").exit_code == 0
    assert "; 2 have a hash of their path as key -> " in cli("catalog").stdout


def test_dry_runs_write_nothing(ready: Cli, toy_zip: Path, tmp_path: Path) -> None:
    assert ready("fetch", "--from", toy_zip, "-n", "-w", "elsewhere").exit_code == 0
    assert not Path("elsewhere").exists()
    fails(ready("subset", "-n"), 2, "a dry run needs an up-to-date catalog", "run `imgprep catalog` first")
    ready("catalog")
    fails(ready("subset", "-n"), 2, "a dry run needs an up-to-date annotations")
    ready("annotations")
    assert "would choose 2 classes" in ready("subset", "--classes", "2", "--per-class", "4", "-n").stdout
    assert not Path("imgprep-data/subsets").exists()
    ready("subset", "--classes", "2", "--per-class", "4")
    assert "would write 4 shards" in ready("shard", "-n", "--samples-per-shard", "4").stdout
    assert not Path("imgprep-data/shards").exists()


def test_the_workspace_can_come_from_the_environment(cli: Cli, toy_zip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGPREP_WORKSPACE", "from-environment")
    cli("fetch", "--from", toy_zip)

    assert Path("from-environment/raw/source.json").is_file()


# Bad input, one by one.


@pytest.mark.parametrize("command", ["catalog", "annotations", "subset", "shard"])
def test_no_workspace_yet(cli: Cli, command: str) -> None:
    fails(cli(command), 2, "no workspace yet: imgprep-data does not exist", "imgprep fetch --from PATH")
    assert not Path("imgprep-data").exists()


@pytest.mark.parametrize("command", ["catalog", "annotations", "subset", "shard"])
def test_no_source_yet(cli: Cli, command: str) -> None:
    Path("imgprep-data").mkdir()
    fails(cli(command), 2, "has no source yet", "imgprep fetch --from PATH")


def test_a_stage_that_was_left_out(ready: Cli) -> None:
    fails(ready("shard"), 2, "manifest.csv does not exist", "run `imgprep subset` first")


def test_an_unknown_class_with_near_matches(ready: Cli) -> None:
    fails(ready("subset", "--classes", "dics"), 2, "no class is named 'dics'", "did you mean n90000001 (disc)?")


def test_what_was_done_before_a_failure_is_told(ready: Cli) -> None:
    """The lines on catalog and annotations were lost where `subset` failed after them."""
    result = ready("subset", "--classes", "dics")
    fails(result, 2, "no class is named 'dics'")
    assert result.stderr.startswith("catalog: 7 classes, ")
    assert "annotations: " in result.stderr


def test_more_classes_than_exist(ready: Cli) -> None:
    fails(ready("subset", "--classes", "400", "--per-class", "1"), 2, "400 classes were asked for, but only 5 have")


@pytest.mark.parametrize(
    "arguments",
    [
        ["subset", "--classes", "0"],
        ["subset", "--classes", "-3"],
        ["subset", "--classes", ""],
        ["subset", "--classes", "disc,,ring"],
        ["subset", "--per-class", "0"],
        ["subset", "--per-class", "-1"],
        ["subset", "--per-class", "many"],
        ["subset", "--val-per-class", "-1"],
        ["subset", "--seed", "-1"],
        ["subset", "--seed", "99999999999999999999"],
        ["subset", "--name", "../up"],
        ["shard", "--size", "0"],
        ["shard", "--size", "-256"],
        ["shard", "--quality", "101"],
        ["shard", "--samples-per-shard", "0"],
        ["shard", "--max-rejects", "-1"],
        ["shard", "--workers", "-2"],
        ["shard", "--name", "a/b"],
        ["annotations", "--max-rejects", "-1"],
        ["fetch"],
        ["frobnicate"],
        ["subset", "--clases", "3"],
    ],
    ids=" ".join,
)
def test_values_that_cannot_be(ready: Cli, arguments: list[str]) -> None:
    if arguments[0] == "shard":
        ready("subset", "--classes", "2", "--per-class", "2")
    fails(ready(*arguments), 2)


def test_options_that_contradict_each_other(ready: Cli) -> None:
    ready("subset", "--classes", "2", "--per-class", "2")
    fails(ready("shard", "--images", "original", "--size", "64"), 2, "--size means nothing with --images original")
    assert ready("shard", "--images", "original").exit_code == 0


def test_a_wrong_path_leaves_nothing_behind(cli: Cli) -> None:
    fails(cli("fetch", "--from", "nowhere.zip"), 2, "nowhere.zip does not exist")
    assert list(Path.cwd().iterdir()) == []


def test_a_zip_that_is_not_one(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "page.zip").write_text("<html>Sign in</html>")
    fails(cli("fetch", "--from", "page.zip"), 3, "page.zip is neither a zip nor a tar nor a directory")


def test_a_truncated_zip(cli: Cli, tmp_path: Path, toy_zip: Path) -> None:
    content = toy_zip.read_bytes()
    (tmp_path / "half.zip").write_bytes(content[: len(content) // 2])
    fails(cli("fetch", "--from", "half.zip"), 3, "half.zip is cut off or damaged", "download or copy it again")
    assert not Path("imgprep-data").exists()


def changed_archive(toy_zip: Path, target: Path, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(toy_zip) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def test_xml_that_is_broken(cli: Cli, toy_zip: Path, tmp_path: Path) -> None:
    changed_archive(toy_zip, tmp_path / "a.zip", lambda name, old: old[:99] if "val_00000002.xml" in name else old)
    cli("fetch", "--from", "a.zip")
    fails(cli("subset"), 3, "ILSVRC2012_val_00000002.xml: not well-formed XML", "--max-rejects 1")
    allowed = cli("annotations", "--max-rejects", "1")

    assert (allowed.exit_code, "rejected: 1 -> " in allowed.stdout) == (0, True)
    assert cli("subset").exit_code == 0


def test_xml_without_an_object_and_no_other_label(cli: Cli, toy_zip: Path, tmp_path: Path) -> None:
    def change(name: str, old: bytes) -> bytes:
        if name == "LOC_val_solution.csv":
            lines = old.splitlines(keepends=True)
            return b"".join(line for line in lines if b"val_00000002" not in line)
        return b"<annotation></annotation>" if "val_00000002.xml" in name else old

    changed_archive(toy_zip, tmp_path / "a.zip", change)
    cli("fetch", "--from", "a.zip")
    fails(cli("subset"), 3, "ILSVRC2012_val_00000002.JPEG: no label: neither XML nor list names its class")


def test_labels_that_contradict_each_other(cli: Cli, toy_zip: Path, tmp_path: Path) -> None:
    def change(name: str, old: bytes) -> bytes:
        if name != "LOC_val_solution.csv":
            return old
        lines = [line for line in old.decode().splitlines(keepends=True) if "val_00000002" not in line]
        return ("".join(lines) + "ILSVRC2012_val_00000002,n90000003 1 1 2 2\n").encode()

    changed_archive(toy_zip, tmp_path / "a.zip", change)
    cli("fetch", "--from", "a.zip")
    fails(
        cli("subset"), 3, "two labels for ILSVRC2012_val_00000002: its XML says", "LOC_val_solution.csv says n90000003"
    )


def test_pictures_that_do_not_decode_are_listed_up_to_a_limit(
    cli: Cli, toy_zip: Path, toy: tuple[Path, ToyListing]
) -> None:
    cli("fetch", "--from", toy_zip)
    cli("subset")
    fails(
        cli("shard", "--max-rejects", "1", "-j", "1"),
        3,
        "unusable pictures: 2 so far, allowed: 1; first",
        "--max-rejects",
    )
    assert not Path("imgprep-data/shards/main").exists()
    result = cli("shard")

    assert result.exit_code == 0
    assert cli("shard", "--max-rejects", "2").stdout.startswith("up to date")
    fails(cli("shard", "--max-rejects", "1", "-j", "1"), 3, "unusable pictures: 2 so far, allowed: 1; first")
    rejected = Path("imgprep-data/shards/main/rejected.csv").read_text().splitlines()[1:]
    assert {line.split(",")[0] for line in rejected} == set(toy[1].undecodable)


def test_output_that_exists_with_other_options(ready: Cli) -> None:
    ready("subset", "--classes", "2", "--per-class", "4")
    fails(ready("subset", "--classes", "3", "--per-class", "4"), 2, "classes was 2, now 3", "--overwrite")
    assert ready("subset", "--classes", "3", "--per-class", "4", "--overwrite").exit_code == 0
    ready("shard", "--size", "32")
    fails(ready("shard", "--size", "40"), 2, "size was 32, now 40", "--overwrite")
    fails(ready("shard"), 2, "size was 32, now 256")
    assert ready("shard", "--size", "40", "--overwrite").exit_code == 0


def test_a_workspace_that_another_imgprep_holds(ready: Cli) -> None:
    code = (
        "import sys, time, pathlib; from imgprep.workspace import Workspace\n"
        "with Workspace(pathlib.Path('imgprep-data')).locked('imgprep shard'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        fails(ready("subset"), 1, f"imgprep-data is in use by `imgprep shard` (process {other.pid})")
        other.kill()
    assert ready("subset").exit_code == 0


def test_no_permission(ready: Cli) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may write anywhere")
    Path("imgprep-data").chmod(0o500)
    fails(ready("catalog"), 4, "Permission denied")


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 4 MB."""
    mount = tmp_path / "small-disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("a small file system can only be mounted by the superuser")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_no_space_left(cli: Cli, toy_zip: Path, small_disk: Path) -> None:
    """A real full disk: the stage leaves with 6, says so in one line, and leaves no half output."""
    workspace = ["-w", small_disk / "w"]
    assert cli("fetch", "--from", toy_zip, *workspace).exit_code == 0
    assert cli("subset", *workspace).exit_code == 0
    filler = small_disk / "filler"
    filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - 30_000))
    fails(cli("shard", *workspace), 6, "No space left on device", "free some space")
    unfinished(small_disk / "w" / "shards")
    fails(cli("shard", "--size", "32", *workspace), 2, "unfinished job of another request", "size was 256, now 32")
    filler.unlink()
    assert cli("shard", *workspace).exit_code == 0
    assert [path.name for path in (small_disk / "w" / "shards").iterdir()] == ["main"]


def unfinished(shards: Path) -> None:
    """Nothing has the name of shards, and no tar that is there is half."""
    assert sorted(path.name for path in shards.iterdir()) == [".main.job", ".main.tmp"]
    for path in (shards / ".main.tmp").iterdir():
        with tarfile.open(path) as archive:
            assert archive.getmembers()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_with_130_and_nothing_half(
    cli: Cli, toy_zip: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A real signal to a real process in the middle of `imgprep shard`."""
    cli("fetch", "--from", toy_zip)
    cli("subset")
    slow = (
        "import time, imgprep.shard as stage\n"
        "prepare = stage.prepare_image\n"
        "def slowly(*args, **options):\n"
        "    print('picture', flush=True); time.sleep(0.2)\n"
        "    return prepare(*args, **options)\n"
        "stage.prepare_image = slowly\n"
        "from imgprep.cli import main\n"
        "main(['shard'], prog_name='imgprep')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("picture")
        time.sleep(0.3)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == INTERRUPTED
    assert errors.strip() == "interrupted"
    unfinished(Path("imgprep-data/shards"))
    assert cli("shard").exit_code == 0


def test_a_killed_stage_leaves_nothing_that_looks_done_and_can_be_run_again(
    cli: Cli, toy_zip: Path, sharded: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the middle, then the same command: the same files as without the kill."""
    monkeypatch.setenv("IMGPREP_WORKSPACE", "killed")
    cli("fetch", "--from", toy_zip)
    cli("subset", "--classes", "4", "--per-class", "8")
    killed = (
        "import os, signal, imgprep.shard as stage\n"
        "prepare, calls = stage.prepare_image, []\n"
        "def prepare_then_die(*args, **options):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 12: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return prepare(*args, **options)\n"
        "stage.prepare_image = prepare_then_die\n"
        "from imgprep.cli import main\n"
        "main(['shard', '--size', '48', '--samples-per-shard', '5'], prog_name='imgprep')"
    )
    process = subprocess.run([sys.executable, "-c", killed], capture_output=True, check=False, timeout=60)

    assert process.returncode == -signal.SIGKILL
    folder = Path("killed/shards/main")
    assert not folder.exists()
    assert cli("shard", "--size", "48", "--samples-per-shard", "5").exit_code == 0
    expected, found = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (sharded.shards("main"), folder)
    )
    assert found == expected
    assert sorted(path.name for path in folder.parent.iterdir()) == ["main"]


def test_a_closed_pipe_is_no_error_message(ready: Cli) -> None:
    result = subprocess.run(
        f"{sys.executable} -m imgprep --help | head -n 1", shell=True, capture_output=True, text=True, check=False
    )

    assert (result.stderr, result.stdout.startswith("Usage: imgprep")) == ("", True)


def test_a_bug_is_one_line_and_its_place_can_be_asked_for(ready: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(workspace: Workspace) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("imgprep.catalog.catalog", broken)
    fails(ready("catalog"), 1, "ZeroDivisionError: on purpose - this is a bug in imgprep")
    monkeypatch.setenv("IMGPREP_TRACEBACK", "1")
    assert isinstance(ready("catalog").exception, ZeroDivisionError)


def test_classes_without_validation_images_are_said(ready: Cli) -> None:
    assert "without validation images: n9" in ready("subset", "--val-per-class", "0").stdout


def test_names_from_an_archive_do_not_steer_the_terminal(cli: Cli, toy_zip: Path, tmp_path: Path) -> None:
    changed_archive(
        toy_zip,
        tmp_path / "a.zip",
        lambda name, old: old.replace(b"disc", b"\x1b[31mdisc") if "mapping" in name else old,
    )
    cli("fetch", "--from", "a.zip")

    assert "\x1b" not in cli("subset").stdout
