"""whole: the archive byte for byte, in parts that are checked as they arrive and never fetched twice."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import ChangedError, DamagedError, NetworkError, NoSpaceError, OutputExistsError
from imgprep.fetch.online import ARCHIVE_NAME
from imgprep.fetch.whole import WholePlan, fetch_whole, forget_state, plan_parts, plan_whole
from imgprep.sources.remote_zip import RemoteZip, member_stops
from imgprep.sources.zip_directory import ZipDirectory
from imgprep.testing.kaggle import Fault, KaggleStandIn
from imgprep.workspace import Workspace

Serve = Callable[..., KaggleStandIn]
Open = Callable[..., RemoteZip]

PART_BYTES = 100_000


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "w")


def beside(plan: WholePlan) -> tuple[Path, Path]:
    return plan.path.with_name(f"{plan.path.name}.part"), plan.path.with_name(f"{plan.path.name}.state")


def make_directory(sizes: list[int], gaps: list[int], order: list[int]) -> tuple[ZipDirectory, int]:
    """A directory of members of these sizes, with gaps between them, listed in that order; and where it begins."""
    stops = np.cumsum([30 + size + gap for size, gap in zip(sizes, gaps, strict=True)])
    starts = np.append([0], stops[:-1])[: len(sizes)]
    listed = np.array(order, dtype=np.int64)
    offset = starts[listed].astype(np.uint64)
    end = int(stops[-1]) if sizes else 0
    directory = ZipDirectory.__new__(ZipDirectory)
    directory.offset, directory.packed = offset, np.array(sizes, dtype=np.uint64)[listed]
    directory.__dict__["end"] = stops[listed].astype(np.uint64)
    return directory, end


@given(
    members=st.lists(st.tuples(st.integers(0, 300) | st.integers(0, 5000), st.integers(0, 50)), max_size=60),
    part_bytes=st.integers(1, 3000),
    shuffle=st.randoms(use_true_random=False),
)
def test_parts_cover_everything_once_and_every_member_is_checked_once(
    members: list[tuple[int, int]], part_bytes: int, shuffle: Any
) -> None:
    order = list(range(len(members)))
    shuffle.shuffle(order)
    directory, end = make_directory([size for size, _ in members], [gap for _, gap in members], order)
    parts, spanning = plan_parts(directory, end, part_bytes=part_bytes)
    bounds = [0, *(part.stop for part in parts)]
    stops = member_stops(directory, end)
    inside = [member for part in parts for member in part.members.tolist()]

    assert [part.start for part in parts] == bounds[:-1]
    assert bounds[-1] == end
    assert all(0 < stop - start <= 2 * part_bytes for start, stop in itertools.pairwise(bounds))
    assert [part.number for part in parts] == list(range(len(parts)))
    assert sorted([*inside, *spanning.tolist()]) == list(range(len(members)))
    for part in parts:
        offsets = directory.offset[part.members]
        assert np.array_equal(offsets, np.sort(offsets))
        assert all(part.start <= int(offset) for offset in offsets)
        assert all(int(stop) <= part.stop for stop in stops[part.members])
    # Only what is larger than a part may lie in several of them.
    assert all(int(stops[member] - directory.offset[member]) > part_bytes for member in spanning)


@pytest.mark.parametrize("part_bytes", [3_000, PART_BYTES, 1 << 30])
def test_the_archive_arrives_byte_for_byte(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, part_bytes: int
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in, jobs=4)
    plan = plan_whole(workspace, remote, part_bytes=part_bytes)
    assert not workspace.root.exists()
    stand_in.forget()
    fetch_whole(plan, remote)

    assert plan.path.read_bytes() == wide_zip.read_bytes()
    # The directory is written from what was read to plan.
    assert stand_in.storage_bytes == plan.read_bytes == remote.place.offset
    forget_state(plan.path)
    assert list(plan.path.parent.iterdir()) == [plan.path]


def test_members_larger_than_a_part_are_checked_too(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in, jobs=2)
    plan = plan_whole(workspace, remote, part_bytes=3_000)
    assert len(plan.spanning) > 50
    start = int(remote.directory.offset[plan.spanning[3]])
    stand_in.add_fault(Fault(kind="flip", from_byte=start, percent=70, times=3))
    fetch_whole(plan, remote)

    assert plan.path.read_bytes() == wide_zip.read_bytes()
    assert remote.altered >= 1


def test_altered_members_are_fetched_again_by_themselves(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    plan = plan_whole(workspace, remote, part_bytes=PART_BYTES)
    stand_in.add_fault(Fault(kind="flip", times=5, min_bytes=20_000))
    stand_in.forget()
    fetch_whole(plan, remote)

    assert plan.path.read_bytes() == wide_zip.read_bytes()
    assert remote.altered == 5
    assert stand_in.storage_bytes < plan.read_bytes + 5 * 20_000


def test_members_that_stay_altered_leave_no_archive(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    plan = plan_whole(workspace, remote, part_bytes=PART_BYTES)
    stand_in.add_fault(Fault(kind="flip", times=None))
    with pytest.raises(DamagedError, match="damaged where it is stored"):
        fetch_whole(plan, remote)

    assert not plan.path.exists()
    stand_in.clear_faults()
    fetch_whole(plan_whole(workspace, remote_zip(stand_in), part_bytes=PART_BYTES), remote_zip(stand_in))
    assert plan.path.read_bytes() == wide_zip.read_bytes()


def interrupted(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, *, after: int = 8
) -> tuple[KaggleStandIn, WholePlan]:
    """A transfer that failed after some parts."""
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in, retries=0, jobs=1)
    plan = plan_whole(workspace, remote, part_bytes=PART_BYTES)
    stand_in.add_fault(Fault(kind="status", after=after, times=None))
    with pytest.raises(NetworkError, match="run the same command again"):
        fetch_whole(plan, remote)
    stand_in.clear_faults()
    return stand_in, plan


def test_parts_that_are_done_are_not_fetched_again(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    stand_in, plan = interrupted(serve, remote_zip, workspace, wide_zip)
    part_path, state_path = beside(plan)
    assert not plan.path.exists()
    assert part_path.stat().st_size == wide_zip.stat().st_size
    assert state_path.exists()
    remote = remote_zip(stand_in)
    again = plan_whole(workspace, remote, part_bytes=PART_BYTES)
    stand_in.forget()
    fetch_whole(again, remote)

    assert len(again.done) == 8
    assert (
        again.read_bytes
        == stand_in.storage_bytes
        == plan.read_bytes - sum(part.stop - part.start for part in plan.parts if part.number in again.done)
    )
    assert plan.path.read_bytes() == wide_zip.read_bytes()


@pytest.mark.parametrize("loss", ["part", "state", "garbage", "shorter", "part_bytes"])
def test_what_is_not_known_to_be_done_is_fetched(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, loss: str
) -> None:
    stand_in, plan = interrupted(serve, remote_zip, workspace, wide_zip)
    part_path, state_path = beside(plan)
    if loss == "part":
        part_path.unlink()
    elif loss == "state":
        state_path.unlink()
    elif loss == "garbage":
        state_path.write_bytes(b"\xff\x00not a state\npart 1\n")
    elif loss == "shorter":
        os.truncate(part_path, 1000)
    part_bytes = 2 * PART_BYTES if loss == "part_bytes" else PART_BYTES
    again = plan_whole(workspace, remote_zip(stand_in), part_bytes=part_bytes)
    assert again.done == frozenset()
    fetch_whole(again, remote_zip(stand_in))
    assert plan.path.read_bytes() == wide_zip.read_bytes()


def test_a_line_that_was_cut_off_does_not_count(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    stand_in, plan = interrupted(serve, remote_zip, workspace, wide_zip)
    _, state_path = beside(plan)
    with state_path.open("ab") as file:
        file.write(b"part 15\npart 999999\npart 1x\nwhat\npart 1")
    again = plan_whole(workspace, remote_zip(stand_in), part_bytes=PART_BYTES)

    assert again.done == frozenset([*range(8), 15])


def test_a_replaced_archive_is_not_mixed_with_what_is_here(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, tmp_path: Path
) -> None:
    stand_in, plan = interrupted(serve, remote_zip, workspace, wide_zip)
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
        archive.writestr("x", bytes(300_000))
    stand_in.replace(tmp_path / "new.zip")
    before = {path: path.read_bytes() for path in beside(plan)}
    with pytest.raises(ChangedError, match=r"was replaced since its transfer began.*--overwrite"):
        plan_whole(workspace, remote_zip(stand_in), part_bytes=PART_BYTES)
    remote = remote_zip(stand_in)
    plan_whole(workspace, remote, overwrite=True, part_bytes=PART_BYTES)
    assert {path: path.read_bytes() for path in beside(plan)} == before
    fetch_whole(plan_whole(workspace, remote, overwrite=True, part_bytes=PART_BYTES), remote)
    assert plan.path.read_bytes() == (tmp_path / "new.zip").read_bytes()


def test_a_replacement_of_the_same_size_during_the_transfer_ends_it(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    plan = plan_whole(workspace, remote, part_bytes=PART_BYTES)
    stand_in.add_fault(Fault(kind="replaced", after=5))
    with pytest.raises(ChangedError, match="--overwrite"):
        fetch_whole(plan, remote)
    assert not plan.path.exists()


def test_an_archive_that_was_not_recorded_yet_is_whole_already(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path
) -> None:
    """A kill between the rename and the record."""
    stand_in = serve(wide_zip)
    plan = plan_whole(workspace, remote_zip(stand_in), part_bytes=PART_BYTES)
    fetch_whole(plan, remote_zip(stand_in))
    again = plan_whole(workspace, remote_zip(stand_in), part_bytes=PART_BYTES)
    assert again.missing == []
    fetch_whole(again, remote_zip(stand_in))
    assert plan.path.read_bytes() == wide_zip.read_bytes()


def test_no_space_is_foreseen_before_any_part_is_asked_for(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    plan = plan_whole(workspace, remote, part_bytes=PART_BYTES)
    stand_in.forget()
    usage = shutil.disk_usage(wide_zip.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(NoSpaceError, match=r"bytes are needed, 100,000 are free"):
        fetch_whole(plan, remote)
    assert stand_in.requests == []


def test_space_that_is_taken_already_is_not_asked_for_again(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in, plan = interrupted(serve, remote_zip, workspace, wide_zip, after=25)
    again = plan_whole(workspace, remote_zip(stand_in), part_bytes=PART_BYTES)
    usage = shutil.disk_usage(wide_zip.parent)
    free = plan.archive.num_bytes // 2
    assert again.read_bytes < free
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    fetch_whole(again, remote_zip(stand_in))
    assert plan.path.read_bytes() == wide_zip.read_bytes()


def test_a_disk_that_fills_up_ends_it_at_once_and_the_next_run_goes_on(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    plan = plan_whole(workspace, remote, part_bytes=PART_BYTES)
    assert len(plan.parts) > 12
    written = itertools.count()
    lock = threading.Lock()
    real = os.pwrite

    def pwrite(handle: int, content: memoryview, position: int) -> int:
        with lock:
            if next(written) >= 6:
                raise OSError(errno.ENOSPC, "No space left on device")
        # As a full disk does first: less than was asked for.
        return real(handle, content[: max(1, len(content) // 2)] if len(content) > 40_000 else content, position)

    stand_in.forget()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(OSError, match="No space left"):
            fetch_whole(plan, remote)

    assert remote.remote.wire.retries == 0
    assert len(stand_in.requests) < len(plan.parts)
    assert not plan.path.exists()
    again = plan_whole(workspace, remote_zip(stand_in), part_bytes=PART_BYTES)
    fetch_whole(again, remote_zip(stand_in))
    assert plan.path.read_bytes() == wide_zip.read_bytes()


def test_an_archive_without_members_is_an_archive(
    serve: Serve, remote_zip: Open, workspace: Workspace, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    remote = remote_zip(serve(tmp_path / "empty.zip"))
    plan = plan_whole(workspace, remote)
    fetch_whole(plan, remote)

    assert plan.path.read_bytes() == (tmp_path / "empty.zip").read_bytes()


@pytest.mark.parametrize("kept", [0, 1000])
def test_notes_of_a_file_that_is_gone_never_speak_of_the_next_one(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """The unfinished file was deleted or cut, and the next run is killed before its first byte arrives."""
    stand_in = serve(wide_zip)
    remote = remote_zip(stand_in)
    stand_in.add_fault(Fault(kind="status", status=500, times=None, after=6))
    plan = plan_whole(workspace, remote, part_bytes=PART_BYTES)
    with pytest.raises(NetworkError):
        fetch_whole(plan, remote, sync_seconds=0)
    stand_in.clear_faults()
    part_path, _ = beside(plan)
    os.truncate(part_path, kept) if kept else part_path.unlink()

    def die(_: object) -> None:
        raise KeyboardInterrupt

    again = remote_zip(stand_in)
    monkeypatch.setattr(again, "write_end", die)
    with pytest.raises(KeyboardInterrupt):
        fetch_whole(plan_whole(workspace, again, part_bytes=PART_BYTES), again)
    last = remote_zip(stand_in)
    fetch_whole(plan_whole(workspace, last, part_bytes=PART_BYTES), last)

    assert plan.path.read_bytes() == wide_zip.read_bytes()


@pytest.mark.parametrize("folder", [False, True])
def test_an_archive_that_no_fetch_made_is_not_written_over(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, folder: bool
) -> None:
    path = workspace.root / "raw" / ARCHIVE_NAME
    path.parent.mkdir(parents=True)
    path.mkdir() if folder else path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="is there already"):
        plan_whole(workspace, remote_zip(serve(wide_zip)))

    assert folder or path.read_bytes() == b"mine"


def test_an_unfinished_archive_that_is_a_link_is_not_followed(
    serve: Serve, remote_zip: Open, workspace: Workspace, wide_zip: Path, tmp_path: Path
) -> None:
    remote = remote_zip(serve(wide_zip))
    plan = plan_whole(workspace, remote)
    (tmp_path / "mine").write_bytes(b"mine")
    beside(plan)[0].parent.mkdir(parents=True)
    beside(plan)[0].symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic links"):
        fetch_whole(plan, remote)

    assert (tmp_path / "mine").read_bytes() == b"mine"
