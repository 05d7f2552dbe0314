"""part: only what is missing goes over the network; what is here and whole stays; the record comes last."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgprep.errors import ChangedError, DamagedError, NetworkError, NoSpaceError, SourceError, as_imgprep_error
from imgprep.fetch import space
from imgprep.fetch.part import (
    MemberWriter,
    PartPlan,
    fetch_part,
    find_met,
    find_record,
    is_whole,
    part_folder,
    plan_part,
)
from imgprep.fetch.request import PartRequest
from imgprep.selection import SubsetSpec
from imgprep.sources import Member, open_source
from imgprep.sources.adopted import describe_source, write_source_record
from imgprep.sources.remote_zip import RemoteZip
from imgprep.testing.archives import VirtualImagenet
from imgprep.testing.kaggle import Fault, KaggleStandIn
from imgprep.workspace import Workspace

Serve = Callable[..., KaggleStandIn]
Open = Callable[..., RemoteZip]

SMALL = PartRequest(subset=SubsetSpec(classes=2, per_class=5, val_per_class=2))
LARGER = PartRequest(subset=SubsetSpec(classes=3, per_class=9, val_per_class=4))
OTHER = PartRequest(subset=SubsetSpec(classes=("n00000001",), per_class=3, val_per_class=0))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "w")


def get(workspace: Workspace, remote: RemoteZip, request: PartRequest, **options: Any) -> PartPlan:
    plan = plan_part(workspace, request, remote, **options)
    fetch_part(plan, remote)
    return plan


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_members(plan: PartPlan, archive: Path) -> None:
    """On disk are the members that the record lists, as they are in the archive, and the record."""
    with zipfile.ZipFile(archive) as local:
        expected = {name: local.read(name) for name in plan.record.members}
    found = tree(plan.folder)
    assert {name: content for name, content in found.items() if not name.startswith("fetch.")} == expected


def test_a_part_is_its_members_and_a_record(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    plan = get(workspace, remote, SMALL)

    check_members(plan, wide_zip)
    assert find_record(plan.folder) == (plan.record, "")
    assert plan.record.archive.etag == stand_in.etag
    assert plan.record.requests == (SMALL.to_options(),)
    with open_source(plan.folder) as source:
        assert all(source.read(member.name) is not None for member in source.members())


def test_planning_writes_nothing_to_the_workspace(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    plan = plan_part(workspace, SMALL, remote_zip(serve(wide_zip)))

    assert plan.action == "run"
    assert not workspace.root.exists()


def test_what_was_read_to_plan_is_not_read_again(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    stand_in.forget()
    plan = get(workspace, remote, SMALL)
    spans = sorted(request.range for request in stand_in.requests if request.range)

    assert len(plan.held) == 2
    assert all(before[1] < after[0] for before, after in itertools.pairwise(spans))
    held = np.array(list(plan.held), dtype=np.int64)
    reach = sum(read.stop - read.start for read in remote.plan(held))
    assert plan.read_bytes < stand_in.storage_bytes <= plan.read_bytes + reach


def test_a_request_inside_an_earlier_one_fetches_nothing(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    first = get(workspace, remote, LARGER)
    stand_in.forget()
    second = get(workspace, remote, SMALL)

    assert (len(second.missing), second.reads, stand_in.requests) == (0, (), [])
    assert second.record.members == first.record.members
    assert second.record.requests == (LARGER.to_options(), SMALL.to_options())


def test_requests_add_up_and_only_what_is_missing_is_fetched(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, tmp_path: Path
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    members: set[str] = set()
    for request in (SMALL, OTHER, LARGER):
        alone = plan_part(Workspace(tmp_path / "alone"), request, remote)
        plan = plan_part(workspace, request, remote)
        asked = {remote.directory.name(int(member)) for member in plan.missing}
        assert asked == alone.record.members.keys() - members
        fetch_part(plan, remote)
        members |= alone.record.members.keys()
        assert plan.record.members.keys() == members
        check_members(plan, wide_zip)


def test_the_order_of_requests_does_not_matter_for_what_is_here(
    serve: Serve, remote_zip: Open, wide_zip: Path, tmp_path: Path
) -> None:
    remote = remote_zip(serve(wide_zip))
    there, back = Workspace(tmp_path / "there"), Workspace(tmp_path / "back")
    for request in (SMALL, OTHER):
        one = get(there, remote, request)
    for request in (OTHER, SMALL):
        two = get(back, remote, request)

    assert one.record.members == two.record.members


@pytest.mark.parametrize("harm", ["gone", "short", "altered"])
def test_files_that_were_harmed_are_fetched_again(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, harm: str
) -> None:
    remote = remote_zip(serve(wide_zip))
    plan = get(workspace, remote, SMALL)
    victims = sorted(plan.record.members)[::5]
    for name in victims:
        path = plan.folder / name
        content = path.read_bytes()
        path.unlink()
        if harm != "gone":
            path.write_bytes(content[:-1] if harm == "short" else bytes(len(content)))
    again = get(workspace, remote, SMALL)

    assert [remote.directory.name(int(member)) for member in again.missing] == [
        name for name in remote.directory.names(again.missing) if name in victims
    ]
    assert len(again.missing) == len(victims)
    check_members(again, wide_zip)


@pytest.mark.parametrize("record", ["fetch.json", "fetch.members.csv"])
def test_a_lost_record_costs_a_look_not_a_transfer(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, record: str
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    plan = get(workspace, remote, SMALL)
    (plan.folder / record).unlink()
    stand_in.forget()

    assert get(workspace, remote, SMALL).record == plan.record
    assert stand_in.storage_bytes == 0


def test_an_interrupted_part_goes_on_where_it_stopped(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in, retries=0, jobs=1)
    plan = plan_part(workspace, LARGER, remote)
    stand_in.add_fault(Fault(kind="status", after=len(plan.reads) // 2, times=None))
    with pytest.raises(NetworkError, match="run the same command again"):
        fetch_part(plan, remote)
    here = tree(plan.folder)
    stand_in.clear_faults()
    again = plan_part(workspace, LARGER, remote_zip(stand_in))
    stand_in.forget()

    assert 0 < len(here) < len(plan.record.members)
    assert find_record(plan.folder)[0] is None
    assert len(again.missing) == len(plan.record.members) - len(here)
    fetch_part(again, remote_zip(stand_in))
    check_members(again, wide_zip)


def test_another_archive_is_not_mixed_in(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide: VirtualImagenet, wide_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    get(workspace, remote_zip(stand_in), LARGER)
    before = tree(workspace.root)
    stand_in.replace(VirtualImagenet(replace(wide.spec, seed=1)))
    other = remote_zip(stand_in)
    with pytest.raises(ChangedError, match=r"was replaced since a part of it was fetched.*--overwrite"):
        plan_part(workspace, LARGER, other)
    assert tree(workspace.root) == before


def test_overwrite_goes_over_to_the_new_archive_and_the_new_request(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide: VirtualImagenet, wide_zip: Path, tmp_path: Path
) -> None:
    stand_in = serve(wide_zip)
    get(workspace, remote_zip(stand_in), LARGER)
    VirtualImagenet(replace(wide.spec, seed=1)).write(tmp_path / "new.zip")
    stand_in.replace(tmp_path / "new.zip")
    plan = get(workspace, remote_zip(stand_in), SMALL, overwrite=True)

    assert plan.record.requests == (SMALL.to_options(),)
    check_members(plan, tmp_path / "new.zip")


def test_the_same_archive_under_another_tag_is_the_same(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    """The directory holds the CRC-32 of every member: where it is equal, so are they."""
    stand_in = serve(wide_zip)
    get(workspace, remote_zip(stand_in), SMALL)
    stand_in.replace(wide_zip)

    assert len(plan_part(workspace, SMALL, remote_zip(stand_in)).missing) == 0


def adopted(workspace: Workspace, plan: PartPlan) -> None:
    with open_source(plan.folder) as source:
        write_source_record(workspace, describe_source(workspace, source, layout="ilsvrc"))


def test_a_request_that_was_met_is_known_without_the_network(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    remote = remote_zip(serve(wide_zip))
    archive = remote.remote.what
    assert find_met(workspace, SMALL, archive) is None
    plan = get(workspace, remote, SMALL)
    assert find_met(workspace, SMALL, archive) is None
    adopted(workspace, plan)
    met = find_met(workspace, SMALL, archive)

    assert met is not None
    assert (met.action, met.record, met.read_bytes) == ("skip", plan.record, 0)
    assert find_met(workspace, LARGER, archive) is None
    next(iter(plan.folder.rglob("*.JPEG"))).unlink()
    assert find_met(workspace, SMALL, archive) is None


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a//b", "a\\b", "", ".", "a/.", "a\0b"])
def test_no_name_leaves_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    with pytest.raises(SourceError, match="cannot be written under this name"):
        MemberWriter(folder).write(name, b"x")
    assert list(tmp_path.rglob("*")) == [folder]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(handle: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = MemberWriter(tmp_path)
    writer.write("a/b", b"before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space left"):
            writer.write("a/b", b"after")

    assert tree(tmp_path) == {"a/b": b"before"}


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"mine")
    folder = tmp_path / "inside"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / ".b.tmp").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="symbolic links"):
        MemberWriter(folder).write("a/b", b"theirs")

    assert (tmp_path / "outside").read_bytes() == b"mine"


@pytest.mark.parametrize(("content", "whole"), [(b"abc", True), (b"abd", False), (b"ab", False), (None, False)])
def test_whole_is_a_matter_of_size_and_checksum(tmp_path: Path, content: bytes | None, whole: bool) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)

    assert is_whole(path, Member("x", 3, zlib.crc32(b"abc"))) is whole


def test_a_folder_where_a_file_should_be_is_not_whole(tmp_path: Path) -> None:
    assert not is_whole(tmp_path, Member("x", tmp_path.stat().st_size, 0))


def test_no_space_is_foreseen_before_any_member_is_asked_for(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    plan = plan_part(workspace, SMALL, remote)
    stand_in.forget()
    usage = shutil.disk_usage(wide_zip.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NoSpaceError, match=r"bytes are needed, 1,000 are free at .* - free some space"):
        fetch_part(plan, remote)
    assert stand_in.requests == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    mount = tmp_path / "small-disk"
    mount.mkdir()
    command = f"mount -t tmpfs -o size=1m tmpfs {mount}"
    if os.geteuid() != 0 or shutil.which("mount") is None or os.system(command) != 0:
        pytest.skip("a small file system can only be mounted by the superuser")
    yield mount
    assert os.system(f"umount -l {mount}") == 0


def test_a_disk_that_fills_up_ends_it_at_once_and_the_next_run_goes_on(
    serve: Serve, remote_zip: Open, wide_zip: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real full disk: somebody else took the space that was there when it was asked for."""
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    workspace = Workspace(small_disk / "w")
    plan = plan_part(workspace, SMALL, remote)
    (small_disk / "filler").write_bytes(bytes(800_000))
    with monkeypatch.context() as patch:
        patch.setattr(space, "free_bytes", lambda _: 1 << 40)
        with pytest.raises(OSError, match="No space left") as caught:
            fetch_part(plan, remote)
    assert as_imgprep_error(caught.value).exit_code == 6
    assert remote.remote.wire.retries == 0
    here = tree(plan.folder)
    with zipfile.ZipFile(wide_zip) as local:
        assert here == {name: local.read(name) for name in here}
    (small_disk / "filler").unlink()
    again = plan_part(workspace, SMALL, remote_zip(stand_in))
    assert 0 < len(here) == len(plan.missing) - len(again.missing)
    fetch_part(again, remote_zip(stand_in))
    check_members(again, wide_zip)


def test_members_that_stay_altered_leave_nothing_under_their_names(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    plan = plan_part(workspace, SMALL, remote)
    stand_in.add_fault(Fault(kind="flip", percent=99, times=None))
    with pytest.raises(DamagedError, match="damaged where it is stored"):
        fetch_part(plan, remote)

    assert find_record(plan.folder)[0] is None
    with zipfile.ZipFile(wide_zip) as local:
        assert all(content == local.read(name) for name, content in tree(plan.folder).items())


def test_where_a_part_lies_is_named_after_its_archive(workspace: Workspace) -> None:
    assert part_folder(workspace, "some.zip") == workspace.root / "raw" / "some"
