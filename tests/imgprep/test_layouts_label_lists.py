"""Lists of validation labels: the four of the real world agree, and what is wrong with one is named."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import MemberError
from imgprep.layouts import LabelList
from imgprep.layouts.ilsvrc import parse_mapping
from imgprep.layouts.label_lists import (
    LIST_NAMES,
    MAX_LIST_BYTES,
    find_label_lists,
    parse_caffe,
    parse_ground_truth,
    parse_meta,
    parse_solution_list,
    parse_synsets,
    read_list,
)
from imgprep.sources import Member, open_source
from imgprep.testing.containers import mat_file

WNIDS = ("n01440764", "n01443537")
SYNSETS = "".join(f"{wnid}\n" for wnid in WNIDS).encode()
KEY = "ILSVRC2012_val_0000000"


def meta(rows: Sequence[tuple[float, str]], *, name: str = "synsets", number_field: str = "ILSVRC2012_ID") -> bytes:
    """A file like the development kit's meta.mat."""
    synsets = [
        {number_field: np.array([number]), "WNID": wnid, "words": wnid, "num_children": np.array([0.0])}
        for number, wnid in rows
    ]
    return mat_file({name: synsets}, compressed=False)


META = meta([(2.0, WNIDS[0]), (1.0, WNIDS[1])])
NUMBERS = {number: synset.wnid for number, synset in parse_meta(META, where="meta.mat").items()}


def solution(content: bytes) -> LabelList:
    return parse_solution_list(content, where="list")


def caffe(content: bytes) -> LabelList:
    return parse_caffe(content, WNIDS, where="list")


def ground_truth(content: bytes) -> LabelList:
    return parse_ground_truth(content, NUMBERS, where="list")


LISTS: dict[Callable[[bytes], LabelList], str] = {
    solution: "ImageId,PredictionString\n"
    f"{KEY}2,{WNIDS[0]} 1 2 3 4 {WNIDS[0]} 5 6 7 8 \n{KEY}1,{WNIDS[1]} 1 2 3.5 -4\n",
    caffe: f"{KEY}1.JPEG 1\n{KEY}2.JPEG 0\n",
    ground_truth: "1\n2\n",
}
LABELS = {f"{KEY}1": WNIDS[1], f"{KEY}2": WNIDS[0]}


@pytest.mark.parametrize("parse", LISTS)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", " \t\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n\n",
    ],
    ids=["as it is", "CRLF", "trailing blanks", "byte-order mark", "no line end", "blank lines"],
)
def test_three_lists_say_the_same_however_they_are_written(
    parse: Callable[[bytes], LabelList], change: Callable[[str], str]
) -> None:
    found = parse(change(LISTS[parse]).encode())

    assert dict(found.labels) == LABELS
    assert (found.name, list(found.repeated)) == ("list", [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected the header"),
        ("v,n01440764 1 2 3 4\n", r"expected the header ImageId,PredictionString, got \['v'"),
        ("ImageId,PredictionString\nv,\n", "line 2: expected an ImageId"),
        ("ImageId,PredictionString\n,n01440764\n", "line 2: expected an ImageId"),
        ("ImageId,PredictionString\nv,tench 1 2 3 4\n", "line 2: expected"),
        ("ImageId,PredictionString\nv,n01440764 1 2 3 4\nw,n01440764 1 2 3\n", "line 3: expected"),
        ("ImageId,PredictionString\nv,n01440764 1 2 3 4 n01440764\n", "line 2: expected"),
        ("ImageId,PredictionString\nv,n01440764 1 2 3 x\n", "line 2: expected"),
        ("ImageId,PredictionString\nv,n01440764,1\n", "line 2: expected"),
        (
            "ImageId,PredictionString\nv,n01440764\nw,n01440764\nv,n01443537\n",
            "line 4: v is n01443537 here and n01440764",
        ),
        ("ImageId,PredictionString\nv," + "n01440764 1 2 3 4 " * 10_000 + "\n", "no CSV"),
    ],
)
def test_a_broken_solution_is_named_with_its_line(text: str, said: str) -> None:
    with pytest.raises(MemberError, match=f"^list.*{said}"):
        solution(text.encode())


