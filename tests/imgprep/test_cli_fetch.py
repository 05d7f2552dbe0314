"""`imgprep fetch` from Kaggle: what it refuses, what it asks, what it prints; and what a part of ImageNet costs."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from imgprep.cli.options import Size
from imgprep.layouts.ilsvrc import MAPPING, VAL_SOLUTION
from imgprep.sources.zip_directory import TAIL_BYTES
from imgprep.testing.archives import VirtualImagenet
from imgprep.testing.kaggle import Credentials, Fault, KaggleStandIn

Cli = Callable[..., Result]

SMALL = ("--classes", "2", "--per-class", "3", "--val-per-class", "1")
ARCHIVE = "imagenet-object-localization-challenge"


def fails(result: Result, code: int, *said: str) -> None:
    """Check the exit code, and that the last line of stderr is an error that says all of it, without a traceback."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert lines[-1].startswith("Error: ")
    assert sum(line.startswith("Error: ") for line in lines) == 1
    assert "Traceback" not in result.stderr
    for text in said:
        assert text in lines[-1]


@pytest.fixture
def stand_in(
    toy_zip: Path,
    serve: Callable[..., KaggleStandIn],
    kaggle: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> KaggleStandIn:
    """A stand-in that the command asks for addresses without Kaggle's client, which takes seconds to start."""
    started = serve(toy_zip)
    monkeypatch.setattr("imgprep.fetch.online.KaggleCompetition", lambda **_: kaggle(started))
    monkeypatch.setenv("IMGPREP_CACHE", str(tmp_path / "cache"))
    return started


@pytest.fixture
def real(
    toy_zip: Path, serve: Callable[..., KaggleStandIn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., KaggleStandIn]:
    """A stand-in that Kaggle's own client is pointed at."""

    def start(*, credentials: Credentials = "legacy", **settings: Any) -> KaggleStandIn:
        started = serve(toy_zip, **settings)
        for name, value in started.environment(tmp_path / "home", credentials=credentials).items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("IMGPREP_CACHE", str(tmp_path / "cache"))
        return started

    return start


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.parts[0] != "cache"}


def check_only_directory_and_lists(stand_in: KaggleStandIn) -> None:
    """No picture was asked for: the end of the archive, its directory, and the two lists at most."""
    with zipfile.ZipFile(stand_in._archive.path) as archive:  # type: ignore[attr-defined]
        lists = {info.header_offset for info in archive.infolist() if info.filename in (MAPPING, VAL_SOLUTION)}
    size = stand_in._archive.size
    starts = {request.range[0] for request in stand_in.requests if request.range is not None}

    assert starts
    assert all(start in lists or start >= size - TAIL_BYTES for start in starts)


WAYS: dict[str, tuple[str, ...]] = {
    "--classes": ("--classes", "2"),
    "--per-class": ("--per-class", "2"),
    "--val-per-class": ("--val-per-class", "0"),
    "--seed": ("--seed", "1"),
    "--allow-short": ("--allow-short",),
    "--subset": ("--subset", "manifest.csv"),
    "--metadata-only": ("--metadata-only",),
    "--from": ("--from", "toy.zip"),
}


@pytest.mark.parametrize(
    ("one", "other"),
    [(one, other) for place, one in enumerate(WAYS) for other in list(WAYS)[max(5, place + 1) :]],
)
def test_ways_that_exclude_each_other(cli: Cli, stand_in: KaggleStandIn, one: str, other: str) -> None:
    fails(cli("fetch", *WAYS[one], *WAYS[other]), 2, one, other, "ask for different things - give one of them")
    assert (stand_in.requests, files()) == ([], {})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--jobs", "0"), "'-j' / '--jobs'"),
        (("--jobs", "65"), "65 is not in the range"),
        (("--rate", "fast"), "'fast' is no size such as 500k, 20MB or 1.5G."),
        (("--rate", "0"), "less than a byte"),
        (("--timeout", "0"), "--timeout"),
        (("--timeout", "nan"), "timeout"),
        (("--retries", "-1"), "--retries"),
        (("--classes", "0"), "0 is less than 1."),
        (("--classes", "a,,b"), "holds an empty name"),
        (("--per-class", "some"), "neither a whole number nor 'all'"),
    ],
)
def test_values_that_break_their_rules(cli: Cli, stand_in: KaggleStandIn, options: tuple[str, ...], said: str) -> None:
    fails(cli("fetch", *SMALL, *options), 2, said)
    assert (stand_in.requests, files()) == ([], {})


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("500k", 5e5), ("20MB", 2e7), ("1.5G", 1.5e9), ("7", 7.0), ("2 mb/s", 2e6)]
)
def test_sizes(text: str, num_bytes: float) -> None:
    assert Size().convert(text, None, None) == num_bytes


