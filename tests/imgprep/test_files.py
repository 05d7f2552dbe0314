"""Files and folders are whole or absent; locks end with their holder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imgprep.errors import DamagedError, LockedError
from imgprep.files import atomic_write, locked, read_json, sha256_file, staged_folder, write_bytes


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_replaces_a_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    write_bytes(tmp_path / "a", b"new")

    assert ((tmp_path / "a").read_bytes(), names(tmp_path)) == (b"new", ["a"])


def test_an_exception_while_writing_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt

    assert ((tmp_path / "a").read_bytes(), names(tmp_path)) == (b"old", ["a"])


def test_a_full_disk_while_syncing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "a", b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(tmp_path / "a", b"new")

    assert ((tmp_path / "a").read_bytes(), names(tmp_path)) == (b"old", ["a"])


def test_a_staged_folder_replaces_the_old_one_at_its_end(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with staged_folder(tmp_path / "out") as staging:
            (staging / content).write_text(content)
            assert names(tmp_path / "out") == ["one"] if content == "two" else not (tmp_path / "out").exists()

    assert (names(tmp_path), names(tmp_path / "out")) == (["out"], ["two"])


def test_a_failing_staged_folder_leaves_the_old_one(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as staging:
        (staging / "old").write_text("old")
    with pytest.raises(ValueError, match="stop"), staged_folder(tmp_path / "out") as staging:
        (staging / "half").write_text("half")
        raise ValueError("stop")

    assert (names(tmp_path), names(tmp_path / "out")) == (["out"], ["old"])


def test_a_staged_folder_clears_what_a_killed_run_left(tmp_path: Path) -> None:
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "stale").write_text("stale")
    with staged_folder(tmp_path / "out") as staging:
        (staging / "new").write_text("new")

    assert (names(tmp_path), names(tmp_path / "out")) == (["out"], ["new"])


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")

    # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_broken_json_is_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DamagedError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_a_lock_shuts_out_another_process_and_ends_when_it_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from imgprep.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), holder='imgprep shard'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    lock = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=rf"`imgprep shard` \(process {other.pid}\)"), locked(lock, holder="me"):
            pass
        other.kill()
    with locked(lock, holder="me"):
        pass


def test_an_interruption_between_the_two_renames_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with staged_folder(tmp_path / "out") as staging:
        (staging / "old").write_text("old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == ".out.tmp":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "out") as staging:
        (staging / "new").write_text("new")

    assert (names(tmp_path), names(tmp_path / "out")) == (["out"], ["old"])


def test_after_a_kill_between_the_two_renames_the_old_folder_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "old").write_text("old")
    (tmp_path / ".out.tmp").write_text("a file in the way")
    with pytest.raises(ValueError, match="stop"), staged_folder(tmp_path / "out"):
        raise ValueError("stop")

    assert (names(tmp_path), names(tmp_path / "out")) == (["out"], ["old"])


def test_json_nested_too_deeply_is_damage(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(DamagedError, match="not valid JSON"):
        read_json(tmp_path / "a.json")