def test_a_row_that_comes_twice_and_says_the_same_is_told() -> None:
    found = solution(b"ImageId,PredictionString\nv,n01440764\nw,n01443537\nv,n01440764 1 2 3 4\n")

    assert found.labels == {"v": "n01440764", "w": "n01443537"}
    assert found.repeated == ["v"]


KEYS = st.text("abcdefghijklmnopqrstuvwxyz \u00e4\u4e16,'\"", min_size=1, max_size=8).filter(
    lambda key: key.strip() == key
)


@given(st.dictionaries(KEYS, st.sampled_from(WNIDS), max_size=6))
def test_names_of_any_characters_come_through_a_csv(labels: dict[str, str]) -> None:
    buffer = io.StringIO(newline="")
    rows = csv.writer(buffer)
    rows.writerow(["ImageId", "PredictionString"])
    rows.writerows((key, f"{wnid} 1 2 3 4 ") for key, wnid in labels.items())

    assert solution(buffer.getvalue().encode()).labels == labels


@pytest.mark.parametrize(
    "line",
    [
        "ILSVRC2012_val_00000001 1",
        f"{KEY}1.JPEG",
        f"{KEY}1.JPEG 2",
        f"{KEY}1.JPEG -1",
        f"{KEY}1.JPEG \u0661",
        ".JPEG 1",
    ],
    ids=["a line counter of ImageSets", "no label", "label too high", "negative", "not ASCII", "no name"],
)
def test_a_broken_line_of_caffe_is_named(line: str) -> None:
    with pytest.raises(MemberError, match=r"list, line 2: expected `<file name> <label below 2>`"):
        caffe(f"{KEY}9.JPEG 1\n{line}\n".encode())


def test_caffe_names_may_have_a_folder_and_blanks() -> None:
    assert caffe(b"val/a b.JPEG 1\n").labels == {"a b": WNIDS[1]}


@pytest.mark.parametrize("line", ["n01440764", "3", "1 1", "1.0", "-1"])
def test_a_broken_line_of_the_ground_truth_is_named(line: str) -> None:
    with pytest.raises(MemberError, match="list, line 2: expected an ILSVRC2012_ID"):
        ground_truth(f"1\n{line}\n".encode())


@pytest.mark.parametrize("content", [b"tench\n", b"n01440764\nn01440764\n", b"n01440764 tench\n"])
def test_broken_classes_of_caffe_are_named(content: bytes) -> None:
    with pytest.raises(MemberError, match=r"synsets\.txt, line \d: expected a new wnid"):
        parse_synsets(content, where="synsets.txt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "meta.mat is no MAT file"),
        (META[:-8], "meta.mat is cut off"),
        (meta([(1.0, WNIDS[0])], name="others"), "has no structs `synsets`"),
        (meta([(1.0, "tench")]), "synset 1 must have a new ILSVRC2012_ID and a new wnid"),
        (meta([(1.0, WNIDS[0])], number_field="ID"), "synset 1 lacks ILSVRC2012_ID"),
        (meta([(float("inf"), WNIDS[0])]), "synset 1 lacks ILSVRC2012_ID"),
        (meta([(float("nan"), WNIDS[0])]), "synset 1 lacks ILSVRC2012_ID"),
    ],
)
def test_a_broken_meta_is_named(content: bytes, said: str) -> None:
    with pytest.raises(MemberError, match=said):
        parse_meta(content, where="meta.mat")


@pytest.mark.parametrize("parse", LISTS)
def test_other_encodings_are_named(parse: Callable[[bytes], LabelList]) -> None:
    with pytest.raises(MemberError, match="list is not UTF-8 text"):
        parse(LISTS[parse].encode("utf-16"))


def find(folder: Path, files: dict[str, bytes], prefix: str) -> list[str]:
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with open_source(path) as source:
        members = [member for member in source.members() if member.name.rpartition("/")[2] in LIST_NAMES]
        return [found.name for found in find_label_lists(members, prefix, source)]


CAFFE = {"val.txt": LISTS[caffe].encode(), "synsets.txt": SYNSETS}
DEVKIT = {"ILSVRC2012_validation_ground_truth.txt": LISTS[ground_truth].encode(), "meta.mat": META}


