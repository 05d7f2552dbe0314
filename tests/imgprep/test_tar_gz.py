"""Packed tars: the same members as unpacked ones, any damage is named, and an index is never trusted blindly."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgprep.errors import ImgprepError, LockedError, MemberError, SourceError
from imgprep.files import locked
from imgprep.layouts import ImageMember, find_layout
from imgprep.sources import Member, Source, listing_digest, open_source, tar_gz
from imgprep.sources.tar_gz import Inflater, Listing, NestedZipSource, TarGzSource, _align, inner_tar
from imgprep.sources.zip import ZipSource
from imgprep.stats import SilentProgress


def mixed(num_bytes: int, seed: int) -> bytes:
    """Bytes that deflate packs into blocks of every kind of ending: neither noise nor text."""
    return random.Random(seed).randbytes(num_bytes).translate(bytes(range(128)) * 2)


FILES = {
    "a/one.JPEG": mixed(40_000, 1),
    "b/" + "long/" * 60 + "two.txt": b"x" * 5000,
    "empty": b"",
    "ünïcode ☃": b"\x00\x01",
    "c/block": mixed(1024, 2),
}


def tar_bytes(files: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as archive:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return file.getvalue()


def write_gz(path: Path, content: bytes, *, level: int = 6, streams: int = 1) -> Path:
    size = -(-len(content) // streams)
    parts = [gzip.compress(content[start : start + size], level, mtime=0) for start in range(0, len(content), size)]
    path.write_bytes(b"".join(parts))
    return path


def everything(source: Source) -> dict[str, bytes]:
    return {member.name: source.read(member.name) for member in source.members()}


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Access points every 40 kB, so that small archives have many."""
    monkeypatch.setattr(tar_gz, "_MIN_SPACING", 40_000)
    monkeypatch.setattr(tar_gz, "_STEP", 100_000)


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize(("level", "streams"), [(0, 1), (1, 1), (6, 1), (9, 1), (6, 7)])
def test_members_and_bytes_are_those_that_were_written(
    tmp_path: Path, tar_format: int, level: int, streams: int
) -> None:
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes(FILES, tar_format), level=level, streams=streams)
    with open_source(path) as source:
        assert source.kind == "tar.gz"
        assert [member.name for member in source.members()] == list(FILES)
        assert everything(source) == FILES
        assert all(member.crc32 == zlib.crc32(FILES[member.name]) for member in source.members())
        with pytest.raises(MemberError, match="nothing/here"):
            source.read("nothing/here")


@settings(max_examples=25, deadline=None)
@given(
    files=st.dictionaries(
        st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=130), st.binary(max_size=2000), max_size=6
    ),
    level=st.integers(0, 9),
    streams=st.integers(1, 4),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], level: int, streams: int
) -> None:
    path = write_gz(tmp_path_factory.mktemp("gz") / "t.tgz", tar_bytes(files), level=level, streams=streams)
    with open_source(path) as source:
        assert everything(source) == files


def test_the_listing_is_that_of_the_same_tar_unpacked_with_crcs_added(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar_bytes(FILES))
    write_gz(tmp_path / "t.tar.gz", tar_bytes(FILES))
    with open_source(tmp_path / "t.tar") as plain, open_source(tmp_path / "t.tar.gz") as packed:
        bare = [Member(member.name, member.num_bytes) for member in packed.members()]

        assert listing_digest(bare) == listing_digest(plain.members())
        assert listing_digest(packed.members()) != listing_digest(plain.members())


