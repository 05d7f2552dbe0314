"""index: exactly the samples that are in tars of others, whatever wrote them; hostile tars end in one line."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from imgprep.cli.interop import index as index_command
from imgprep.errors import (
    DamagedError,
    ImgprepError,
    LockedError,
    MissingInputError,
    OutputExistsError,
    SourceError,
    SpecError,
    TooManyRejectsError,
    UsageError,
)
from imgprep.executors import ThreadExecutor
from imgprep.files import locked
from imgprep.foreign import ForeignResult, ForeignSpec, index_tars, plan_index, split_member
from imgprep.index import open_samples, read_index
from imgprep.stats import SilentProgress
from imgprep.verify import VerifySpec, verify
from imgprep.workspace import Workspace
from training.reader import ShardReader

JPEG = b"\xff\xd8\xff\xe0 a picture"
Member = tuple[str, bytes]


def pack(path: Path, members: Iterable[Member | tarfile.TarInfo], *, form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def sample(key: str, label: object = 0, picture: bytes = JPEG) -> list[Member]:
    return [(f"{key}.jpg", picture + key.encode("utf-8", "replace")), (f"{key}.cls", str(label).encode())]


def run(folder: Path, *, out: Path | None = None, overwrite: bool = False, **options: object) -> ForeignResult:
    spec = ForeignSpec(**options)  # type: ignore[arg-type]
    return index_tars(plan_index(folder, spec, out=out, overwrite=overwrite), spec)


def found(folder: Path, split: str = "train") -> list[tuple[bytes, int]]:
    """Pictures and labels, read as the trainer reads them: every read is checked by its CRC-32."""
    with ShardReader(folder / "index.json", read_index(folder), split) as reader:
        return [(reader.read(row), int(label)) for row, label in enumerate(reader.labels)]


def digests(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.glob("*.tar")
    }


NAMES = st.characters(codec="utf-8", exclude_characters="./\0\\", exclude_categories=("Cc",))
KEYS = st.lists(
    st.text(NAMES, min_size=1, max_size=130).filter(lambda text: not text.startswith("__") and text.strip() == text),
    min_size=1,
    max_size=6,
    unique=True,
)


@given(
    keys=KEYS,
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    pictures=st.lists(st.binary(min_size=1, max_size=1500), min_size=6, max_size=6),
    labels=st.lists(st.integers(0, 30), min_size=6, max_size=6),
    order=st.permutations(["png", "cls", "json"]),
    folder_of_key=st.sampled_from(["", "./", "a/b.c/"]),
)
def test_the_samples_of_any_tar_are_found_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    keys: list[str],
    form: int,
    pictures: list[bytes],
    labels: list[int],
    order: list[str],
    folder_of_key: str,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    members = []
    for key, picture, label in zip(keys, pictures, labels, strict=False):
        content = {"png": picture, "cls": f" {label}\n".encode(), "json": b"{}"}
        members += [(f"{folder_of_key}{key}.{extension}", content[extension]) for extension in order]
    pack(folder / "train-0.tar", members, form=form)
    run(folder)

    assert found(folder) == list(zip(pictures, labels, strict=False))[: len(keys)]


@given(st.text("ab./_", max_size=12))
def test_keys_are_those_of_webdataset(name: str) -> None:
    base_plus_ext = pytest.importorskip("webdataset.tariterators").base_plus_ext
    key, extension = base_plus_ext(name)

    # It also takes names for samples that end in a dot, and keys of dots and slashes alone.
    if key and extension and key.rpartition("/")[2] and "__" not in name:
        assert split_member(name) == (key, extension)
    elif key is None:
        assert split_member(name) is None


def test_an_index_over_our_own_tars_has_our_own_tables(sharded: Workspace, tmp_path: Path) -> None:
    folder = sharded.shards("main")
    run(folder, out=tmp_path / "again")

    for split, info in read_index(folder).splits.items():
        again = read_index(tmp_path / "again").splits[split]
        assert again.samples_sha256 == info.samples_sha256
        assert again.shards == info.shards


# webdataset leaves the files of its last shards to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_tars_of_webdataset(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    with wds.ShardWriter(f"{tmp_path}/set-train-%06d.tar", maxcount=3, verbose=0) as writer:
        for number in range(8):
            writer.write(
                {"__key__": f"{number:04d}", "jpg": JPEG + b"%d" % number, "cls": number % 3, "json": {"a": 1}}
            )
    result = run(tmp_path)

    assert found(tmp_path) == [(JPEG + b"%d" % number, number % 3) for number in range(8)]
    assert [shard.num_samples for shard in read_index(tmp_path).splits["train"].shards] == [3, 3, 2]
    assert result.stats.to_dict() == {"jpeg": 8, "out": 8, "shards": 3, "train": 8}


@pytest.mark.parametrize("form", ["ustar", "gnu", "posix", "v7"])
def test_tars_of_gnu_tar_with_folders_and_long_names(tmp_path: Path, form: str) -> None:
    long = "k" * (60 if form in ("v7", "ustar") else 180)
    tree = tmp_path / "tree" / "part"
    tree.mkdir(parents=True)
    for name, content in [*sample(f"{long}1", 1), *sample(f"{long}2", 0)]:
        (tree / name).write_bytes(content)
    command = ["tar", "-c", f"--format={form}", "--sort=name", "-f", tmp_path / "val.tar", "-C", tmp_path / "tree", "."]
    subprocess.run(command, check=True)
    run(tmp_path)

    assert found(tmp_path, "val") == [(JPEG + f"{long}{n}".encode(), label) for n, label in ((1, 1), (2, 0))]


def test_tars_like_those_of_img2dataset(tmp_path: Path) -> None:
    rows = [("cat", "000000000"), ("dog", "000000001"), ("cat", "000000002")]
    members = []
    for name, key in rows:
        members += [(f"{key}.jpg", JPEG + key.encode()), (f"{key}.txt", b"a caption")]
        members.append((f"{key}.json", json.dumps({"caption": "a caption", "class": name}).encode()))
    pack(tmp_path / "00000.tar", members)
    run(tmp_path, split="train", label="json:class")

    assert found(tmp_path) == [(JPEG + key.encode(), label) for (_, key), label in zip(rows, (0, 1, 0), strict=True)]
    assert [info.name for info in read_index(tmp_path).classes] == ["cat", "dog"]


def test_splits_and_their_shards_come_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b_train", "validation-1", "a-Training", "x.valid.0", "test"):
        pack(tmp_path / f"{name}.tar", sample(f"k{name.partition('.')[0]}"))
    run(tmp_path)
    index = read_index(tmp_path)

    assert {name: [s.filename for s in split.shards] for name, split in index.splits.items()} == {
        "test": ["test.tar"],
        "train": ["a-Training.tar", "b_train.tar"],
        "val": ["validation-1.tar", "x.valid.0.tar"],
    }


@pytest.mark.parametrize("name", ["shard-0.tar", "train-val.tar", "trainer.tar"])
def test_a_name_that_tells_no_split_or_two_needs_the_option(tmp_path: Path, name: str) -> None:
    pack(tmp_path / name, sample("k"))

    with pytest.raises(UsageError, match="--split"):
        run(tmp_path)
    assert run(tmp_path, split="val").stats["val"] == 1


def test_the_first_extension_that_is_there_is_the_picture(tmp_path: Path) -> None:
    members = [("a.png", b"png"), ("a.jpeg", b"jpeg"), ("a.seg.png", b"mask"), ("a.cls", b"0")]
    pack(tmp_path / "train.tar", members)

    for image, picture in ((None, b"jpeg"), ("png", b"png"), ("seg.png", b"mask")):
        run(tmp_path, image=image, overwrite=True)
        assert found(tmp_path) == [(picture, 0)]


def test_labels_are_numbers_or_names_of_a_list(tmp_path: Path) -> None:
    labels = ["2", "tench", "n01440764", "great white shark"]
    pack(tmp_path / "train.tar", [m for n, label in enumerate(labels) for m in sample(f"k{n}", label)])
    (tmp_path / "names.txt").write_text("n01440764\ntench, Tinca tinca\ngreat white shark\n")
    run(tmp_path, classes=tmp_path / "names.txt")

    assert [label for _, label in found(tmp_path)] == [2, 1, 0, 2]
    assert [(c.wnid, c.name) for c in read_index(tmp_path).classes] == [
        ("n01440764", "n01440764"),
        ("1", "tench, Tinca tinca"),
        ("2", "great white shark"),
    ]
    (tmp_path / "classes.csv").write_text("label,wnid,name\n0,n01440764,tench\n1,n1,great white shark\n2,n2,hen\n")
    run(tmp_path, overwrite=True)
    assert [label for _, label in found(tmp_path)] == [2, 0, 0, 1]


def test_without_a_list_numbers_are_labels_and_names_are_sorted(tmp_path: Path) -> None:
    pack(tmp_path / "train.tar", [*sample("a", 3), *sample("b", "01")])
    run(tmp_path)

    assert [label for _, label in found(tmp_path)] == [3, 1]
    assert [info.name for info in read_index(tmp_path).classes] == ["0", "1", "2", "3"]
    pack(tmp_path / "train.tar", [*sample("a", "pear"), *sample("b", "apple"), *sample("c", 3)])
    run(tmp_path, overwrite=True)
    assert [(label, read_index(tmp_path).classes[label].wnid) for _, label in found(tmp_path)] == [
        (2, "pear"),
        (1, "apple"),
        (0, "3"),
    ]


UNUSABLE = {
    "no picture: its members are cls, txt": [("k.txt", b""), ("k.cls", b"0")],
    "no label: it has no .cls": [("k.jpg", JPEG)],
    "its picture is empty": [("k.jpg", b""), ("k.cls", b"0")],
    "its label is -1": sample("k", -1),
    "its label is 99999999, expected 0 to 99999": sample("k", 99_999_999),
    "its label is no printable text": sample("k", "x" * 300),
    "its .cls cannot be read": [("k.jpg", JPEG), ("k.cls", b"\xff\xfe")],
    "its label has 2,000,000 bytes": [("k.jpg", JPEG), ("k.cls", b"0" * 2_000_000)],
    "leaves the folder": sample("../k"),
    "leaves the folder it": sample("/etc/k"),
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_samples_that_cannot_be_used_are_counted_and_listed(tmp_path: Path, reason: str) -> None:
    pack(tmp_path / "train.tar", [*sample("a"), *UNUSABLE[reason], *sample("z", 1)])

    with pytest.raises(TooManyRejectsError, match=r"1 so far, allowed: 0; first .*k in train.tar"):
        run(tmp_path)
    assert not (tmp_path / "index.json").exists()
    result = run(tmp_path, max_rejects=1)
    with (tmp_path / "rejected.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [label for _, label in found(tmp_path)] == [0, 1]
    assert result.stats["out"] == 2
    assert [row["path"] for row in rows] == ["train.tar"]
    assert reason in rows[0]["reason"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[1]", "has no field label"),
        (b"{}", "has no field label"),
        (b'{"label": true}', "is a bool"),
        (b'{"label": [1]}', "is a list"),
        (b'{"label": ' + b"9" * 3000 + b"}", "no printable text"),
        (b'{"label": ' + b"9" * 9000 + b"}", "cannot be read"),
        (b'{"label": "a\\nb"}', "no printable text"),
    ],
)
def test_json_of_any_kind_ends_in_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    good = [("a.jpg", JPEG), ("a.json", b'{"label": 0}')]
    pack(tmp_path / "train.tar", [*good, ("k.jpg", JPEG), ("k.json", content)])
    result = run(tmp_path, label="json:label", max_rejects=1)

    assert reason in result.rejected[0].reason


def test_members_of_no_sample_and_links_are_no_samples(tmp_path: Path) -> None:
    link, device, folder = tarfile.TarInfo("l.jpg"), tarfile.TarInfo("d.jpg"), tarfile.TarInfo("a")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type, folder.type = tarfile.CHRTYPE, tarfile.DIRTYPE
    extra = [("README", b"hello"), ("a/.hidden.jpg", b"x"), ("__meta__/x.json", b"{}"), ("l.cls", b"0")]
    pack(tmp_path / "train.tar", [folder, link, device, *extra, *sample("k")])
    result = run(tmp_path, max_rejects=1)

    assert found(tmp_path) == [(JPEG + b"k", 0)]
    assert result.stats["ignored"] == 3
    assert [entry.key for entry in result.rejected] == ["l"]


def test_samples_of_links_are_rejects_and_not_lost_without_a_word(tmp_path: Path) -> None:
    linked = []
    for name, kind in (("h.jpg", tarfile.LNKTYPE), ("h.cls", tarfile.LNKTYPE), ("s.jpg", tarfile.SYMTYPE)):
        linked.append(tarfile.TarInfo(name))
        linked[-1].type, linked[-1].linkname = kind, f"a{name[1:]}"
    note = tarfile.TarInfo("b.txt")
    note.type, note.linkname = tarfile.LNKTYPE, "a.jpg"
    pack(tmp_path / "train.tar", [*sample("a"), *linked, ("s.cls", b"0"), note, *sample("b"), *linked[:2]])

    with pytest.raises(TooManyRejectsError, match=r"first h in train.tar: no picture: its members cls, jpg are links"):
        run(tmp_path)
    result = run(tmp_path, max_rejects=3)
    assert [(entry.key, entry.reason.partition(" and ")[0]) for entry in result.rejected] == [
        ("h", "no picture: its members cls, jpg are links or sparse,"),
        ("s", "no picture: its members jpg are links or sparse,"),
        ("h", "no picture: its members cls, jpg are links or sparse,"),
    ]
    assert found(tmp_path) == [(JPEG + b"a", 0), (JPEG + b"b", 0)]


def test_one_word_among_numbers_is_a_reject_and_numbers_no_class_anew(tmp_path: Path) -> None:
    labels = [*range(12), "nan"]
    pack(tmp_path / "train-0.tar", [m for label in labels for m in sample(f"k{label}", label)])
    pack(tmp_path / "train-1.tar", [*sample("n1", "nan", b"\x89PNG\r\n\x1a\n"), *sample("n2", 11)])

    with pytest.raises(TooManyRejectsError, match=r"first knan in train-0.tar: label 'nan' is no number as the others"):
        run(tmp_path)
    result = run(tmp_path, max_rejects=2)
    assert [label for _, label in found(tmp_path)] == [*range(12), 11]
    assert [info.wnid for info in read_index(tmp_path).classes] == [str(label) for label in range(12)]
    assert [(entry.key, entry.path) for entry in result.rejected] == [("knan", "train-0.tar"), ("n1", "train-1.tar")]
    assert (result.stats["out"], result.stats["jpeg"], result.stats["other_format"]) == (13, 13, 0)
    assert [shard.num_samples for shard in read_index(tmp_path).splits["train"].shards] == [12, 1]


def test_names_that_are_no_utf8_can_be_listed(tmp_path: Path) -> None:
    pack(tmp_path / "train.tar", [*sample("a"), ("k\udcff.\udcfe", b"")], form=tarfile.GNU_FORMAT)
    result = run(tmp_path, max_rejects=1)

    assert result.rejected[0].key == "k\ufffd"
    assert "\ufffd" in (tmp_path / "rejected.csv").read_text()


def test_a_sparse_picture_is_none(tmp_path: Path) -> None:
    with (tmp_path / "s.jpg").open("wb") as file:
        file.seek(1 << 20)
        file.write(JPEG)
    (tmp_path / "s.cls").write_text("0")
    for form in ("gnu", "posix"):
        command = ["tar", "-c", "--sparse", f"--format={form}", "-f", tmp_path / "train.tar", "-C", tmp_path]
        subprocess.run([*command, "s.cls", "s.jpg"], check=True)

        with pytest.raises(TooManyRejectsError, match="no picture"):
            run(tmp_path)


def test_a_key_that_comes_twice_is_an_error_that_names_both_places(tmp_path: Path) -> None:
    pack(tmp_path / "train-0.tar", [*sample("a"), *sample("b")])
    pack(tmp_path / "train-1.tar", [*sample("c"), *sample("a")])
    with pytest.raises(DamagedError, match=r"a is twice in the split train: in train-0.tar at byte 512 and in train-1"):
        run(tmp_path)
    pack(tmp_path / "train-1.tar", [("c.jpg", JPEG), *sample("d"), ("c.cls", b"0")])
    with pytest.raises(
        DamagedError, match=r"c is twice .* in train-1.tar at byte 512 and in train-1.tar at byte 3,584"
    ):
        run(tmp_path, max_rejects=2)
    pack(tmp_path / "train-1.tar", [("c.jpg", JPEG), ("c.JPG", JPEG)])
    with pytest.raises(SourceError, match=r"c has two members .jpg, at bytes 512 and 1,536"):
        run(tmp_path)
    (tmp_path / "train-1.tar").rename(tmp_path / "val.tar")
    pack(tmp_path / "val.tar", sample("a"))
    assert run(tmp_path).stats["out"] == 3


def test_a_sample_of_a_thousand_members_is_none(tmp_path: Path) -> None:
    pack(tmp_path / "train.tar", [(f"k.{number}", b"") for number in range(1001)])

    with pytest.raises(SourceError, match="sample k has more than 1,000 members"):
        run(tmp_path)


def test_every_cut_of_a_tar_is_noticed(tmp_path: Path) -> None:
    whole = pack(tmp_path / "train.tar", [*sample("a"), *sample("b", 1)]).read_bytes()
    end = 4 * 1024
    assert not whole[end:].strip(b"\0")
    for length in (*range(0, end, 100), *range(511, end + 512, 512), *range(512, end + 1, 512)):
        (tmp_path / "train.tar").write_bytes(whole[:length])

        with pytest.raises(SourceError):
            run(tmp_path)
    (tmp_path / "train.tar").write_bytes(whole[: end + 1024])
    assert run(tmp_path).stats["out"] == 2


@given(place=st.integers(0, 4 * 1024 - 1), value=st.integers(0, 255))
def test_a_changed_byte_never_ends_in_a_traceback_or_in_other_offsets(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    content = bytearray(pack(folder / "train.tar", [*sample("a"), *sample("b", 1)]).read_bytes())
    content[place] = value
    (folder / "train.tar").write_bytes(content)
    try:
        run(folder, max_rejects=9)
    except ImgprepError:
        return
    starts = {512, 2560}

    assert set(open_samples(folder / "index.json", read_index(folder), "train")["offset"].tolist()) <= starts


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7, b"\xff" * 12])
def test_absurd_and_negative_sizes_are_told(tmp_path: Path, size: bytes) -> None:
    content = bytearray(pack(tmp_path / "train.tar", [*sample("a"), *sample("b")]).read_bytes())
    content[2048 + 124 : 2048 + 136] = size
    header = content[2048 : 2048 + 512]
    content[2048 + 148 : 2048 + 156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    (tmp_path / "train.tar").write_bytes(content)

    with pytest.raises(SourceError, match=r"cut off|damaged"):
        run(tmp_path)


def test_an_extended_header_of_absurd_length_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    (tmp_path / "train.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))

    with pytest.raises(SourceError, match="a header of"):
        run(tmp_path)


@pytest.mark.parametrize("name", ["train.tar.gz", "train.TGZ", "train.tar"])
def test_a_packed_tar_is_refused_by_name_and_by_content(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(pack(tmp_path / "x", sample("k")).read_bytes()))

    with pytest.raises(UsageError, match=r"packed.* - unpack it first"):
        run(tmp_path)


def test_folders_without_tars_and_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="is no folder"):
        run(tmp_path / "nowhere")
    (tmp_path / "dir.tgz").mkdir()
    pack(tmp_path / ".train.tar", sample("k"))
    with pytest.raises(MissingInputError, match="there is no tar"):
        run(tmp_path)
    (tmp_path / "train.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(SourceError):
        run(tmp_path)
    (tmp_path / "train.tar").rename(tmp_path / "train\n.tar")
    with pytest.raises(UsageError, match="rename"):
        run(tmp_path)


def test_a_dangling_link_or_a_folder_called_a_tar_is_refused_and_not_left_out(tmp_path: Path) -> None:
    pack(tmp_path / "elsewhere", sample("b"))
    tars = tmp_path / "tars"
    tars.mkdir()
    pack(tars / "train-0.tar", sample("a"))
    odd = tars / "train-1.tar"
    odd.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"train-1.tar is called a tar and is a link to nothing - "):
        run(tars)
    odd.unlink()
    odd.symlink_to(odd)
    with pytest.raises(UsageError, match="a link to nothing"):
        run(tars)
    odd.unlink()
    odd.mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        run(tars)
    odd.rmdir()
    os.mkfifo(odd)
    with pytest.raises(UsageError, match="no regular file"):
        run(tars)
    odd.unlink()
    odd.symlink_to(tmp_path / "elsewhere")
    run(tars)
    assert len(found(tars)) == 2


def test_classes_that_are_no_list(tmp_path: Path) -> None:
    pack(tmp_path / "train.tar", sample("k", "pear"))
    names = tmp_path / "names.txt"
    with pytest.raises(MissingInputError):
        run(tmp_path, classes=names)
    for content in (b"", b"a\n\nb\n", b"\xff\xfe", b"x\n" * 100_001):
        names.write_bytes(content)
        with pytest.raises(DamagedError):
            run(tmp_path, classes=names)
    names.write_text("apple\n")
    with pytest.raises(TooManyRejectsError, match="'pear', which is not in the list of classes"):
        run(tmp_path, classes=names)


@pytest.mark.parametrize("options", [{"image": "../x"}, {"label": "json:"}, {"split": "dev"}, {"max_rejects": -1}])
def test_options_that_break_a_rule(options: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        ForeignSpec(**options)  # type: ignore[arg-type]


def test_a_second_run_has_nothing_to_do_and_another_request_needs_overwrite(tmp_path: Path) -> None:
    pack(tmp_path / "train.tar", sample("k"))
    run(tmp_path)
    first = (tmp_path / "index.json").read_bytes()

    assert run(tmp_path).action == "skip"
    with pytest.raises(OutputExistsError, match="label was cls, now txt - use --overwrite to replace it, or --out"):
        run(tmp_path, label="txt")
    pack(tmp_path / "val.tar", sample("v"))
    run(tmp_path, overwrite=True)
    (tmp_path / "val.tar").unlink()
    run(tmp_path, overwrite=True)
    assert (tmp_path / "index.json").read_bytes() == first
    assert not (tmp_path / "val.samples.npy").exists()


def test_an_index_of_imgprep_shard_is_not_replaced_by_accident(sharded: Workspace) -> None:
    with pytest.raises(OutputExistsError, match="was not written by `imgprep index`"):
        run(sharded.shards("main"))


def test_tars_are_never_touched_and_threads_change_nothing(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    for number in range(6):
        pack(tars / f"train-{number}.tar", [m for n in range(9) for m in sample(f"{number}_{n}", (number + n) % 4)])
    before = digests(tars)
    spec = ForeignSpec()
    run(tars, out=tmp_path / "one")
    index_tars(plan_index(tars, spec, out=tmp_path / "two"), spec, executor=ThreadExecutor(4))

    assert digests(tars) == before
    assert {path.name for path in tars.iterdir()} == set(before)
    names = ("index.json", "train.samples.npy", "rejected.csv")
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    assert len(found(tmp_path / "two")) == 54


def test_an_index_elsewhere_links_the_tars_and_takes_the_place_of_no_file(tmp_path: Path) -> None:
    tars, out = tmp_path / "tars", tmp_path / "out"
    tars.mkdir()
    pack(tars / "train.tar", sample("k"))
    run(tars, out=out)

    assert (out / "train.tar").readlink() == tars / "train.tar"
    assert found(out) == [(JPEG + b"k", 0)]
    (out / "train.tar").unlink()
    shutil.copy(tars / "train.tar", out / "train.tar")
    with pytest.raises(OutputExistsError, match="is another file"):
        run(tars, out=out, overwrite=True, image="jpg")


def test_an_index_elsewhere_loses_the_links_of_tars_that_are_gone(tmp_path: Path) -> None:
    tars, out = tmp_path / "tars", tmp_path / "out"
    tars.mkdir()
    for number in range(3):
        pack(tars / f"train-{number}.tar", sample(f"k{number}"))
    run(tars, out=out)
    (out / "mine.tar").symlink_to(tars / "train-0.tar")
    (tars / "train-2.tar").unlink()
    run(tars, out=out, overwrite=True)

    assert sorted(path.name for path in out.glob("*.tar")) == ["mine.tar", "train-0.tar", "train-1.tar"]
    (out / "mine.tar").unlink()
    assert verify(out, VerifySpec()).problems == ()


def test_an_index_beside_the_tars_never_removes_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number in range(2):
        pack(elsewhere / f"train-{number}.tar", sample(f"k{number}"))
        (tmp_path / f"train-{number}.tar").symlink_to(elsewhere / f"train-{number}.tar")
    run(tmp_path)
    (tmp_path / "train-1.tar").rename(tmp_path / ".train-1.tar")
    run(tmp_path, overwrite=True)

    assert (tmp_path / ".train-1.tar").is_symlink()
    assert len(found(tmp_path)) == 1


def test_what_fails_leaves_the_index_that_was_there(tmp_path: Path) -> None:
    pack(tmp_path / "train.tar", sample("k"))
    run(tmp_path)
    before = (tmp_path / "index.json").read_bytes()
    pack(tmp_path / "train.tar", [*sample("k"), ("x.jpg", JPEG)])

    with pytest.raises(TooManyRejectsError):
        run(tmp_path, overwrite=True)
    assert (tmp_path / "index.json").read_bytes() == before
    with locked(tmp_path / ".index.lock", holder="another"), pytest.raises(LockedError):
        run(tmp_path, overwrite=True)


def test_a_split_without_a_sample_is_an_error(tmp_path: Path) -> None:
    pack(tmp_path / "train.tar", sample("k"))
    pack(tmp_path / "val.tar", [("README", b"")])

    with pytest.raises(DamagedError, match="not one sample of the split val"):
        run(tmp_path)


def test_the_table_says_crc_offset_and_length(tmp_path: Path) -> None:
    pack(tmp_path / "train.tar", [*sample("a", 1), *sample("b", 0)])
    run(tmp_path)
    table = open_samples(tmp_path / "index.json", read_index(tmp_path), "train")

    assert table["offset"].tolist() == [512, 2560]
    assert table["crc32"].tolist() == [zlib.crc32(JPEG + b"a"), zlib.crc32(JPEG + b"b")]
    assert table.dtype.itemsize == 24
    assert np.array_equal(table["label"], [1, 0])


def test_the_command(tmp_path: Path) -> None:
    def invoke(*args: str) -> str:
        result = CliRunner().invoke(index_command, [str(tmp_path), *args], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    pack(tmp_path / "train.tar", [*sample("a"), ("b.png", b"\x89PNG\r\n\x1a\n"), ("b.cls", b"1"), ("README", b"")])

    assert invoke("--dry-run").splitlines()[1:] == ["train.tar  train"]
    assert json.loads(invoke("--dry-run", "--json"))["tars"] == {"train.tar": "train"}
    assert not (tmp_path / "index.json").exists()
    lines = invoke().splitlines()
    assert lines[0].startswith(
        "index: 2 samples of 2 classes (train 2 in 1), 0 rejected; 1 members belong to no sample"
    )
    assert lines[1].startswith("1 pictures are no JPEG: `imgprep train` cannot read them")
    assert invoke() == f"up to date: {tmp_path / 'index.json'}\n"
    assert json.loads(invoke("--json")) == {"action": "skip", "folder": str(tmp_path)}
    counts = json.loads(invoke("--overwrite", "--json", "--image", "png", "--max-rejects", "1"))["counts"]
    assert counts == {"ignored": 1, "out": 1, "png": 1, "rejected": 1, "shards": 1, "train": 1}


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    class Counted(SilentProgress):
        done = 0

        def advance(self, n: int = 1) -> None:
            self.done += n

    for number in range(3):
        pack(tmp_path / f"train-{number}.tar", [m for n in range(5) for m in sample(f"{number}_{n}")])
    spec, progress = ForeignSpec(), Counted()
    index_tars(plan_index(tmp_path, spec), spec, progress=progress)

    assert progress.done == sum(path.stat().st_size for path in tmp_path.glob("*.tar"))


def test_millions_of_labels_are_told_to_be_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgprep.foreign._MAX_CLASSES", 3)
    for tar in range(2):
        members = [m for n in range(3) for m in sample(f"k{tar}{n}", f"caption {tar}{n}")]
        pack(tmp_path / f"train-{tar}.tar", members)
    with pytest.raises(DamagedError, match="6 different labels, expected 3 or fewer"):
        run(tmp_path)
    pack(tmp_path / "train-0.tar", [m for n in range(4) for m in sample(f"k{n}", f"caption {n}")])
    with pytest.raises(DamagedError, match="more than 3 different labels"):
        run(tmp_path)