@pytest.mark.parametrize(
    ("folder", "prefix", "is_found"),
    [
        ("", "", True),
        ("", "a/ILSVRC/", True),
        ("caffe/", "ILSVRC/", True),
        ("kit/data/", "ILSVRC/", True),
        ("a/kit/data/", "a/ILSVRC/", True),
        ("a/ILSVRC/kit/data/", "a/ILSVRC/", True),
        ("old/kit/data/", "ILSVRC/", False),
        ("b/kit/data/", "a/ILSVRC/", False),
    ],
)
def test_lists_lie_with_the_tree_or_little_below(tmp_path: Path, folder: str, prefix: str, is_found: bool) -> None:
    files = {f"{folder}{name}": content for name, content in (CAFFE | DEVKIT).items()}

    expected = [f"{folder}val.txt", f"{folder}ILSVRC2012_validation_ground_truth.txt"] if is_found else []
    assert find(tmp_path, files, prefix) == expected


@pytest.mark.parametrize("files", [CAFFE, DEVKIT])
def test_a_list_without_its_classes_is_not_read(tmp_path: Path, files: dict[str, bytes]) -> None:
    apart = {f"{place}/{name}": b"broken" for place, name in enumerate(files)}

    assert find(tmp_path, apart, "") == []


def test_a_list_of_no_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_bytes(b"")
    with open_source(tmp_path) as source, pytest.raises(MemberError, match=r"val\.txt has 67,108,865 bytes, more than"):
        read_list(source, Member("val.txt", MAX_LIST_BYTES + 1))


def test_the_four_real_lists_agree_on_all_pictures(real_data: Path) -> None:
    with zipfile.ZipFile(real_data / "ilsvrc-text.zip") as archive:
        text = archive.read
        lists = [
            parse_solution_list(text("LOC_val_solution.csv"), where="kaggle"),
            parse_solution_list(text("variants/LOC_val_solution.labels-only.csv"), where="labels only"),
            parse_caffe(
                text("caffe/val.txt"), parse_synsets(text("caffe/synsets.txt"), where="classes"), where="caffe"
            ),
            parse_ground_truth(
                text("devkit/ILSVRC2012_validation_ground_truth.txt"),
                {n: synset.wnid for n, synset in parse_meta(text("devkit/meta.mat"), where="meta").items()},
                where="devkit",
            ),
        ]
    assert [len(found.labels) for found in lists] == [50_000] * 4
    assert all(found.labels == lists[0].labels for found in lists)


def test_line_counters_of_real_image_sets_are_no_labels(real_data: Path) -> None:
    with zipfile.ZipFile(real_data / "annotations-real.zip") as archive:
        content = archive.read("ILSVRC/ImageSets/CLS-LOC/val.txt")
    with zipfile.ZipFile(real_data / "ilsvrc-text.zip") as archive:
        wnids = parse_synsets(archive.read("caffe/synsets.txt"), where="classes")
    with pytest.raises(MemberError, match=r"val\.txt, line 1: expected `<file name> <label below 1000>`"):
        parse_caffe(content, wnids, where="val.txt")


def test_variants_of_the_real_mapping_are_read(real_data: Path) -> None:
    with zipfile.ZipFile(real_data / "ilsvrc-text.zip") as archive:
        real, colon, renamed = (
            parse_mapping(archive.read(name), where=name)
            for name in (
                "LOC_synset_mapping.txt",
                "variants/LOC_synset_mapping.colon.txt",
                "variants/LOC_synset_mapping.renamed.txt",
            )
        )
    assert list(colon) == list(real)
    assert [synset.wnid for synset in renamed] == [synset.wnid for synset in real]
    assert sum(one != other for one, other in zip(renamed, real, strict=True)) == 3


def test_the_awkward_lists_meet_their_expectations(real_data: Path) -> None:
    found: dict[str, tuple[int, int] | str] = {}
    with zipfile.ZipFile(real_data / "awkward.zip") as archive:
        for name in archive.namelist():
            if name.startswith("awkward/csv/") and name.endswith(".csv"):
                try:
                    labels = parse_solution_list(archive.read(name), where="list")
                    found[name[12:]] = len(labels.labels), len(labels.repeated)
                except MemberError as error:
                    found[name[12:]] = error.what[:45]

    assert found == {
        "bad_tokens.csv": "list, line 4: expected an ImageId and `<wnid>",
        "bom_crlf.csv": (6, 0),
        "duplicate_id.csv": (6, 1),
        "no_header.csv": "list: expected the header ImageId,PredictionS",
    }