def test_the_whole_archive_is_not_fetched_unasked(cli: Cli, stand_in: KaggleStandIn, toy_zip: Path) -> None:
    fails(cli("fetch"), 2, "there is no terminal to ask on", "add --yes to fetch it, or --classes and --per-class")
    assert files() == {}
    result = cli("fetch", "--yes")
    assert result.exit_code == 0, result.output
    assert "are free at" in result.stderr
    assert Path(f"imgprep-data/raw/{ARCHIVE}.zip").read_bytes() == toy_zip.read_bytes()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 130), ("", 130)])
def test_on_a_terminal_it_asks(
    cli: Cli, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    from click.testing import CliRunner, _NamedTextIOWrapper

    from imgprep.cli import main

    monkeypatch.setattr(_NamedTextIOWrapper, "isatty", lambda _: True, raising=False)
    result = CliRunner().invoke(main, ["fetch"], input=answer)

    assert "fetch it? [y/N]" in result.stderr
    assert result.exit_code == code
    assert Path(f"imgprep-data/raw/{ARCHIVE}.zip").exists() is (code == 0)


def test_a_part_and_what_is_printed_of_it(cli: Cli, stand_in: KaggleStandIn, toy_zip: Path) -> None:
    result = cli("fetch", *SMALL)
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()
    with zipfile.ZipFile(toy_zip) as archive:
        root = Path("imgprep-data/raw") / ARCHIVE
        pictures = list(root.rglob("*.JPEG"))
        assert all(archive.read(str(path.relative_to(root))) == path.read_bytes() for path in pictures)

    assert len(pictures) == 8
    assert first.startswith("fetched ")
    assert first.endswith(f"are here now -> imgprep-data/raw/{ARCHIVE}")
    assert "on the wire (" in second
    assert "% of the archive)" in second
    assert ": 6 train, 2 val pictures" in result.stderr


def test_again_is_up_to_date_without_the_network(cli: Cli, stand_in: KaggleStandIn) -> None:
    assert cli("fetch", *SMALL).exit_code == 0
    before = files()
    stand_in.close()
    again = cli("fetch", *SMALL, "--retries", "0")

    assert again.exit_code == 0
    assert again.stdout.startswith("up to date: ")
    assert files() == before
    fails(cli("fetch", "--classes", "3", "--retries", "0"), 5, "run the same command again")
    assert files() == before


def test_a_dry_run_writes_nothing_and_fetches_no_picture(cli: Cli, stand_in: KaggleStandIn) -> None:
    for way in (SMALL, ("--metadata-only",), ()):
        stand_in.forget()
        result = cli("fetch", *way, "--dry-run")
        assert result.exit_code == 0, result.output
        assert "to fetch: " in result.stdout
        assert " at imgprep-data" in result.stdout.splitlines()[-1]
        assert files() == {}
        check_only_directory_and_lists(stand_in)


@pytest.mark.parametrize("way", [SMALL, ("--metadata-only",), ("--yes",)])
def test_json_is_all_there_is_on_stdout(cli: Cli, stand_in: KaggleStandIn, way: tuple[str, ...]) -> None:
    planned = json.loads(cli("fetch", *way, "--json", "--dry-run").stdout)
    stand_in.forget()
    result = cli("fetch", *way, "--json")
    done = json.loads(result.stdout)
    again = json.loads(cli("fetch", *way, "--json").stdout)

    assert result.stdout.count("\n") == 1
    assert (planned["action"], done["action"], again["action"]) == ("run", "run", "skip")
    assert planned["free_bytes"] > planned["bytes_to_fetch"]
    assert planned["files_to_fetch"] == done["files_fetched"] > 0
    assert planned["files_held"] == done["files_held"] == again["files_held"] == done["members_checked"]
    assert done["wire_bytes"] == stand_in.storage_bytes >= planned["bytes_to_fetch"]
    assert done["requests"] == len(stand_in.requests)
    assert again["wire_bytes"] == again["requests"] == 0


def test_another_source_is_not_replaced_unasked(cli: Cli, stand_in: KaggleStandIn, toy_zip: Path) -> None:
    assert cli("fetch", "--from", toy_zip).exit_code == 0
    before = files()
    for way in (SMALL, ("--yes",)):
        fails(cli("fetch", *way), 2, "has another source", "use --overwrite to fetch in its place")
    assert (stand_in.requests, files()) == ([], before)
    assert cli("fetch", *SMALL, "--overwrite").exit_code == 0


def test_a_layout_goes_with_a_copy(cli: Cli, toy_zip: Path) -> None:
    fails(cli("fetch", "--layout", "ilsvrc"), 2, "--layout goes with --from")
    fails(cli("fetch", "--from", toy_zip, "--layout", "nope"), 2, "no layout 'nope'", "ilsvrc")
    assert cli("fetch", "--from", toy_zip, "--layout", "ilsvrc").exit_code == 0


def test_a_copy_that_was_fetched_is_adopted_by_path(cli: Cli, stand_in: KaggleStandIn) -> None:
    assert cli("fetch", *SMALL).exit_code == 0
    result = cli("fetch", "--from", f"imgprep-data/raw/{ARCHIVE}", "-w", "other")

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("adopted part ")


@pytest.mark.parametrize("way", [SMALL, ("--yes",)])
def test_no_space_is_foreseen_before_any_member_is_asked_for(
    cli: Cli, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch, way: tuple[str, ...]
) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    fails(cli("fetch", *way), 6, "bytes are needed, 1,000 are free", "free some space")
    check_only_directory_and_lists(stand_in)
    assert not list(Path().rglob("*.JPEG"))
    assert not list(Path().rglob("*.zip*"))


def test_an_unknown_class_is_named(cli: Cli, stand_in: KaggleStandIn) -> None:
    fails(cli("fetch", "--classes", "crss", "--per-class", "2"), 2, "did you mean")
    assert files() == {}


def test_a_manifest_that_is_not_there(cli: Cli, stand_in: KaggleStandIn) -> None:
    fails(cli("fetch", "--subset", "gone.csv"), 2, "gone.csv does not exist")


def test_a_changed_archive_is_said_with_the_choice_there_is(cli: Cli, stand_in: KaggleStandIn, wide_zip: Path) -> None:
    assert cli("fetch", *SMALL).exit_code == 0
    before = files()
    stand_in.replace(wide_zip)
    fails(cli("fetch", "--classes", "3", "--per-class", "3"), 3, "was replaced", "--overwrite")
    assert files() == before


def test_what_arrives_damaged_each_time(cli: Cli, stand_in: KaggleStandIn) -> None:
    assert cli("fetch", *SMALL, "--dry-run").exit_code == 0
    stand_in.add_fault(Fault(kind="flip", times=None, max_bytes=60_000))
    fails(cli("fetch", *SMALL), 3, "each of the 4 times it was read")
    assert not Path("imgprep-data/raw/source.json").exists()


def test_without_ranges_it_warns(cli: Cli, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgprep.fetch.one_by_one.SECONDS_A_FILE", 0.0)
    stand_in.add_fault(Fault(kind="no-range", times=None))
    result = cli("fetch", *SMALL)

    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("Warning: the server ignores ranges: fetching one by one")


def test_without_ranges_the_whole_is_counted(cli: Cli, stand_in: KaggleStandIn, toy_zip: Path) -> None:
    stand_in.add_fault(Fault(kind="no-range", times=None))
    result = cli("fetch", "--yes", "--json")
    document = json.loads(result.stdout)
    with zipfile.ZipFile(toy_zip) as archive:
        members = sum(not info.is_dir() for info in archive.infolist())

    assert document["way"] == "sequential"
    assert document["files_fetched"] == document["files_held"] == document["members_checked"] == members
    assert document["wire_bytes"] >= toy_zip.stat().st_size


def test_a_part_that_came_one_by_one_is_always_said_to_be(
    cli: Cli, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgprep.fetch.one_by_one.SECONDS_A_FILE", 0.0)
    stand_in.add_fault(Fault(kind="no-range", times=None))
    assert cli("fetch", *SMALL).exit_code == 0
    again = cli("fetch", *SMALL)

    assert again.stdout.startswith("up to date: ")
    assert "Warning: this part was fetched one by one" in again.stderr
    stand_in.clear_faults()
    completed = cli("fetch", *SMALL, "--overwrite")
    assert (completed.exit_code, completed.stderr.count("Warning")) == (0, 0), completed.output
    assert "Warning" not in cli("fetch", *SMALL).stderr


def test_a_choice_from_a_part_that_the_whole_might_not_give_is_noted(cli: Cli, stand_in: KaggleStandIn) -> None:
    assert cli("fetch", *SMALL).exit_code == 0
    same = cli("subset", *SMALL)
    fewer = cli("subset", "--classes", "2", "--per-class", "2", "--name", "fewer", "--json")

    assert (same.exit_code, "note:" in same.output) == (0, False), same.output
    assert "note" in json.loads(fewer.stdout)


def test_subset_and_shards_stay_up_to_date_when_the_part_grows(cli: Cli, stand_in: KaggleStandIn) -> None:
    assert cli("fetch", *SMALL).exit_code == 0
    assert cli("subset", *SMALL).exit_code == 0
    assert cli("shard").exit_code == 0
    before = {path: path.read_bytes() for path in Path("imgprep-data/shards").rglob("*") if path.is_file()}
    assert cli("fetch", "--classes", "3", "--per-class", "3", "--val-per-class", "1").exit_code == 0

    assert "up to date: " in cli("subset", *SMALL).stdout
    assert "up to date: " in cli("shard").stdout
    assert {path: path.read_bytes() for path in Path("imgprep-data/shards").rglob("*") if path.is_file()} == before
    fails(cli("subset", "--classes", "3", "--per-class", "3"), 2, "classes was 2, now 3")


def test_what_the_grown_part_would_choose_otherwise_is_refused(cli: Cli, stand_in: KaggleStandIn) -> None:
    """All that is here is another choice once more is here."""
    assert cli("fetch", *SMALL).exit_code == 0
    assert cli("subset", "--per-class", "3").exit_code == 0
    assert cli("fetch", "--classes", "3", "--per-class", "3", "--val-per-class", "1").exit_code == 0

    fails(cli("subset", "--per-class", "3"), 2, "was made with other options: ", "is another one")


def test_the_older_bundle_is_fetched_whole_and_read_as_it_is(
    cli: Cli,
    serve: Callable[..., KaggleStandIn],
    kaggle: Callable[..., Any],
    toy_zip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A zip around a packed tar of the pictures, with the lists beside it."""
    bundle = tmp_path / "bundle.zip"
    packed = io.BytesIO()
    with zipfile.ZipFile(toy_zip) as archive, zipfile.ZipFile(bundle, "w") as outer:
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for info in archive.infolist():
                content = archive.read(info)
                if not info.filename.startswith("ILSVRC/"):
                    outer.writestr(info.filename, content, zipfile.ZIP_DEFLATED)
                    continue
                member = tarfile.TarInfo(info.filename)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        outer.writestr("imagenet_object_localization_patched2019.tar.gz", packed.getvalue())
    started = serve(bundle)
    monkeypatch.setattr("imgprep.fetch.online.KaggleCompetition", lambda **_: kaggle(started))
    monkeypatch.setenv("IMGPREP_CACHE", str(tmp_path / "cache"))

    fails(cli("fetch", *SMALL), 2, "patched2019.tar.gz", "`imgprep fetch --yes`")
    assert cli("fetch", "--yes").exit_code == 0
    assert json.loads(Path("imgprep-data/raw/source.json").read_text())["kind"] == "zip+tar.gz"
    assert cli("subset", *SMALL).exit_code == 0
    whole = Path("imgprep-data/subsets/main/manifest.csv").read_bytes()
    assert cli("shard").exit_code == 0
    assert cli("fetch", "--from", toy_zip, "--workspace", "other").exit_code == 0
    assert cli("subset", *SMALL, "--workspace", "other").exit_code == 0
    assert manifest_keys(Path("other/subsets/main/manifest.csv").read_bytes()) == manifest_keys(whole)


def manifest_keys(table: bytes) -> list[str]:
    return [line.split(b",")[0].decode() for line in table.splitlines()]


def touch(path: Path) -> None:
    os.utime(path, ns=(0, 0))


def test_a_copy_of_a_workspace_still_has_its_whole_archive(cli: Cli, stand_in: KaggleStandIn) -> None:
    """Copying gives the archive another time."""
    assert cli("fetch", "--yes").exit_code == 0
    touch(Path("imgprep-data/raw") / f"{ARCHIVE}.zip")
    stand_in.close()

    for way in (("--yes",), SMALL, ("--metadata-only",)):
        again = cli("fetch", *way, "--retries", "0")
        assert again.exit_code == 0, again.output
        assert again.stdout.startswith("up to date: ")
    assert json.loads(Path("imgprep-data/raw/source.json").read_text())["kind"] == "zip"


def test_what_is_asked_of_a_whole_archive_is_looked_at(cli: Cli, stand_in: KaggleStandIn) -> None:
    assert cli("fetch", "--yes").exit_code == 0
    document = json.loads(cli("fetch", *SMALL, "--json").stdout)

    assert (document["action"], document["pictures"]) == ("skip", {"train": 6, "val": 2})
    fails(cli("fetch", "--subset", "nothing.csv"), 2, "nothing.csv")
    fails(cli("fetch", "--classes", "nonsense"), 2, "no class is named 'nonsense'")


def test_an_archive_that_was_altered_since_is_said_and_kept(cli: Cli, stand_in: KaggleStandIn) -> None:
    assert cli("fetch", "--yes").exit_code == 0
    path = Path("imgprep-data/raw") / f"{ARCHIVE}.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])

    for way in (("--yes",), SMALL):
        fails(cli("fetch", *way), 3, "--overwrite to fetch it anew")
    assert path.stat().st_size == len(whole) // 2
    assert cli("fetch", "--yes", "--overwrite").exit_code == 0
    assert path.read_bytes() == whole


def test_an_unpacked_tree_that_was_adopted_is_not_narrowed_to_a_part(
    cli: Cli, stand_in: KaggleStandIn, toy_zip: Path
) -> None:
    tree = Path("imgprep-data/raw") / ARCHIVE
    with zipfile.ZipFile(toy_zip) as archive:
        archive.extractall(tree)
    assert cli("fetch", "--from", tree).exit_code == 0
    before = files()

    fails(cli("fetch", *SMALL), 2, "has another source: directory")
    assert files() == before


def test_an_archive_begun_with_ranges_is_not_given_up_for_one_without(
    cli: Cli,
    serve: Callable[..., KaggleStandIn],
    kaggle: Callable[..., Any],
    wide_zip: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    stand_in = serve(wide_zip)
    monkeypatch.setattr("imgprep.fetch.online.KaggleCompetition", lambda **_: kaggle(stand_in))
    monkeypatch.setenv("IMGPREP_CACHE", str(tmp_path / "cache"))
    stand_in.add_fault(Fault(kind="status", status=500, times=None, after=6))
    assert cli("fetch", "--yes", "--retries", "0", "--jobs", "1").exit_code == 5
    stand_in.clear_faults()
    before = files()
    stand_in.add_fault(Fault(kind="no-range", times=2))

    fails(cli("fetch", "--yes"), 5, "came by ranges before", "--overwrite")
    assert files() == before
    assert cli("fetch", "--yes").exit_code == 0
    assert (Path("imgprep-data/raw") / f"{ARCHIVE}.zip").read_bytes() == wide_zip.read_bytes()


def test_a_record_of_another_version_is_not_written_over(cli: Cli, stand_in: KaggleStandIn) -> None:
    assert cli("fetch", *SMALL).exit_code == 0
    record = Path("imgprep-data/raw") / ARCHIVE / "fetch.json"
    record.write_text(record.read_text().replace('"version": 1', '"version": 2'))
    before = files()

    fails(cli("fetch", "--classes", "1"), 3, "has version 2", "the version of imgprep that wrote it")
    assert files() == before
    assert cli("fetch", *SMALL, "--overwrite").exit_code == 0


def test_a_damaged_record_is_said_when_it_is_replaced(cli: Cli, stand_in: KaggleStandIn) -> None:
    assert cli("fetch", *SMALL).exit_code == 0
    (Path("imgprep-data/raw") / ARCHIVE / "fetch.json").write_text("{")
    again = cli("fetch", *SMALL)

    assert again.exit_code == 0, again.output
    assert "what was asked for before is forgotten" in again.stderr


def test_a_manifest_without_a_row_and_one_that_is_a_pipe(cli: Cli, stand_in: KaggleStandIn) -> None:
    Path("m.csv").write_text("key,split,path,wnid,label,num_bytes,crc32\n")
    os.mkfifo("pipe")

    fails(cli("fetch", "--subset", "m.csv"), 2, "m.csv lists no picture")
    fails(cli("fetch", "--subset", "pipe"), 2, "pipe")
    assert not Path("imgprep-data").exists()


@pytest.mark.parametrize("prefix", ["fetch.json/", "fetch.members.csv/", ".fetch.json.tmp/"])
def test_a_tree_where_the_record_would_lie_is_refused_before_it_is_fetched(
    cli: Cli,
    serve: Callable[..., KaggleStandIn],
    kaggle: Callable[..., Any],
    toy_zip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefix: str,
) -> None:
    moved = tmp_path / "moved.zip"
    with zipfile.ZipFile(toy_zip) as archive, zipfile.ZipFile(moved, "w") as other:
        for info in archive.infolist():
            other.writestr(prefix + info.filename, archive.read(info))
    started = serve(moved)
    monkeypatch.setattr("imgprep.fetch.online.KaggleCompetition", lambda **_: kaggle(started))
    monkeypatch.setenv("IMGPREP_CACHE", str(tmp_path / "cache"))

    fails(cli("fetch", *SMALL), 3, "where the record of a part lies")
    assert not Path("imgprep-data").exists()


def test_without_credentials_it_says_how_to_get_some(cli: Cli, real: Callable[..., KaggleStandIn]) -> None:
    real(credentials="none")
    fails(
        cli("fetch", *SMALL),
        4,
        "there are no Kaggle credentials",
        "https://www.kaggle.com/settings/api",
        "access_token",
    )
    assert not Path("imgprep-data").exists()


def test_rules_that_were_not_accepted_come_with_their_address(cli: Cli, real: Callable[..., KaggleStandIn]) -> None:
    real(rules_accepted=False)
    fails(cli("fetch", *SMALL), 4, f"https://www.kaggle.com/competitions/{ARCHIVE}/rules")


def test_the_real_client_and_the_real_command(cli: Cli, real: Callable[..., KaggleStandIn]) -> None:
    stand_in = real()
    result = cli("fetch", *SMALL, "--json")

    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    storage = [request for request in stand_in.requests if request.path.startswith("/storage/")]
    assert (document["wire_bytes"], document["requests"]) == (stand_in.storage_bytes, len(storage))
    assert not any(request.authorized for request in storage)
    assert stand_in.key not in result.output


FULL_SCALE = """
import json, re, sys, time
from pathlib import Path
from imgprep.backoff import Backoff
from imgprep.fetch.online import Online, OnlineSpec
from imgprep.fetch.request import PartRequest
from imgprep.selection import SubsetSpec
from imgprep.sources.kaggle import SignedUrl
from imgprep.workspace import Workspace

root, url, cache = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])

def peak_mb():
    # Of this program alone: ru_maxrss begins with that of the process that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024

class Kaggle:
    retries = 0
    def archive_url(self):
        return SignedUrl(url, "archive.zip")
    def close(self):
        pass

root.mkdir(exist_ok=True)
spec = OnlineSpec(request=PartRequest(subset=SubsetSpec(classes=10, per_class=100)))
start = time.monotonic()
with Online(Workspace(root), spec, cache=cache, kaggle=Kaggle(), backoff=Backoff(retries=0)) as online:
    plan = online.plan()
    planned = time.monotonic() - start
    report = online.run(plan)
    members = plan.detail.record.members.values()
    print(json.dumps({
        "plan_s": round(planned, 2),
        "all_s": round(time.monotonic() - start, 2),
        "peak_mb": peak_mb(),
        "read_bytes": plan.read_bytes,
        "names": [member.name for member in members],
        "pictures": dict(plan.pictures),
    }))
"""


@pytest.mark.slow
def test_a_part_of_imagenet_is_cheap(serve: Callable[..., KaggleStandIn], tmp_path: Path) -> None:
    """Ten classes of a hundred out of 2,025,721 members, in a process of its own."""
    archive = VirtualImagenet()
    stand_in = serve(archive)
    # What the first read in the directory takes is the stand-in's, not the client's.
    archive.pread(1, archive.directory_offset)

    def run(root: str) -> dict[str, Any]:
        stand_in.forget()
        url = stand_in._signed("", "archive.zip").headers["Location"]
        command = [sys.executable, "-c", FULL_SCALE, str(tmp_path / root), url, str(tmp_path / "cache")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found: dict[str, Any] = json.loads(done.stdout)
        print({name: found[name] for name in found if name != "names"}, f"{stand_in.storage_bytes:,} bytes")  # noqa: T201  # shown with -s
        return found

    first = run("first")
    first_bytes = stand_in.storage_bytes
    second = run("second")
    root = tmp_path / "first" / "raw" / ARCHIVE
    assert (first["pictures"], first["names"]) == ({"train": 1000, "val": 500}, second["names"])
    # Members are stored or deflated in the archive; on disk they are inflated: ask the directory for the packed bytes.
    packed = packed_bytes(tmp_path / "cache", archive, set(first["names"]))
    headers = sum(30 + len(name.encode()) for name in first["names"])
    needed = archive.directory_bytes + headers + packed

    assert all((root / name).is_file() for name in first["names"])
    print(f"{first_bytes / needed:.4f} of what is needed")  # noqa: T201  # shown with -s
    assert first_bytes <= 1.1 * needed
    assert stand_in.storage_bytes <= 1.1 * (headers + packed)
    assert all(
        request.range is None
        or request.range[1] < archive.directory_offset
        or request.range_header.startswith("bytes=-")
        for request in stand_in.requests
    )
    assert max(first["peak_mb"], second["peak_mb"]) <= 250


def packed_bytes(cache: Path, archive: VirtualImagenet, names: set[str]) -> int:
    """Bytes that members take in the archive."""
    from imgprep.sources.zip_directory import DirectoryPlace, DirectoryReader

    place = DirectoryPlace(
        offset=archive.directory_offset, num_bytes=archive.directory_bytes, num_members=archive.members
    )
    reader = DirectoryReader(place, where="x")
    (kept,) = cache.glob("*.directory")
    with kept.open("rb") as file:
        while piece := file.read(1 << 20):
            reader.feed(piece)
    directory = reader.finish()
    return sum(int(directory.packed[directory.find(name)]) for name in names)


def folder_of_links(root: Path) -> Path:
    """Class folders that are links, as subsets of ImageNet are often made, a link to nowhere and one that loops."""
    for wnid in ("n01440764", "n02102040"):
        (root / "store" / wnid).mkdir(parents=True)
        for number in range(2):
            (root / "store" / wnid / f"{wnid}_{number}.JPEG").write_bytes(b"\xff\xd8")
    chosen = root / "chosen" / "train"
    chosen.mkdir(parents=True)
    for wnid in ("n01440764", "n02102040"):
        (chosen / wnid).symlink_to(root / "store" / wnid)
    (chosen / "missing").symlink_to(root / "nothing")
    (chosen / "loop").symlink_to(chosen)
    return root / "chosen"


def test_links_that_were_not_followed_are_said(cli: Cli, tmp_path: Path) -> None:
    path = folder_of_links(tmp_path)
    fails(cli("fetch", "--from", path), 3, "4 symbolic links were not followed", "follow them with --follow-links")
    for wnid in ("n03000684", "n03028079"):
        (path / "train" / wnid).mkdir()
        (path / "train" / wnid / f"{wnid}_1.JPEG").write_bytes(b"\xff\xd8")
    result = cli("fetch", "--from", path)

    assert result.exit_code == 0, result.output
    said = "4 symbolic links were not followed (first: train/loop); --follow-links follows them"
    assert result.stderr == f"Warning: {said}\n"
    printed = json.loads(cli("fetch", "--from", path, "--json").stdout)
    assert printed["links"] == {"not_followed": {"count": 4, "first": "train/loop"}}


def test_links_that_are_followed(cli: Cli, tmp_path: Path) -> None:
    path = folder_of_links(tmp_path)
    result = cli("fetch", "--from", path, "--follow-links", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)

    assert (document["source"]["num_members"], document["source"]["follow_links"]) == (4, True)
    assert document["links"] == {
        "broken": {"count": 1, "first": "train/missing"},
        "circular": {"count": 1, "first": "train/loop"},
    }
    assert "1 symbolic links lead nowhere (first: train/missing)" in result.stderr
    assert "1 symbolic links lead back to a folder they lie in (first: train/loop)" in result.stderr
    assert "4 train" in cli("catalog").stdout


def test_following_links_goes_with_a_folder(cli: Cli, toy_zip: Path) -> None:
    fails(cli("fetch", "--follow-links"), 2, "--follow-links goes with --from")
    fails(cli("fetch", "--from", toy_zip, "--follow-links"), 2, "--follow-links goes with a folder")
    assert files() == {}


def test_a_folder_that_was_changed_in_place_is_not_up_to_date(cli: Cli, tmp_path: Path) -> None:
    path = folder_of_links(tmp_path)
    assert cli("fetch", "--from", path, "--follow-links").exit_code == 0
    touch(path / "train" / "n01440764" / "n01440764_0.JPEG")
    fails(cli("fetch", "--from", path, "--follow-links"), 2, "files were changed in place", "use --overwrite")
    assert cli("fetch", "--from", path, "--follow-links", "--overwrite").stdout.startswith("adopted ")
    assert cli("fetch", "--from", path, "--follow-links").stdout.startswith("up to date: ")
