"""The Kaggle layout: where it may lie, which lists it needs, and what it refuses."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from imgprep.errors import ContradictionError, MemberError, SourceError
from imgprep.layouts import Listing, find_layout
from imgprep.layouts.ilsvrc import parse_mapping, parse_solution
from imgprep.sources import open_source

TRAIN = "ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_1.JPEG"
MAPPING = b"n01440764 tench, Tinca tinca\nn01443537 goldfish\n"


def scan(folder: Path, files: dict[str, bytes]) -> Listing:
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with open_source(path) as source:
        return find_layout(source).scan(source)


@pytest.mark.parametrize("prefix", ["", "imagenet/", "a/b/"])
def test_the_tree_may_lie_below_any_folder(tmp_path: Path, prefix: str) -> None:
    listing = scan(
        tmp_path,
        {
            prefix + TRAIN: b"1",
            prefix + "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG": b"22",
            prefix + "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG": b"333",
            prefix + "ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml": b"",
            prefix + "LOC_synset_mapping.txt": MAPPING,
        },
    )

    assert [(image.key, image.split, image.wnid, image.member.num_bytes) for image in listing.images] == [
        ("n01440764_1", "train", "n01440764", 1),
        ("ILSVRC2012_val_00000001", "val", "", 2),
        ("ILSVRC2012_test_00000001", "test", "", 3),
    ]
    assert [entry.key for entry in listing.annotations] == ["ILSVRC2012_val_00000001"]
    assert len(listing.catalog) == 2


def test_without_a_mapping_the_training_folders_are_the_classes(tmp_path: Path) -> None:
    listing = scan(tmp_path, {TRAIN: b"", TRAIN.replace("n01440764", "n00000009"): b""})

    assert [synset.wnid for synset in listing.catalog] == ["n00000009", "n01440764"]


def test_files_that_do_not_fit_are_counted_not_lost(tmp_path: Path) -> None:
    stray = "ILSVRC/Data/CLS-LOC/train/n01440764/notes.txt"
    dotted = "ILSVRC/Data/CLS-LOC/train/n01440764/a.b.JPEG"
    listing = scan(tmp_path, {TRAIN: b"", stray: b"", dotted: b""})

    assert (listing.ignored, len(listing.images)) == ([stray, dotted], 1)


def test_a_training_folder_outside_the_mapping_is_a_contradiction(tmp_path: Path) -> None:
    with pytest.raises(ContradictionError, match="n00000009"):
        scan(tmp_path, {TRAIN.replace("n01440764", "n00000009"): b"", "LOC_synset_mapping.txt": MAPPING})


def test_two_pictures_with_one_key_are_named(tmp_path: Path) -> None:
    other = "ILSVRC/Data/CLS-LOC/train/n01443537/n01440764_1.JPEG"
    with pytest.raises(SourceError, match=f"{TRAIN} and {other}"):
        scan(tmp_path, {TRAIN: b"", other: b""})


def test_a_folder_without_pictures_and_an_unknown_layout_are_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not one"):
        scan(tmp_path, {"ILSVRC/Data/CLS-LOC/readme.txt": b""})
    with pytest.raises(SourceError, match=r"no dataset of a known layout.*cats/1\.jpg"):
        scan(tmp_path, {"cats/1.jpg": b""})


@pytest.mark.parametrize(
    "content", [b"", b"tench\n", b"n01440764 a\nn01440764 b\n", b"\xff\xfe\n", b"n01440764\ttench\n"]
)
def test_a_broken_mapping_is_named(content: bytes) -> None:
    with pytest.raises(MemberError, match=r"LOC_synset_mapping\.txt"):
        parse_mapping(content, where="LOC_synset_mapping.txt")


def test_the_solution_takes_the_first_class_of_shuffled_rows() -> None:
    text = "ImageId,PredictionString\r\nval_2,n01440764 1 2 3 4 n01443537 5 6 7 8 \r\nval_1,n01443537 1 2 3 4\r\n"

    assert parse_solution(text.encode(), where="x") == {"val_2": "n01440764", "val_1": "n01443537"}


def test_a_colon_after_the_wnid_is_no_part_of_the_name() -> None:
    catalog = parse_mapping(b"n01440764 : tench, Tinca tinca\nn01443537 : goldfish\n", where="x")

    assert [synset.name for synset in catalog] == ["tench, Tinca tinca", "goldfish"]


def test_names_may_have_any_letters_and_windows_line_ends() -> None:
    catalog = parse_mapping("\ufeffn01440764 Schleie, \u9bc9 \r\n\r\nn01443537  gold fish\r\n".encode(), where="x")

    assert [synset.name for synset in catalog] == ["Schleie, \u9bc9", "gold fish"]
    assert catalog.resolve("gold_fish").wnid == "n01443537"


LISTS = {
    "LOC_val_solution.csv": b"ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2 3 4 \n",
    "caffe/val.txt": b"ILSVRC2012_val_00000001.JPEG 0\n",
    "caffe/synsets.txt": b"n01440764\nn01443537\n",
}


def test_every_list_of_labels_is_found_but_no_line_counter(tmp_path: Path) -> None:
    counters = {"ILSVRC/ImageSets/CLS-LOC/val.txt": b"ILSVRC2012_val_00000001 1\n"}
    listing = scan(tmp_path, {TRAIN: b"", "LOC_synset_mapping.txt": MAPPING} | LISTS | counters)

    assert [found.name for found in listing.label_lists] == ["LOC_val_solution.csv", "caffe/val.txt"]
    assert all(found.labels == {"ILSVRC2012_val_00000001": "n01440764"} for found in listing.label_lists)
    assert listing.ignored == []


@pytest.mark.parametrize("name", LISTS)
def test_a_broken_list_of_labels_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(MemberError, match=name):
        scan(tmp_path, {TRAIN: b""} | LISTS | {name: b"broken\n"})


def test_the_real_lists_parse(real_data: Path) -> None:
    catalog = parse_mapping((real_data / "LOC_synset_mapping.txt").read_bytes(), where="mapping")
    with zipfile.ZipFile(real_data / "ilsvrc-text.zip") as archive:
        name = next(name for name in archive.namelist() if name.endswith("LOC_val_solution.csv"))
        labels = parse_solution(archive.read(name), where=name)

    assert (len(catalog), catalog[0].label, len(labels)) == (1000, "n01440764 (tench)", 50_000)
    assert {wnid for wnid in labels.values() if not catalog.has(wnid)} == set()


def test_two_trees_in_one_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds 2 trees: A/ILSVRC/ \(1 pictures\), B/ILSVRC/"):
        scan(tmp_path, {"A/" + TRAIN: b"", "B/" + TRAIN: b""})


def test_what_a_mac_puts_beside_every_file_is_no_tree(tmp_path: Path) -> None:
    listing = scan(tmp_path, {"__MACOSX/" + TRAIN: b"", TRAIN: b""})

    assert [image.member.name for image in listing.images] == [TRAIN]


def test_a_folder_whose_name_only_ends_like_the_tree_is_none(tmp_path: Path) -> None:
    listing = scan(tmp_path, {TRAIN: b"", "oldData/CLS-LOC/train/n01440764/n01440764_2.JPEG": b""})

    assert [image.key for image in listing.images] == ["n01440764_1"]


def test_the_lists_are_those_beside_the_tree(tmp_path: Path) -> None:
    listing = scan(tmp_path, {"other/LOC_synset_mapping.txt": b"broken", TRAIN: b"", "LOC_synset_mapping.txt": MAPPING})

    assert len(listing.catalog) == 2


@pytest.mark.parametrize("name", ["a\rb", "a\x1b[31mb", "a\nb"])
def test_names_that_cannot_be_written_or_shown_are_left_out(tmp_path: Path, name: str) -> None:
    listing = scan(tmp_path, {f"{name}/{TRAIN}": b"", TRAIN: b"", TRAIN.replace("_1.", f"_{name}."): b""})

    assert [image.member.name for image in listing.images] == [TRAIN]
    assert len(listing.ignored) == 2


def test_annotations_with_odd_names_are_left_out(tmp_path: Path) -> None:
    odd = "ILSVRC/Annotations/CLS-LOC/val/a.b.xml"

    assert list(scan(tmp_path, {TRAIN: b"", odd: b""}).annotations) == []
