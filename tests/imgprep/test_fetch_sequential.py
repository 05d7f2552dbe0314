"""sequential: a server without ranges gives the archive in one go, or again from the start."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from imgprep.backoff import Backoff
from imgprep.errors import DamagedError, NetworkError, NoSpaceError, SourceError
from imgprep.fetch.sequential import check_archive, fetch_sequentially
from imgprep.sources.zip_directory import TAIL_BYTES
from imgprep.testing.kaggle import Fault, FaultKind, KaggleStandIn
from imgprep.transfer import RangesIgnoredError, RemoteFile

Serve = Callable[..., KaggleStandIn]
Remote = Callable[..., RemoteFile]

QUICK = Backoff(retries=3, base=0.01, longest=0.05)


def opened(serve: Serve, remote: Remote, archive: Path) -> tuple[KaggleStandIn, RemoteFile]:
    """An archive that turned out to come only as a whole."""
    stand_in = serve(archive, faults=[Fault(kind="no-range", times=None)])
    file = remote(stand_in)
    with pytest.raises(RangesIgnoredError):
        file.open(TAIL_BYTES)
    stand_in.forget()
    return stand_in, file


def test_the_archive_arrives_byte_for_byte(serve: Serve, remote: Remote, wide_zip: Path, tmp_path: Path) -> None:
    stand_in, file = opened(serve, remote, wide_zip)
    path = tmp_path / "raw" / "a.zip"
    record = fetch_sequentially(file, path, backoff=QUICK)

    assert path.read_bytes() == wide_zip.read_bytes()
    assert list(path.parent.iterdir()) == [path]
    assert (record.num_bytes, record.etag) == (wide_zip.stat().st_size, stand_in.etag)
    assert len(stand_in.requests) == 1


@pytest.mark.parametrize("kind", ["cut", "close", "status", "expired", "flip", "wrong-length", "html", "gzip"])
def test_what_passes_is_got_over(serve: Serve, remote: Remote, wide_zip: Path, tmp_path: Path, kind: FaultKind) -> None:
    stand_in, file = opened(serve, remote, wide_zip)
    # Before the middle lies a member; in the last of it the directory, whose damage is seen as well.
    stand_in.add_fault(Fault(kind=kind, times=2, percent=40))
    fetch_sequentially(file, tmp_path / "a.zip", backoff=QUICK)

    assert (tmp_path / "a.zip").read_bytes() == wide_zip.read_bytes()
    assert [bool(request.fault) for request in stand_in.requests] == [True, True, False]
    assert file.wire.retries == 2


def test_a_line_that_never_lasts_is_an_error(serve: Serve, remote: Remote, wide_zip: Path, tmp_path: Path) -> None:
    stand_in, file = opened(serve, remote, wide_zip)
    stand_in.add_fault(Fault(kind="cut", times=None))
    with pytest.raises(NetworkError, match="failed 4 times in a row"):
        fetch_sequentially(file, tmp_path / "a.zip", backoff=QUICK)

    assert not (tmp_path / "a.zip").exists()


def test_an_archive_that_stays_altered_leaves_nothing(
    serve: Serve, remote: Remote, wide_zip: Path, tmp_path: Path
) -> None:
    stand_in, file = opened(serve, remote, wide_zip)
    stand_in.add_fault(Fault(kind="flip", times=None))
    with pytest.raises(DamagedError, match="and so each of the 3 times it was fetched"):
        fetch_sequentially(file, tmp_path / "a.zip", backoff=QUICK)

    assert list(tmp_path.iterdir()) == []


def test_no_space_is_foreseen(
    serve: Serve, remote: Remote, wide_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in, file = opened(serve, remote, wide_zip)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NoSpaceError, match="1,000 are free"):
        fetch_sequentially(file, tmp_path / "a.zip", backoff=QUICK)
    assert stand_in.requests == []


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97, 0.9999])
def test_a_flipped_byte_anywhere_is_seen(wide_zip: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.zip"
    content = bytearray(wide_zip.read_bytes())
    content[int(len(content) * share)] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        check_archive(path, "a.zip")


def test_a_cut_archive_is_seen(wide_zip: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(wide_zip.read_bytes()[:-1])
    with pytest.raises(SourceError):
        check_archive(path, "a.zip")
    path.write_bytes(b"")
    with pytest.raises(SourceError):
        check_archive(path, "a.zip")


def test_a_right_archive_passes(wide_zip: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"y")
        archive.comment = b"c" * 65_535

    assert len(check_archive(path, "a.zip")) == 1
    assert len(check_archive(wide_zip, "wide.zip")) > 900