@pytest.mark.parametrize("num_bits", range(8))
def test_the_blocks_before_an_access_point_fill_a_byte_and_unpack_to_nothing(num_bits: int) -> None:
    value, length = _align(num_bits)
    assert (length + num_bits) % 8 == 0
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(b"content") + packer.flush()
    shifted = value | int.from_bytes(body, "little") << length
    unpacker = zlib.decompressobj(-15)

    assert unpacker.decompress(shifted.to_bytes(len(body) + length // 8 + 1, "little")) == b"content"
    assert unpacker.eof


@pytest.mark.usefixtures("dense")
@pytest.mark.parametrize(("level", "streams"), [(1, 1), (6, 1), (9, 3), (6, 40), (0, 1)])
def test_every_access_point_leads_to_the_same_bytes(tmp_path: Path, level: int, streams: int) -> None:
    content = tar_bytes({f"m{number}": mixed(30_000 + number, number) for number in range(60)})
    path = write_gz(tmp_path / "t.tar.gz", content, level=level, streams=streams)
    with TarGzSource(path, cache=tmp_path / "cache") as source:
        index = source._index
        positions = [position for position in index._unpacked if position < len(content)]
        assert len(positions) > 20
        assert streams > 1 or level == 0 or len(set(index._bits)) == 8
        for point, position in enumerate(positions):
            inflater = index.enter(source._packed, point)

            assert inflater.tell() == position
            assert inflater.read(1 << 30) == content[position:]
            assert inflater.read(1) == b""


@pytest.mark.usefixtures("dense")
def test_reading_from_threads_at_once_mixes_nothing_up(tmp_path: Path) -> None:
    files = {f"m{number}": mixed(9000 + number, number) for number in range(80)}
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes(files), streams=2)
    names = random.Random(0).sample(list(files) * 4, 4 * len(files))
    with TarGzSource(path) as source, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, names)) == [files[name] for name in names]
        assert len(source._idle) <= tar_gz._MAX_IDLE


def test_reading_in_archive_order_unpacks_each_byte_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"m{number}": mixed(20_000, number) for number in range(100)}
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes(files))
    with TarGzSource(path) as source:
        packed = 0
        fetch = Inflater._fetch

        def counted(inflater: Inflater) -> bytes:
            nonlocal packed
            chunk = fetch(inflater)
            packed += len(chunk)
            return chunk

        monkeypatch.setattr(Inflater, "_fetch", counted)
        assert everything(source) == files
        assert packed <= path.stat().st_size


def test_members_are_found_in_any_order_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_gz, "_RUN", 3)
    names = ["b", "a", "ab", "", "\udcff", "ä", "z" * 300]
    listing = Listing()
    for number, name in enumerate(names):
        listing.append(name, number, 2 * number, 3 * number)

    assert listing.sort() is None
    assert [listing.find(name) for name in names] == list(range(len(names)))
    assert listing.find("c") is listing.find("zz") is None
    assert listing[2:4] == [Member("ab", 4, 6), Member("", 6, 9)]
    assert listing[-1] == Member("z" * 300, 12, 18)
    assert list(Listing.load(map(bytes, listing.dump()))) == list(listing)


def test_a_name_listed_twice_is_damage(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("m", "n", "./m"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(SourceError, match="lists m twice"):
        open_source(write_gz(tmp_path / "t.tar.gz", file.getvalue()))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"a letter"), "something else than a tar"),
        (gzip.compress(b""), "something else than a tar"),
        (b"\x1f\x8b\x08" + bytes(100), "cut off or damaged"),
        (b"\x1f\x8b", "cut off or damaged"),
        (gzip.compress(tar_bytes({"m": b"1"})) + b"more", "other bytes follow"),
        (gzip.compress(tar_bytes({"m": b"1"})[:2048]), "end mark is missing"),
        (gzip.compress(tar_bytes({"m": b"1" * 4000})[:2048]), "cut off"),
        (gzip.compress(tar_bytes({"m": b"1"}) + tar_bytes({"n": b"1"})[512:]), "is damaged: the header"),
    ],
)
def test_not_a_whole_packed_tar(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "t.tar.gz").write_bytes(content)
    with pytest.raises(SourceError, match=said):
        open_source(tmp_path / "t.tar.gz")


def test_zeros_after_the_end_are_padding(tmp_path: Path) -> None:
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes(FILES))
    path.write_bytes(path.read_bytes() + bytes(300_000))
    with open_source(path) as source:
        assert everything(source) == FILES


def test_a_member_that_claims_gigabytes_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_gz, "_MAX_MEMBER", 4999)
    with (
        open_source(write_gz(tmp_path / "t.tar.gz", tar_bytes({"m": bytes(5000)}))) as source,
        pytest.raises(MemberError, match="more than the limit of 4,999"),
    ):
        source.read("m")


