"""annotations: real and hostile XML, labels that agree or are refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from imgprep.annotations import AnnotationsSpec, annotations
from imgprep.errors import AnnotationError, ContradictionError, SpecError, TooManyRejectsError
from imgprep.fetch import fetch
from imgprep.layouts.ilsvrc import parse_mapping
from imgprep.records import BoundingBox, Catalog, Synset
from imgprep.testing.toy import ToyListing
from imgprep.voc import parse_annotation
from imgprep.workspace import Workspace

CATALOG = Catalog([Synset("n01440764", 0, "tench"), Synset("n02092002", 1, "Scottish deerhound, deerhound")])
XML = (
    "<annotation><folder>val</folder><filename>x</filename><size><width>500</width><height>375</height></size>"
    "<object><name>n01440764</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"
    "</annotation>"
)


def parse(text: str | bytes) -> tuple[BoundingBox, ...]:
    return parse_annotation(text.encode() if isinstance(text, str) else text, key="k", catalog=CATALOG).boxes


def test_boxes_and_size_are_those_of_the_xml() -> None:
    annotation = parse_annotation(XML.encode(), key="k", catalog=CATALOG)

    assert (annotation.width, annotation.height) == (500, 375)
    assert annotation.boxes == (BoundingBox("n01440764", 1, 2, 30, 40),)


@pytest.mark.parametrize(
    ("old", "new", "box"),
    [
        ("n01440764", "Scottish_deerhound", BoundingBox("n02092002", 1, 2, 30, 40)),
        ("<xmin>1<", "<xmin> 1.6 <", BoundingBox("n01440764", 2, 2, 30, 40)),
        ("<annotation>", "\ufeff<annotation>", BoundingBox("n01440764", 1, 2, 30, 40)),
        ("><", ">\r\n<", BoundingBox("n01440764", 1, 2, 30, 40)),
        ("<filename>x<", "<filename>%s<", BoundingBox("n01440764", 1, 2, 30, 40)),
    ],
    ids=["name for wnid", "float", "byte-order mark", "CRLF", "%s"],
)
def test_oddities_of_real_files_are_read(old: str, new: str, box: BoundingBox) -> None:
    assert parse(XML.replace(old, new)) == (box,)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not well-formed"),
        (XML[:100], "not well-formed"),
        ("<html/>", "expected <annotation>"),
        (XML.replace("n01440764", "n99999999"), "no class is named"),
        (XML.replace("<ymax>40</ymax>", ""), "<ymax> must be a number"),
        (XML.replace(">30<", ">wide<"), "<xmax> must be a number"),
        (XML.replace(">30<", ">1e400<"), "<xmax> must be a number"),
        (XML.replace(">500<", ">nan<"), "<width> must be a number"),
        (XML.replace("bndbox", "box"), "no <bndbox>"),
        ('<!DOCTYPE a [<!ENTITY e "x">]>' + XML.replace("val", "&e;"), "document type"),
        ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">' + XML, "document type"),
        (" " * (1 << 20) + XML, "more than the limit"),
        (b"\x00\x01\x02", "not well-formed"),
    ],
)
def test_unusable_xml_is_refused_with_its_reason(content: str | bytes, said: str) -> None:
    with pytest.raises(AnnotationError, match=said):
        parse(content)


def test_an_entity_bomb_is_refused_without_being_expanded() -> None:
    levels = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    bomb = f'<!DOCTYPE a [<!ENTITY l0 "lol">{levels}]><annotation>&l9;</annotation>'
    with pytest.raises(AnnotationError):
        parse(bomb)


def test_xml_without_object_has_no_box() -> None:
    assert parse("<annotation><filename>x</filename></annotation>") == ()


def test_a_negative_limit_cannot_be_asked_for() -> None:
    with pytest.raises(SpecError, match="max_rejects must be 0 or more, got -1"):
        AnnotationsSpec(max_rejects=-1)


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Workspace:
    """A workspace whose archive is a copy of another with members changed, or left out where None comes back."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target / "changed.zip", "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    workspace = Workspace(target / "w")
    fetch(workspace, target / "changed.zip")
    return workspace


FIRST = "ILSVRC2012_val_00000001"


def test_labels_of_all_validation_pictures_come_from_the_xml(fetched: Workspace, toy: tuple[Path, ToyListing]) -> None:
    stats = annotations(fetched).stats
    val = pd.read_csv(fetched.catalog / "val.csv")
    boxes = pd.read_csv(fetched.catalog / "boxes.csv")

    assert (stats["labels"], len(val)) == (toy[1].val, toy[1].val)
    assert stats["files"] == toy[1].val + toy[1].boxed
    assert stats["boxes"] == len(boxes)
    assert val["ImageId"].is_monotonic_increasing
    assert list(boxes.columns) == ["ImageId", "split", "wnid", "xmin", "ymin", "xmax", "ymax", "width", "height"]


