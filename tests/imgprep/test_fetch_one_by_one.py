"""one_by_one: few files through Kaggle's own calls, slowly, where a server gives no ranges."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.backoff import Backoff
from imgprep.errors import DamagedError, MemberError, NetworkError, UsageError
from imgprep.fetch import one_by_one
from imgprep.fetch.one_by_one import FileFetcher, fetch_files, parse_train_list, plan_files
from imgprep.fetch.part import find_record
from imgprep.fetch.request import PartRequest
from imgprep.layouts.ilsvrc import MAPPING, VAL_SOLUTION
from imgprep.selection import SubsetSpec
from imgprep.sources import open_source
from imgprep.sources.part import ArchiveRecord, PartRecord
from imgprep.subset import load_manifest, select
from imgprep.tables import manifest_records, write_table
from imgprep.testing.kaggle import Fault, FaultKind, KaggleStandIn
from imgprep.transfer import TransferSpec, Wire
from imgprep.workspace import Workspace

SMALL = PartRequest(subset=SubsetSpec(classes=2, per_class=3, val_per_class=1))

Read = Callable[[str], bytes]


@pytest.fixture
def read(toy_zip: Path) -> Read:
    """Files of the archive, without a network."""

    def read(name: str) -> bytes:
        with zipfile.ZipFile(toy_zip) as archive:
            return archive.read(name)

    return read


@pytest.fixture
def fetcher(
    toy_zip: Path, serve: Callable[..., KaggleStandIn], kaggle: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[KaggleStandIn, FileFetcher]]:
    """A stand-in and what fetches single files from it, with no pause between two."""
    monkeypatch.setattr(one_by_one, "SECONDS_A_FILE", 0.0)

    def make(*faults: Fault, backoff: Backoff | None = None, **settings: Any) -> tuple[KaggleStandIn, FileFetcher]:
        stand_in = serve(toy_zip, faults=faults, **settings)
        quick = backoff or Backoff(retries=3, base=0.01, longest=0.05)
        return stand_in, FileFetcher(kaggle(stand_in), TransferSpec(timeout=5.0), quick, Wire())

    return make


def test_the_choice_is_that_of_the_subset_command(sharded: Workspace, read: Read) -> None:
    manifest, catalog, _ = load_manifest(sharded, None)
    for spec in (
        SubsetSpec(classes=3, per_class=4, val_per_class=2, seed=7),
        SubsetSpec(classes=("disc", "n90000005"), per_class=50, allow_short=True),
        SubsetSpec(),
    ):
        plan = plan_files(PartRequest(subset=spec), read)
        expected = select(manifest, catalog, spec)
        assert set(plan.names) == {
            MAPPING, VAL_SOLUTION, *(record.path for record in manifest_records(expected.manifest))
        }  # fmt: skip
        assert plan.pictures == {split: expected.num_rows(split) for split in ("train", "val")}


def test_a_manifest_is_met_by_exactly_its_pictures(sharded: Workspace, read: Read, tmp_path: Path) -> None:
    manifest, catalog, _ = load_manifest(sharded, None)
    rows = select(manifest, catalog, SubsetSpec(classes=2, per_class=2)).manifest
    write_table(tmp_path / "manifest.csv", rows)
    plan = plan_files(PartRequest(manifest=tmp_path / "manifest.csv"), read)

    assert set(plan.names) == {MAPPING, VAL_SOLUTION, *(record.path for record in manifest_records(rows))}


def test_lists_alone(read: Read) -> None:
    assert plan_files(PartRequest(), read).names == (MAPPING, VAL_SOLUTION)


def test_too_many_files_are_refused_with_the_other_ways(read: Read, sharded: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no more than 9 files can be fetched; this part has 10 - ask for fewer"):
        plan_files(SMALL, read, max_files=9)
    assert len(plan_files(SMALL, read, max_files=10).names) == 10
    manifest, _, _ = load_manifest(sharded, None)
    write_table(tmp_path / "manifest.csv", manifest)
    with pytest.raises(UsageError, match="no more than 9 files"):
        plan_files(PartRequest(manifest=tmp_path / "manifest.csv"), read, max_files=9)


def test_the_train_list_names_classes_and_keys() -> None:
    assert parse_train_list(b"n00000001/n00000001_2 1\n\nn00000002/a-b 2\n", where="x") == {
        "n00000001": ["n00000001_2"],
        "n00000002": ["a-b"],
    }


@given(st.binary(max_size=80) | st.text(alphabet="n0/ .\n-_1a", max_size=60).map(str.encode))
def test_no_train_list_breaks_it_or_leaves_a_folder(content: bytes) -> None:
    try:
        found = parse_train_list(b"n00000001/" + content, where="train_cls.txt")
    except MemberError:
        return
    assert all("/" not in key and "." not in key for keys in found.values() for key in keys)


def test_files_arrive_as_they_are_stored(fetcher: Callable[..., tuple[KaggleStandIn, FileFetcher]], read: Read) -> None:
    _, files = fetcher(zipped_files=[VAL_SOLUTION])
    for name in (MAPPING, VAL_SOLUTION):
        assert files.read(name) == read(name)


@pytest.mark.parametrize("kind", ["cut", "close", "status", "expired", "flip", "wrong-length", "html", "gzip"])
def test_what_passes_is_got_over(
    fetcher: Callable[..., tuple[KaggleStandIn, FileFetcher]], read: Read, kind: FaultKind
) -> None:
    stand_in, files = fetcher(Fault(kind=kind, times=2))

    assert files.read(VAL_SOLUTION) == read(VAL_SOLUTION)
    assert [bool(request.fault) for request in stand_in.requests] == [True, True, False]


@pytest.mark.parametrize("zipped", [(), (VAL_SOLUTION,)], ids=["plain", "zipped"])
def test_a_file_that_stays_altered_is_an_error(
    fetcher: Callable[..., tuple[KaggleStandIn, FileFetcher]], zipped: tuple[str, ...]
) -> None:
    stand_in, files = fetcher(Fault(kind="flip", times=None), zipped_files=zipped)
    with pytest.raises(MemberError, match="arrived altered: its MD5 is another one"):
        files.read(VAL_SOLUTION)
    assert len(stand_in.requests) == 3


def test_a_zip_that_holds_something_else_is_refused() -> None:
    with pytest.raises(MemberError, match=r"x\.csv\.zip is damaged"):
        one_by_one._unwrapped(b"PK no zip", "a/x.csv", "x.csv.zip")
    assert one_by_one._unwrapped(b"plain", "a/x.csv", "x.csv") == b"plain"


def test_between_two_files_there_is_a_pause(
    fetcher: Callable[..., tuple[KaggleStandIn, FileFetcher]], clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, files = fetcher(backoff=Backoff(stop=clock))
    monkeypatch.setattr(one_by_one, "SECONDS_A_FILE", 1.0)
    for _ in range(3):
        files.read(MAPPING)
    assert clock.waits == [1.0, 1.0]
    clock.set()
    with pytest.raises(NetworkError, match="was stopped"):
        files.read(MAPPING)


def test_files_are_held_and_only_missing_ones_read(read: Read, tmp_path: Path) -> None:
    folder = tmp_path / "part"
    plan = plan_files(SMALL, read)
    asked: list[str] = []

    def counted(name: str) -> bytes:
        asked.append(name)
        return read(name)

    record = fetch_files(plan, folder, SMALL, None, counted, archive="a.zip")
    assert set(asked) == set(plan.names) - plan.contents.keys()
    assert find_record(folder) == (record, "")
    assert record.requests == (SMALL.to_options(),)
    with open_source(folder) as source:
        assert {member.name: source.read(member.name) for member in source.members()} == {
            name: read(name) for name in plan.names
        }
    asked.clear()
    victim = next(name for name in plan.names if name.endswith(".JPEG"))
    (folder / victim).unlink()
    fetch_files(plan, folder, SMALL, record, counted, archive="a.zip")
    assert asked == [victim]


def test_an_interrupted_part_goes_on_where_it_stopped(read: Read, tmp_path: Path) -> None:
    folder = tmp_path / "part"
    plan = plan_files(SMALL, read)
    asked: list[str] = []

    def failing(name: str) -> bytes:
        if len(asked) == 3:
            raise NetworkError("gone")
        asked.append(name)
        return read(name)

    with pytest.raises(NetworkError):
        fetch_files(plan, folder, SMALL, None, failing, archive="a.zip")
    before, _ = find_record(folder)
    assert before is not None
    assert before.requests == ()
    first, asked = asked, []

    def counted(name: str) -> bytes:
        asked.append(name)
        return read(name)

    fetch_files(plan, folder, SMALL, before, counted, archive="a.zip")
    assert not set(first) & set(asked)
    assert len(first) + len(asked) == 8


def test_a_file_of_no_bytes_is_refused(read: Read, tmp_path: Path) -> None:
    """Kaggle has sent empty files for real ones."""
    plan = plan_files(SMALL, read)
    with pytest.raises(DamagedError, match="arrived empty"):
        fetch_files(plan, tmp_path / "part", SMALL, None, lambda _: b"", archive="a.zip")


def test_it_does_not_mix_with_what_came_by_ranges(read: Read, tmp_path: Path) -> None:
    before = PartRecord(archive=ArchiveRecord(name="a.zip", num_bytes=5), requests=(), members={})
    with pytest.raises(UsageError, match="by ranges, which the server now ignores"):
        fetch_files(plan_files(SMALL, read), tmp_path / "part", SMALL, before, read, archive="a.zip")
    assert not (tmp_path / "part").exists()
