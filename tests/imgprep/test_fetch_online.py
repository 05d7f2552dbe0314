"""online: one conversation about one request, from what is here to what is recorded as the source."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from imgprep.annotations import annotations as read_annotations
from imgprep.catalog import catalog
from imgprep.errors import ChangedError, LockedError, NetworkError, OutputExistsError, UsageError
from imgprep.fetch import fetch, one_by_one
from imgprep.fetch.online import ARCHIVE_NAME, Online, OnlinePlan, OnlineReport, report_document
from imgprep.fetch.request import PartRequest
from imgprep.selection import SubsetSpec
from imgprep.sources.adopted import open_adopted, read_source_record
from imgprep.sources.zip_directory import TAIL_BYTES
from imgprep.subset import plan_subset, subset
from imgprep.tables import manifest_records
from imgprep.testing.kaggle import Fault, KaggleStandIn
from imgprep.workspace import Workspace

Serve = Callable[..., KaggleStandIn]
Talk = Callable[..., Online]

SMALL = PartRequest(subset=SubsetSpec(classes=2, per_class=5, val_per_class=2))
LARGER = PartRequest(subset=SubsetSpec(classes=3, per_class=9, val_per_class=4))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "w")


def run(talk: Online) -> tuple[OnlinePlan, OnlineReport]:
    plan = talk.plan()
    return plan, talk.run(plan)


def test_a_part_becomes_the_source_of_the_workspace(
    serve: Serve, online: Talk, workspace: Workspace, wide_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    plan, report = run(online(workspace, stand_in, SMALL))
    record = read_source_record(workspace)

    assert (plan.action, plan.way, plan.pictures) == ("run", "part", {"train": 10, "val": 4})
    assert report.record == record
    assert (workspace.root / record.path, record.kind) == (plan.path, "part")
    assert report.wire_bytes == stand_in.storage_bytes
    assert report.requests == len(stand_in.requests)
    assert (report.retries, report.checked) == (0, plan.num_held)
    assert report_document(report)["files_held"] == record.num_members
    assert catalog(workspace).action == "run"


def test_the_whole_archive_becomes_the_source_of_the_workspace(
    serve: Serve, online: Talk, workspace: Workspace, wide_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    plan, report = run(online(workspace, stand_in))

    assert (plan.way, plan.num_files, report.checked) == ("whole", plan.num_held, plan.num_held)
    assert plan.path.read_bytes() == wide_zip.read_bytes()
    assert report.wire_bytes == stand_in.storage_bytes < 1.1 * wide_zip.stat().st_size
    assert {path.name for path in plan.path.parent.iterdir()} == {ARCHIVE_NAME, "source.json"}
    with open_adopted(workspace)[0] as source:
        assert source.kind == "zip"


@pytest.mark.parametrize("request_", [None, SMALL, PartRequest()], ids=["whole", "part", "metadata"])
def test_what_is_met_needs_no_network(
    serve: Serve, online: Talk, workspace: Workspace, wide_zip: Path, request_: PartRequest | None
) -> None:
    stand_in = serve(wide_zip)
    first, _ = run(online(workspace, stand_in, request_))
    before = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")}
    stand_in.close()
    talk = online(workspace, stand_in, request_, retries=0)
    plan, report = run(talk)

    assert (plan.action, plan.path, plan.num_held) == ("skip", first.path, first.num_held)
    assert (report.wire_bytes, report.requests, talk._kaggle.asked) == (0, 0, [])  # type: ignore[attr-defined]
    assert {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")} == before


def test_a_part_of_a_whole_archive_is_met(serve: Serve, online: Talk, workspace: Workspace, wide_zip: Path) -> None:
    stand_in = serve(wide_zip)
    run(online(workspace, stand_in))

    assert online(workspace, stand_in, SMALL).plan().action == "skip"


def test_more_is_fetched_on_top(serve: Serve, online: Talk, workspace: Workspace, wide_zip: Path) -> None:
    stand_in = serve(wide_zip)
    run(online(workspace, stand_in, SMALL))
    stand_in.forget()
    plan, report = run(online(workspace, stand_in, LARGER))

    assert 0 < plan.num_files < plan.num_held
    # Only the end of the archive, whose directory is in the cache, and what is missing.
    assert report.wire_bytes == TAIL_BYTES + plan.read_bytes
    assert read_source_record(workspace).num_members == plan.num_held


def test_the_choice_from_a_part_is_that_from_the_whole(
    serve: Serve, online: Talk, workspace: Workspace, wide_zip: Path, tmp_path: Path
) -> None:
    """The street goes on from a part as it does from the archive, down to the digest of the choice."""
    whole = Workspace(tmp_path / "whole")
    fetch(whole, wide_zip)
    run(online(workspace, serve(wide_zip), LARGER))
    for each in (whole, workspace):
        catalog(each)
        read_annotations(each)
    for request in (LARGER, SMALL):
        assert request.subset is not None
        assert plan_subset(workspace, request.subset).digest == plan_subset(whole, request.subset).digest


def test_a_manifest_is_met_by_exactly_its_pictures(
    serve: Serve, online: Talk, workspace: Workspace, wide_zip: Path, tmp_path: Path
) -> None:
    whole = Workspace(tmp_path / "whole")
    fetch(whole, wide_zip)
    catalog(whole)
    read_annotations(whole)
    made = subset(whole, SubsetSpec(classes=2, per_class=4, val_per_class=3), name="mine")
    assert made.selection is not None
    plan, _ = run(online(workspace, serve(wide_zip), PartRequest(manifest=made.folder / "manifest.csv")))
    found = {str(path.relative_to(plan.path)) for path in plan.path.rglob("*.JPEG")}

    assert found == {record.path for record in manifest_records(made.selection.manifest)}
    assert plan.pictures == {"train": 8, "val": 6}


def test_another_source_is_not_replaced_unasked(serve: Serve, online: Talk, fetched: Workspace, wide_zip: Path) -> None:
    stand_in = serve(wide_zip)
    before = read_source_record(fetched)
    with pytest.raises(OutputExistsError, match=r"has another source: .*toy\.zip - use --overwrite"):
        online(fetched, stand_in, SMALL).plan()
    assert (read_source_record(fetched), stand_in.requests) == (before, [])
    run(online(fetched, stand_in, SMALL, overwrite=True))
    assert read_source_record(fetched).kind == "part"


def test_a_changed_archive_is_not_mixed_in(
    serve: Serve, online: Talk, workspace: Workspace, wide_zip: Path, toy_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    run(online(workspace, stand_in, SMALL))
    stand_in.replace(toy_zip)
    with pytest.raises(ChangedError, match="--overwrite"):
        online(workspace, stand_in, LARGER).plan()
    plan, _ = run(online(workspace, stand_in, LARGER, overwrite=True))
    with zipfile.ZipFile(toy_zip) as archive:
        assert {str(path.relative_to(plan.path)) for path in plan.path.rglob("*.JPEG")} < set(archive.namelist())


def test_two_at_once_do_not_mix(serve: Serve, online: Talk, workspace: Workspace, wide_zip: Path) -> None:
    stand_in = serve(wide_zip)
    first, second = online(workspace, stand_in, SMALL), online(workspace, stand_in, LARGER)
    plans = first.plan(), second.plan()
    first.run(plans[0])
    with pytest.raises(LockedError, match="meanwhile - run the same command again"):
        second.run(plans[1])


def test_without_ranges_the_whole_comes_in_one_go(
    serve: Serve, online: Talk, workspace: Workspace, wide_zip: Path
) -> None:
    talk = online(workspace, serve(wide_zip, faults=[Fault(kind="no-range", times=None)]))
    plan, report = run(talk)

    assert (plan.way, plan.archive_bytes) == ("sequential", wide_zip.stat().st_size)
    assert "ignores ranges" in talk.warnings[0]
    assert plan.path.read_bytes() == wide_zip.read_bytes()
    assert report.checked > 900
    assert online(workspace, serve(wide_zip)).plan().action == "skip"


def test_without_ranges_a_part_comes_file_by_file(
    serve: Serve, online: Talk, workspace: Workspace, toy_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_by_one, "SECONDS_A_FILE", 0.0)
    stand_in = serve(toy_zip, faults=[Fault(kind="no-range", times=None)])
    talk = online(workspace, stand_in, SMALL)
    plan, report = run(talk)
    with zipfile.ZipFile(toy_zip) as archive:
        found = {path for path in plan.path.rglob("*") if path.is_file() and not path.name.startswith("fetch.")}
        assert all(archive.read(str(path.relative_to(plan.path))) == path.read_bytes() for path in found)

    assert (plan.way, plan.pictures, len(found)) == ("one by one", {"train": 10, "val": 4}, 16)
    assert "one by one, slowly, without the archive's checksums" in talk.warnings[0]
    assert report.checked == 0
    # The list that served the choice was read as well.
    assert len([name for name in talk._kaggle.asked if name]) == 17  # type: ignore[attr-defined]
    assert online(workspace, stand_in, SMALL).plan().action == "skip"
    more, _ = run(online(workspace, stand_in, PartRequest(subset=SubsetSpec(classes=2, per_class=5, val_per_class=4))))
    assert (more.num_files, more.num_held) == (4, 20)


def test_a_large_part_is_not_fetched_file_by_file(
    serve: Serve, online: Talk, workspace: Workspace, toy_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_by_one, "SECONDS_A_FILE", 0.0)
    monkeypatch.setattr(one_by_one.plan_files, "__kwdefaults__", {"max_files": 5})
    with pytest.raises(UsageError, match="one by one no more than 5 files"):
        online(workspace, serve(toy_zip, faults=[Fault(kind="no-range", times=None)]), SMALL).plan()


def test_an_error_leaves_the_source_as_it_was(serve: Serve, online: Talk, workspace: Workspace, wide_zip: Path) -> None:
    stand_in = serve(wide_zip)
    run(online(workspace, stand_in, SMALL))
    before = read_source_record(workspace)
    talk = online(workspace, stand_in, LARGER, retries=0)
    plan = talk.plan()
    stand_in.add_fault(Fault(kind="close", times=None))
    with pytest.raises(NetworkError):
        talk.run(plan)
    assert read_source_record(workspace) == before
    with open_adopted(workspace)[0] as source:
        assert all(source.read(member.name) is not None for member in source.members())


def test_running_comes_after_planning(serve: Serve, online: Talk, workspace: Workspace, wide_zip: Path) -> None:
    stand_in = serve(wide_zip)
    plan = online(workspace, stand_in, SMALL).plan()
    with pytest.raises(RuntimeError, match="plan"):
        online(workspace, stand_in, SMALL).run(plan)


def test_the_speed_is_told_only_once_it_can_be(
    serve: Serve, online: Talk, workspace: Workspace, wide_zip: Path
) -> None:
    talk = online(workspace, serve(wide_zip))
    talk.plan()
    assert talk.bytes_per_second is None
    talk.wire.count(num_bytes=1 << 30)
    assert (talk.bytes_per_second or 0) > 0