def test_without_the_list_the_xml_is_enough_and_without_the_xml_the_list(toy_zip: Path, tmp_path: Path) -> None:
    results = []
    for number, left_out in enumerate(["LOC_val_solution.csv", "Annotations/CLS-LOC/val"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        workspace = rewritten(toy_zip, folder, lambda name, old, left_out=left_out: None if left_out in name else old)
        annotations(workspace)
        results.append((workspace.catalog / "val.csv").read_bytes())

    assert results[0] == results[1]


def test_a_contradiction_names_the_image_and_both_sources(toy_zip: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(toy_zip) as archive:
        text = archive.read(f"ILSVRC/Annotations/CLS-LOC/val/{FIRST}.xml").decode()
    wrong = "n90000002" if "n90000001" in text else "n90000001"

    def relabel(name: str, content: bytes) -> bytes:
        if name != "LOC_val_solution.csv":
            return content
        lines = content.decode().splitlines(keepends=True)
        return "".join(f"{FIRST},{wrong} 1 2 3 4\n" if line.startswith(FIRST) else line for line in lines).encode()

    workspace = rewritten(toy_zip, tmp_path, relabel)
    with pytest.raises(ContradictionError, match=rf"{FIRST}: its XML says .*, LOC_val_solution\.csv says {wrong}"):
        annotations(workspace)
    assert not (workspace.catalog / "val.csv").exists()


def test_broken_xml_stops_the_stage_unless_it_is_allowed(toy_zip: Path, tmp_path: Path) -> None:
    workspace = rewritten(toy_zip, tmp_path, lambda name, old: old[:50] if name.endswith(f"{FIRST}.xml") else old)
    with pytest.raises(
        TooManyRejectsError, match=rf"unusable annotations: 1, .*{FIRST}\.xml: not well-formed.*--max-rejects 1"
    ):
        annotations(workspace)
    rejected = pd.read_csv(workspace.catalog / "annotations.rejected.csv").to_dict("records")
    result = annotations(workspace, AnnotationsSpec(max_rejects=1))

    assert [row["path"] for row in rejected] == [f"ILSVRC/Annotations/CLS-LOC/val/{FIRST}.xml"]
    assert result.stats["rejected"] == 1
    # The list still knows the label of the picture.
    assert FIRST in (workspace.catalog / "val.csv").read_text()
    # What was allowed once does not answer a stricter request.
    with pytest.raises(TooManyRejectsError):
        annotations(workspace)


def test_a_validation_picture_that_nothing_labels_is_a_reject(toy_zip: Path, tmp_path: Path) -> None:
    workspace = rewritten(
        toy_zip, tmp_path, lambda name, old: None if "LOC_val" in name or name.endswith(f"{FIRST}.xml") else old
    )
    with pytest.raises(TooManyRejectsError, match=rf"{FIRST}\.JPEG: no label"):
        annotations(workspace)


def test_training_xml_without_object_is_listed_but_no_error(toy_zip: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(toy_zip) as archive:
        chosen = next(name for name in archive.namelist() if "Annotations/CLS-LOC/train/" in name and ".xml" in name)
    empty = b"<annotation></annotation>"
    workspace = rewritten(toy_zip, tmp_path, lambda name, old: empty if name == chosen else old)
    stats = annotations(workspace).stats

    assert (stats["without_object"], stats["rejected"]) == (1, 0)
    assert f"{chosen},no object" in (workspace.catalog / "annotations.rejected.csv").read_text()


def test_the_awkward_xml_meets_its_expectations(real_data: Path) -> None:
    catalog = parse_mapping((real_data / "LOC_synset_mapping.txt").read_bytes(), where="mapping")
    expected = pd.read_csv(real_data / "awkward.manifest.csv").query("category == 'xml'")
    outcomes = {}
    with zipfile.ZipFile(real_data / "awkward.zip") as archive:
        for name in expected.iloc[:, 0]:
            try:
                found = parse_annotation(archive.read(f"awkward/{name}"), key="k", catalog=catalog)
                outcomes[name.split("/")[1]] = len(found.boxes)
            except AnnotationError:
                outcomes[name.split("/")[1]] = -1

    assert outcomes == {
        "ILSVRC2012_val_00001849.xml": 20,
        "bom_utf8.xml": 1,
        "box_outside.xml": 1,
        "crlf.xml": 1,
        "empty.xml": -1,
        "entity_bomb.xml": -1,
        "missing_size.xml": 1,
        "no_object.xml": 0,
        "swapped_min_max.xml": 1,
        "truncated.xml": -1,
        "unknown_wnid.xml": -1,
        "wrong_filename.xml": 1,
    }


def test_real_annotations_give_the_boxes_their_listing_counts(real_data: Path) -> None:
    catalog = parse_mapping((real_data / "LOC_synset_mapping.txt").read_bytes(), where="mapping")
    boxes = {"train": 0, "val": 0}
    files = {"train": 0, "val": 0}
    with zipfile.ZipFile(real_data / "annotations-real.zip") as archive:
        for name in archive.namelist():
            for split in boxes:
                if f"Annotations/CLS-LOC/{split}/" in name and name.endswith(".xml"):
                    files[split] += 1
                    boxes[split] += len(parse_annotation(archive.read(name), key="k", catalog=catalog).boxes)

    assert (files["train"], boxes["train"], files["val"]) == (2600, 2960, 183)
