"""remote_zip: the directory of a zip behind HTTP, read once and kept, and members by as few requests as it takes."""

from __future__ import annotations

import errno
import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import DamagedError, MemberError, SourceError
from imgprep.sources.remote_zip import MAX_READ_BYTES, WASTE, RemoteZip, member_stops, plan_reads
from imgprep.sources.zip_directory import TAIL_BYTES
from imgprep.testing.archives import VirtualImagenet
from imgprep.testing.kaggle import Fault, KaggleStandIn
from imgprep.transfer import RemoteFile

Serve = Callable[..., KaggleStandIn]
Open = Callable[..., RemoteZip]

SIZES = st.integers(30, 10_000) | st.integers(30, 2 * MAX_READ_BYTES)
GAPS = st.integers(0, 300) | st.integers(0, 3 << 20)


@given(st.lists(st.tuples(SIZES, GAPS, st.booleans()), max_size=60), st.randoms(use_true_random=False))
def test_requests_hold_every_wanted_member_once_and_little_else(
    members: list[tuple[int, int, bool]], shuffle: object
) -> None:
    """Members of a size, each with a gap before it, some of them wanted."""
    stops = np.cumsum([size + gap for size, gap, _ in members], dtype=np.uint64)
    starts = stops - np.array([size for size, _, _ in members], dtype=np.uint64)
    wanted = np.array([place for place, (_, _, wanted) in enumerate(members) if wanted], dtype=np.int64)
    shuffle.shuffle(wanted)  # type: ignore[attr-defined]
    reads = plan_reads(starts[wanted], stops[wanted], wanted)
    useful = int((stops - starts)[wanted].sum())
    bounds = [bound for read in reads for bound in (read.start, read.stop)]

    assert [member for read in reads for member in read.members.tolist()] == sorted(wanted.tolist())
    assert bounds == sorted(bounds)
    assert sum(read.stop - read.start for read in reads) <= useful * (1 + WASTE)
    for read in reads:
        assert read.start == starts[read.members[0]]
        assert read.stop == stops[read.members[-1]]
        assert read.stop - read.start <= MAX_READ_BYTES or len(read.members) == 1


@given(st.lists(st.integers(30, 1 << 20), min_size=1, max_size=200))
def test_neighbours_are_read_together(sizes: list[int]) -> None:
    stops = np.cumsum(sizes).astype(np.uint64)
    reads = plan_reads(stops - np.array(sizes, dtype=np.uint64), stops, np.arange(len(sizes)))

    # All but the last are as full as a request may be.
    assert all(read.stop - read.start > MAX_READ_BYTES - (1 << 20) for read in reads[:-1])


def test_all_members_are_those_of_the_zip(serve: Serve, remote_zip: Open, wide_zip: Path) -> None:
    archive = remote_zip(serve(wide_zip))
    with zipfile.ZipFile(wide_zip) as local:
        infos = local.infolist()
        names = [info.filename for info in infos]

        assert [(m.name, m.num_bytes, m.crc32) for m in archive.members()] == [
            (info.filename, info.file_size, info.CRC) for info in infos
        ]
        for name in [names[0], names[len(names) // 2], names[-1]]:
            assert archive.read(name) == local.read(name)
    with pytest.raises(MemberError, match="has no member nowhere"):
        archive.read("nowhere")


def test_chosen_members_are_fetched_from_many_threads(serve: Serve, remote_zip: Open, wide_zip: Path) -> None:
    stand_in = serve(wide_zip)
    archive = remote_zip(stand_in, jobs=4)
    members = np.arange(0, len(archive.directory), 7)
    reads = archive.plan(members)
    stand_in.forget()
    stored: dict[int, bytes] = {}

    assert sum(archive.fetch(reads, stored.__setitem__)) == len(members)
    assert stand_in.storage_bytes == sum(read.stop - read.start for read in reads)
    with zipfile.ZipFile(wide_zip) as local:
        assert stored == {member: local.read(archive.directory.name(member)) for member in members.tolist()}


def test_the_directory_is_read_once_and_then_kept(
    serve: Serve, remote_zip: Open, wide: VirtualImagenet, wide_zip: Path
) -> None:
    stand_in = serve(wide_zip)
    first = remote_zip(stand_in)
    all_bytes = stand_in.storage_bytes
    stand_in.forget()
    second = remote_zip(stand_in)

    assert wide.directory_bytes > TAIL_BYTES
    assert all_bytes == wide.size - wide.directory_offset
    assert [request.range_header for request in stand_in.requests] == [f"bytes=-{TAIL_BYTES}"]
    assert (first.from_cache, second.from_cache) == (False, True)
    assert list(second.members()) == list(first.members())


def test_another_object_has_another_directory(serve: Serve, remote_zip: Open, wide_zip: Path) -> None:
    """Of the same size and at the same place: only its validator tells it."""
    stand_in = serve(wide_zip)
    remote_zip(stand_in)
    stand_in.replace(wide_zip)

    assert not remote_zip(stand_in).from_cache


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "misname"])
def test_a_kept_directory_that_was_damaged_is_read_again(
    serve: Serve, remote_zip: Open, wide_zip: Path, tmp_path: Path, harm: str
) -> None:
    stand_in = serve(wide_zip)
    members = list(remote_zip(stand_in).members())
    (kept,) = (tmp_path / "cache").iterdir()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    harmed = {"flip": bytes(content), "cut": bytes(content[:-1]), "empty": b"", "misname": kept.read_bytes()}
    kept.write_bytes(harmed[harm])
    if harm == "misname":
        kept.rename(kept.with_name(f"{kept.name[:24]}-00000000.directory"))
    again = remote_zip(stand_in)

    assert not again.from_cache
    assert list(again.members()) == members
    assert remote_zip(stand_in).from_cache