def test_a_tar_that_unpacks_to_far_more_gets_fewer_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_gz, "_MIN_SPACING", 40_000)
    monkeypatch.setattr(tar_gz, "_POINTS", 10)
    files = {"bomb": mixed(1_000_000, 1) + bytes(9_000_000), "after": mixed(3000, 2)}
    with TarGzSource(write_gz(tmp_path / "t.tar.gz", tar_bytes(files)), cache=tmp_path) as source:
        assert len(source._index._unpacked) < 100
        assert everything(source) == files


@pytest.mark.parametrize("header", [b"path=" + b"x" * 20, b"size=-512", b"GNU.sparse.major=1"])
def test_hostile_extended_headers_end_in_an_error_or_a_listing(tmp_path: Path, header: bytes) -> None:
    content = bytearray(tar_bytes({"m" * 200: b"1"}))
    place = content.index(b" path=")
    content[place + 1 : place + 1 + len(header)] = header
    (tmp_path / "t.tar").write_bytes(content)
    outcomes = []
    for path in (tmp_path / "t.tar", write_gz(tmp_path / "t.tar.gz", bytes(content))):
        try:
            with open_source(path) as source:
                outcomes.append(str(sorted(everything(source).items())))
        except ImgprepError as error:
            outcomes.append(str(error).replace("t.tar.gz", "t.tar"))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("size", [b"\x80" + b"\x7f" * 11, b"\xff" * 10 + b"\xfe\x00"], ids=["exabytes", "negative"])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"?"])
def test_hostile_sizes_are_refused_without_allocating(tmp_path: Path, size: bytes, kind: bytes) -> None:
    info = tarfile.TarInfo("m")
    content = bytearray(info.tobuf(tarfile.USTAR_FORMAT)) + bytes(4096)
    content[124:136], content[156:157] = size, kind
    content[148:156] = b"%06o\0 " % (256 + sum(content[:148]) + sum(content[156:512]))
    (tmp_path / "t.tar").write_bytes(content)
    for path in (tmp_path / "t.tar", write_gz(tmp_path / "t.tar.gz", bytes(content))):
        with pytest.raises(SourceError, match=r"t\.tar"):
            open_source(path)


def test_every_truncation_is_said(tmp_path: Path) -> None:
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes({"m": mixed(300, 1)}), streams=2)
    content = path.read_bytes()
    for length in range(2, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(SourceError):
            open_source(path)


def test_no_flipped_bit_gives_wrong_bytes(tmp_path: Path) -> None:
    files = {"m": mixed(300, 1), "n": b"23"}
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes(files, tarfile.USTAR_FORMAT), streams=2)
    content = path.read_bytes()
    chance = random.Random(1)
    for place in range(2, len(content), 2):
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            with open_source(path) as source:
                # Only times, names and the like in the headers of gzip may change without a word.
                assert everything(source) == files
        except SourceError:
            continue


@pytest.mark.usefixtures("dense")
def test_damage_between_access_points_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_gz, "_CHUNK", 20_000)
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes({f"m{number}": mixed(9000, number) for number in range(25)}))
    content = path.read_bytes()
    chance = random.Random(3)
    for _ in range(30):
        place = chance.randrange(20, len(content) - 600)
        for damage in (b"", chance.randbytes(500), content[place : place + 99] + chance.randbytes(9) + content[-400:]):
            path.write_bytes(content[:place] + damage)
            with pytest.raises(SourceError):
                open_source(path)