def test_what_a_killed_process_left_is_removed(serve: Serve, remote_zip: Open, wide_zip: Path, tmp_path: Path) -> None:
    stand_in = serve(wide_zip)
    remote_zip(stand_in)
    (kept,) = (tmp_path / "cache").iterdir()
    key = kept.name[:24]
    kept.unlink()
    # No process has the first of these numbers; the second is this one's parent at least.
    dead, alive, other = (kept.with_name(n) for n in (f".{key}.4999999.tmp", f".{key}.1.tmp", f".{'0' * 24}.5.tmp"))
    for path in (dead, alive, other):
        path.write_bytes(b"x")
    remote_zip(stand_in)

    assert [path.exists() for path in (dead, alive, other)] == [False, True, True]


def test_the_directory_is_checked_before_it_is_believed(serve: Serve, remote_zip: Open, wide_zip: Path) -> None:
    stand_in = serve(wide_zip, faults=[Fault(kind="cut", percent=30), Fault(kind="flip", after=1)])
    with pytest.raises(DamagedError):
        # A flipped byte in a directory is seen where it makes no sense; what is left is seen by the members' CRC-32.
        remote_zip(stand_in).read("ILSVRC/nowhere")


def test_altered_members_are_read_again(serve: Serve, remote_zip: Open, wide_zip: Path) -> None:
    stand_in = serve(wide_zip)
    archive = remote_zip(stand_in)
    stand_in.add_fault(Fault(kind="flip", times=2))
    name = archive.directory.name(3)
    content = archive.read(name)
    stored: dict[int, bytes] = {}
    stand_in.add_fault(Fault(kind="flip", times=2))
    list(archive.fetch(archive.plan(np.arange(10)), stored.__setitem__))

    with zipfile.ZipFile(wide_zip) as local:
        assert content == local.read(name)
        assert stored == {member: local.read(archive.directory.name(member)) for member in range(10)}
    assert archive.altered == archive.remote.wire.retries == 4


def test_members_that_stay_altered_are_an_error(serve: Serve, remote_zip: Open, wide_zip: Path) -> None:
    stand_in = serve(wide_zip)
    archive = remote_zip(stand_in)
    stand_in.add_fault(Fault(kind="flip", times=None))
    with pytest.raises(DamagedError, match=r"and so each of the 4 times it was read - either .* is damaged where"):
        archive.content(3)
    with pytest.raises(DamagedError, match="damaged where it is stored"):
        list(archive.fetch(archive.plan(np.arange(40)), lambda _member, _content: None))


def test_an_error_of_the_disk_comes_through_at_once(serve: Serve, remote_zip: Open, wide_zip: Path) -> None:
    archive = remote_zip(serve(wide_zip))

    def store(member: int, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        list(archive.fetch(archive.plan(np.arange(40)), store))
    assert archive.remote.wire.retries == 0


def test_the_end_is_written_as_it_is(serve: Serve, remote_zip: Open, wide: VirtualImagenet, wide_zip: Path) -> None:
    file = io.BytesIO()
    remote_zip(serve(wide_zip)).write_end(file)

    assert file.getvalue()[wide.directory_offset :] == wide_zip.read_bytes()[wide.directory_offset :]


def test_a_long_comment_and_a_small_archive(serve: Serve, remote_zip: Open, tmp_path: Path) -> None:
    path = tmp_path / "small.zip"
    with zipfile.ZipFile(path, "w") as local:
        local.writestr("a/b.txt", b"content")
        local.comment = b"c" * 65_535
    archive = remote_zip(serve(path))
    file = io.BytesIO(path.read_bytes()[: archive.place.offset])
    archive.write_end(file)

    assert archive.read("a/b.txt") == b"content"
    assert file.getvalue() == path.read_bytes()


def test_what_is_no_zip_is_said_so(serve: Serve, remote: Callable[..., RemoteFile], tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(hashlib.sha256(b"").digest() * 100)
    with pytest.raises(SourceError):
        RemoteZip(remote(serve(path)), cache=tmp_path / "cache")


def test_a_member_ends_before_the_next_begins(serve: Serve, remote_zip: Open, wide_zip: Path) -> None:
    archive = remote_zip(serve(wide_zip))
    stops = member_stops(archive.directory, archive.place.offset)
    starts = np.sort(archive.directory.offset)

    assert np.array_equal(np.sort(stops), np.append(starts[1:], archive.place.offset))