@pytest.mark.usefixtures("dense")
def test_damage_after_the_pass_is_named_by_its_member(tmp_path: Path) -> None:
    files = {f"m{number}": mixed(30_000, number) for number in range(20)}
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes(files))
    with TarGzSource(path) as source:
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(len(content) // 2)
            file.write(bytes(2000))
        wrong = []
        for name, expected in files.items():
            try:
                assert source.read(name) == expected
            except MemberError as error:
                wrong.append(f"{name} " in str(error))
        assert 1 <= len(wrong) < 6
        assert all(wrong)
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(MemberError, match="m19"):
            source.read("m19")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The archives that were read from end to end."""
    made: list[Path] = []
    once = TarGzSource._pass

    def counted(source: TarGzSource, *args: object) -> object:
        made.append(source.path)
        return once(source, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(TarGzSource, "_pass", counted)
    return made


def test_the_pass_happens_once_and_again_when_the_archive_changed(tmp_path: Path, passes: list[Path]) -> None:
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes(FILES))
    for _ in range(2):
        with open_source(path, cache=tmp_path / "cache") as source:
            assert everything(source) == FILES
    assert len(passes) == 1

    os.utime(path, ns=(0, 0))
    with open_source(path, cache=tmp_path / "cache"):
        assert len(passes) == 2

    changed = {name: content[::-1] for name, content in FILES.items()}
    write_gz(path, tar_bytes(changed))
    os.utime(path, ns=(0, 0))
    with open_source(path, cache=tmp_path / "cache") as source:
        assert everything(source) == changed
    assert len(passes) == 3


def test_a_damaged_index_is_made_anew(tmp_path: Path, passes: list[Path]) -> None:
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes({"m": b"1", "n": b"23"}), level=0)
    with open_source(path, cache=tmp_path):
        index = tmp_path / "t.tar.gz.index"
    content = index.read_bytes()
    damages = [content[:length] for length in (0, 1, 39, 40, len(content) // 2, len(content) - 1)]
    damages += [content + b"\0", bytes(len(content)), content[:-40] + b"\xff" * 8 + content[-32:]]
    for place in range(0, len(content), len(content) // 15):
        damaged = bytearray(content)
        damaged[place] ^= 0x40
        damages.append(bytes(damaged))
    for number, damage in enumerate(damages, start=2):
        index.write_bytes(damage)
        with open_source(path, cache=tmp_path) as source:
            assert everything(source) == {"m": b"1", "n": b"23"}
        assert len(passes) == number
        assert index.read_bytes() == content


def test_two_processes_do_not_make_one_index(tmp_path: Path) -> None:
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes(FILES))
    with locked(tmp_path / "t.tar.gz.index.lock", holder="another"), pytest.raises(LockedError, match="another"):
        open_source(path, cache=tmp_path)


def test_an_archive_that_changes_during_the_pass_is_refused(tmp_path: Path) -> None:
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes(FILES))

    class Touch(SilentProgress):
        def begin(self, what: str, total: int, unit: str) -> None:
            assert (what, total, unit) == ("index t.tar.gz", path.stat().st_size, "bytes")

        def advance(self, n: int = 1) -> None:
            os.utime(path, ns=(0, n))

    with pytest.raises(SourceError, match="changed while it was read"):
        open_source(path, cache=tmp_path / "cache", progress=Touch())
    assert not list((tmp_path / "cache").glob("*.index"))


def test_progress_adds_up_to_the_archive(tmp_path: Path) -> None:
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes({"m": mixed(900_000, 1)}))
    told: list[int | str] = []

    class Tell(SilentProgress):
        def begin(self, what: str, total: int, unit: str) -> None:
            told.append(f"begin {what} {total} {unit}")

        def advance(self, n: int = 1) -> None:
            told.append(n)

        def finish(self) -> None:
            told.append("finish")

    open_source(path, progress=Tell()).__exit__(None, None, None)
    assert (told[0], told[-1]) == (f"begin index t.tar.gz {path.stat().st_size} bytes", "finish")
    assert sum(n for n in told if isinstance(n, int)) == path.stat().st_size


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_pass_that_is_killed_leaves_no_index(tmp_path: Path, stop: signal.Signals, code: int) -> None:
    files = {f"m{number}": mixed(500_000, number % 3) for number in range(60)}
    path = write_gz(tmp_path / "t.tar.gz", tar_bytes(files), level=1)
    script = """if True:
        import sys, time
        from pathlib import Path
        from imgprep.sources import open_source
        class Slow:
            begin = finish = lambda *_: None
            def advance(self, n=1):
                print(n, flush=True)
                time.sleep(0.05)
        try:
            open_source(Path(sys.argv[1]), cache=Path(sys.argv[2]), progress=Slow())
        except KeyboardInterrupt:
            sys.exit(130)
    """
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "cache")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(5):
            assert child.stdout.readline()
        child.send_signal(stop)
        begun = time.monotonic()
        assert child.wait(30) == code
        assert time.monotonic() - begun < 15
    assert not list((tmp_path / "cache").glob("*.index"))
    with open_source(path, cache=tmp_path / "cache") as source:
        assert source.read("m7") == files["m7"]


def write_nested(path: Path, inner: str, content: bytes, beside: dict[str, bytes], method: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in beside.items():
            archive.writestr(name, text, zipfile.ZIP_DEFLATED)
        archive.writestr(inner, content, method)
    return path


@pytest.mark.parametrize("inner", ["t.tar.gz", "x/T.TGZ", "t.tar"])
def test_a_tar_in_a_zip_lies_beside_the_lists(tmp_path: Path, inner: str) -> None:
    content = tar_bytes(FILES) if inner == "t.tar" else gzip.compress(tar_bytes(FILES))
    path = write_nested(tmp_path / "z.zip", inner, content, {"LOC_list.csv": b"a,b\n" * 100})
    with open_source(path, cache=tmp_path / "cache") as source:
        assert source.kind == ("zip+tar" if inner == "t.tar" else "zip+tar.gz")
        assert everything(source) == FILES | {"LOC_list.csv": b"a,b\n" * 100}
        members = source.members()
        assert len(members) == len(FILES) + 1
        assert members[-1].name == "LOC_list.csv"
        assert [members[number] for number in range(len(members))] == list(members) == members[:]
        with pytest.raises(MemberError, match=inner):
            source.read(inner)


def test_a_tar_packed_once_more_by_the_zip_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = write_nested(tmp_path / "z.zip", "d/t.tar.gz", gzip.compress(tar_bytes(FILES)), {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(SourceError, match=r"`unzip z.zip d/t.tar.gz`, then `imgprep fetch --from t.tar.gz`"):
        open_source(path)


@pytest.mark.parametrize(("place", "byte", "said"), [(0, 0x51, "no local header"), (27, 0x7F, "does not lie inside")])
def test_a_damaged_zip_around_a_tar(tmp_path: Path, place: int, byte: int, said: str) -> None:
    path = write_nested(tmp_path / "z.zip", "t.tar.gz", gzip.compress(tar_bytes(FILES)), {"list": b"1"})
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\3\4") + place] = byte
    path.write_bytes(content)
    with pytest.raises(SourceError, match=said):
        NestedZipSource(path)


def test_a_name_inside_and_beside_the_tar_is_damage(tmp_path: Path) -> None:
    path = write_nested(tmp_path / "z.zip", "t.tar", tar_bytes(FILES), {"empty": b""})
    with pytest.raises(SourceError, match="lists empty twice, inside and beside"):
        open_source(path)


def test_what_zip_is_taken_for_a_tar_with_lists_beside() -> None:
    tar = Member("x.tar.gz", 1000)
    assert inner_tar([tar, Member("LOC.csv", 999)]) is tar
    assert inner_tar([tar, Member("LOC.csv", 1000)]) is None
    assert inner_tar([tar, Member("y.tar", 2000)]) is None
    assert inner_tar([tar, Member("ILSVRC/Data/CLS-LOC/test/1.JPEG", 10)]) is None
    assert inner_tar([Member("a.JPEG", 10)]) is None


def picture(image: ImageMember) -> tuple[str, str, str, int, str]:
    return image.key, image.split, image.member.name, image.member.num_bytes, image.wnid


def test_pictures_are_found_in_each_package_of_the_toy_archive(tmp_path: Path, toy_zip: Path) -> None:
    with ZipSource(toy_zip) as source:
        files = everything(source)
        expected = find_layout(source).scan(source)
    pictures = {name: content for name, content in files.items() if name.startswith("ILSVRC/")}
    lists = {name: content for name, content in files.items() if name not in pictures}
    assert pictures
    assert lists
    packages = [
        write_gz(tmp_path / "toy.tar.gz", tar_bytes(files)),
        write_nested(tmp_path / "toy.zip", "patched2019.tar.gz", gzip.compress(tar_bytes(pictures)), lists),
        write_nested(tmp_path / "plain.zip", "patched2019.tar", tar_bytes(pictures), lists),
    ]
    for package in packages:
        with open_source(package) as source:
            found = find_layout(source).scan(source)

            assert sorted(map(picture, found.images)) == sorted(map(picture, expected.images))
            assert hashlib.sha256(source.read(found.images[0].member.name)).digest() == (
                hashlib.sha256(files[found.images[0].member.name]).digest()
            )
