"""annotations: real and hostile XML, labels that agree or are refused."""

import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from imgprep.annotations import AnnotationsSpec, annotations
from imgprep.errors import AnnotationError, ContradictionError, SpecError, TooManyRejectsError
from imgprep.fetch import fetch
from imgprep.layouts import Listing
from imgprep.layouts.ilsvrc import IlsvrcLayout, parse_mapping, parse_solution
from imgprep.records import Annotation, BoundingBox, Catalog, Split, Synset
from imgprep.sources import Source
from imgprep.sources.zip import ZipSource
from imgprep.testing.toy import ToyListing
from imgprep.voc import read_annotation
from imgprep.workspace import Workspace


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
OBJECT = "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>"


def test_labels_of_all_validation_pictures_come_from_the_xml(fetched: Workspace, toy: tuple[Path, ToyListing]) -> None:
    stats = annotations(fetched).stats
    val = pd.read_csv(fetched.catalog / "val.csv")
    boxes = pd.read_csv(fetched.catalog / "boxes.csv")

    assert (stats["labels"], len(val)) == (toy[1].val, toy[1].val)
    assert stats["files"] == toy[1].val + toy[1].boxed
    assert stats["boxes"] == len(boxes)
    assert val["ImageId"].is_monotonic_increasing
    assert list(boxes.columns) == ["ImageId", "split", "wnid", "xmin", "ymin", "xmax", "ymax", "width", "height"]


def without(part: str) -> Callable[[str, bytes], bytes | None]:
    """Leaves out members."""
    return lambda name, old: None if part in name else old


def test_without_the_list_the_xml_is_enough_and_without_the_xml_the_list(toy_zip: Path, tmp_path: Path) -> None:
    results = []
    for number, left_out in enumerate(["LOC_val_solution.csv", "Annotations/CLS-LOC/val"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        workspace = rewritten(toy_zip, folder, without(left_out))
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


TRAIN_XML = "Annotations/CLS-LOC/train/"


def first_train_xml(path: Path) -> tuple[str, str]:
    """Name and text of the first training XML of an archive."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if TRAIN_XML in name and name.endswith(".xml"))
        return name, archive.read(name).decode()


@pytest.mark.parametrize(
    ("pattern", "new", "rule", "said"),
    [
        (r"<object>.*</object>", "", "without_object", "no object"),
        (r"<xmin>\d+<", "<xmin>9999<", "boxes_sorted", r"box 1 \(9999, .* has a minimum above its maximum: sorted"),
        (r"<ymax>\d+<", "<ymax>9999<", "boxes_outside", r"box 1 \(.* 9999\) reaches out of its <size> \d+ x \d+"),
        (r"<filename>[^<]*<", "<filename>%s<", "other_filename", "its <filename> is '%s'"),
        (r"<name>[^<]*<", "<name>n90000002<", "other_class", "its objects are n90000002, its folder is n90000001"),
    ],
)
def test_what_a_rule_settles_is_listed_but_no_error(
    toy_zip: Path, tmp_path: Path, pattern: str, new: str, rule: str, said: str
) -> None:
    chosen, text = first_train_xml(toy_zip)
    changed = re.sub(pattern, new, text, flags=re.DOTALL)
    assert changed != text
    workspace = rewritten(toy_zip, tmp_path, lambda name, old: changed.encode() if name == chosen else old)
    stats = annotations(workspace).stats
    odd = pd.read_csv(workspace.catalog / "annotations.odd.csv").to_dict("records")
    boxes = pd.read_csv(workspace.catalog / "boxes.csv")

    assert (stats[rule], stats["rejected"]) == (1, 0)
    found = next(row for row in odd if re.fullmatch(said, row["reason"]))
    assert (found["key"], found["split"], found["path"]) == (Path(chosen).stem, "train", chosen)
    assert (boxes["xmin"] <= boxes["xmax"]).all()
    assert (workspace.catalog / "annotations.rejected.csv").read_text() == "key,split,path,reason\n"


def test_xml_larger_than_any_is_left_out_unread(toy_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, _ = first_train_xml(toy_zip)
    workspace = rewritten(toy_zip, tmp_path, lambda name, old: b" " * (1 << 21) if name == chosen else old)
    read: list[str] = []
    original = ZipSource.read

    def noted(source: ZipSource, name: str) -> bytes:
        read.append(name)
        return original(source, name)

    monkeypatch.setattr(ZipSource, "read", noted)
    with pytest.raises(TooManyRejectsError, match=rf"{Path(chosen).name}: 2,097,152 bytes, more than the limit"):
        annotations(workspace)

    assert read
    assert chosen not in read


def test_objects_of_several_classes_are_a_label_only_with_a_list(toy_zip: Path, tmp_path: Path) -> None:
    def two_classes(name: str, content: bytes) -> bytes | None:
        if name == "LOC_val_solution.csv":
            return None
        if not name.endswith(f"{FIRST}.xml"):
            return content
        return re.sub(
            r"<object>.*</object>",
            "".join(OBJECT.format(wnid) for wnid in ("n90000001", "n90000002")),
            content.decode(),
            flags=re.DOTALL,
        ).encode()

    workspace = rewritten(toy_zip, tmp_path, two_classes)
    with pytest.raises(
        TooManyRejectsError,
        match=r"its objects are n90000001 \(.*\) and n90000002 \(.*\), and no list says which it is",
    ):
        annotations(workspace)


def test_boxes_that_a_layout_has_from_lists_go_by_the_same_rules(
    fetched: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(split: Split, key: str, *boxes: BoundingBox) -> tuple[Split, Annotation]:
        return split, Annotation(key, 64, 64, boxes)

    def scan_with_boxes(layout: IlsvrcLayout, source: Source) -> Listing:
        more = [
            listed("val", FIRST, BoundingBox(label_of[FIRST], 9, 1, 3, 4)),
            listed("train", "n90000002_0", BoundingBox("n90000002", 1, 2, 70, 4)),
            listed("train", "n90000001_0", BoundingBox("n90000001", 1, 2, 3, 4)),
        ]
        return replace(scan(layout, source), annotations=(), boxes=more)

    annotations(fetched)
    val = pd.read_csv(fetched.catalog / "val.csv")
    label_of = dict(zip(val["ImageId"], val["wnid"], strict=True))
    (fetched.catalog / "annotations.receipt.json").unlink()
    scan = IlsvrcLayout.scan
    monkeypatch.setattr(IlsvrcLayout, "scan", scan_with_boxes)
    stats = annotations(fetched).stats

    assert (fetched.catalog / "boxes.csv").read_text().splitlines()[1:] == [
        "n90000001_0,train,n90000001,1,2,3,4,64,64",
        "n90000002_0,train,n90000002,1,2,70,4,64,64",
        f"{FIRST},val,{label_of[FIRST]},3,1,9,4,64,64",
    ]
    assert (stats["boxes"], stats["boxes_sorted"], stats["boxes_outside"]) == (3, 1, 1)
    label_of[FIRST] = next(wnid for wnid in label_of.values() if wnid != label_of[FIRST])
    (fetched.catalog / "annotations.receipt.json").unlink()
    with pytest.raises(ContradictionError, match=f"{FIRST}: its list of boxes says .*, LOC_val_solution.csv says"):
        annotations(fetched)


def test_a_row_that_comes_twice_is_told(toy_zip: Path, tmp_path: Path) -> None:
    def twice(name: str, content: bytes) -> bytes:
        return content + content.splitlines(keepends=True)[1] if name == "LOC_val_solution.csv" else content

    workspace = rewritten(toy_zip, tmp_path, twice)
    stats = annotations(workspace).stats

    assert (stats["labels_repeated"], stats["rejected"]) == (1, 0)
    assert (
        "LOC_val_solution.csv,stands on the list more than once"
        in (workspace.catalog / "annotations.odd.csv").read_text()
    )


def test_tables_made_by_older_rules_are_made_again(fetched: Workspace) -> None:
    annotations(fetched)
    receipt = fetched.catalog / "annotations.receipt.json"
    assert annotations(fetched).action == "skip"
    receipt.write_text(re.sub(r'"rules": \d+', '"rules": 1', receipt.read_text()))

    assert annotations(fetched).action == "run"


def test_the_awkward_xml_meets_its_expectations(real_data: Path) -> None:
    catalog = parse_mapping((real_data / "LOC_synset_mapping.txt").read_bytes(), where="mapping")
    expected = pd.read_csv(real_data / "awkward.manifest.csv").query("category == 'xml'")
    outcomes: dict[str, tuple[int, str] | str] = {}
    with zipfile.ZipFile(real_data / "awkward.zip") as archive:
        for name in expected.iloc[:, 0]:
            key = "ILSVRC2012_val_00001849" if "1849" in name else "ILSVRC2012_val_00001676"
            try:
                found, odd = read_annotation(archive.read(f"awkward/{name}"), key=key, catalog=catalog)
                outcomes[name.split("/")[1]] = len(found.boxes), " ".join(oddity.rule for oddity in odd)
            except AnnotationError as error:
                outcomes[name.split("/")[1]] = error.what.partition(" (")[0]

    assert outcomes == {
        "ILSVRC2012_val_00001849.xml": (20, ""),
        "bom_utf8.xml": (1, ""),
        "box_outside.xml": (1, "boxes_outside"),
        "crlf.xml": (1, ""),
        "empty.xml": "not well-formed XML",
        "entity_bomb.xml": "it declares a document type, which annotations have no need of",
        "missing_size.xml": (1, ""),
        "no_object.xml": (0, ""),
        "swapped_min_max.xml": (1, "boxes_sorted"),
        "truncated.xml": "not well-formed XML",
        "unknown_wnid.xml": "no class is named 'n99999999'",
        "wrong_filename.xml": (1, "other_filename"),
    }


def test_real_annotations_and_lists_come_to_tables(real_data: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    fetch(workspace, real_data / "annotations-real.zip")
    stats = annotations(workspace).stats
    boxes = pd.read_csv(workspace.catalog / "boxes.csv")
    val = pd.read_csv(workspace.catalog / "val.csv")
    with zipfile.ZipFile(real_data / "ilsvrc-text.zip") as archive:
        sizes = archive.read("val_image_sizes.txt").decode().split()
        solution = parse_solution(archive.read("LOC_val_solution.csv"), where="solution")

    assert stats.to_dict() == {"boxes": 3143, "files": 2783, "labels": 183}
    assert len(boxes.query("split == 'train'")) == 2960
    assert dict(zip(val["ImageId"], val["wnid"], strict=True)).items() <= solution.items()
    # Here the size in the XML is that of the picture, as somebody else measured it.
    seen = boxes.query("split == 'val'")
    said = {f"val/{row.ImageId}.JPEG,{row.width},{row.height}" for row in seen.itertuples()}
    assert len(said) == 183
    assert said <= set(sizes)


LABEL_LISTS = {
    "caffe/val.txt": "caffe/val.txt",
    "caffe/synsets.txt": "caffe/synsets.txt",
    "kit/data/ILSVRC2012_validation_ground_truth.txt": "devkit/ILSVRC2012_validation_ground_truth.txt",
    "kit/data/meta.mat": "devkit/meta.mat",
    "LOC_val_solution.csv": "LOC_val_solution.csv",
}
SOMEBODY = "ILSVRC2012_val_00000236"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("", ""),
        ("LOC_val_solution.csv", r"LOC_val_solution\.csv says n01440764 \(tench\), caffe/val\.txt says n01443537"),
        ("caffe/val.txt", r"LOC_val_solution\.csv says n01443537 \(goldfish\), caffe/val\.txt says n01440764"),
        (
            "kit/data/ILSVRC2012_validation_ground_truth.txt",
            r"says n01443537 .*, kit/data/ILSVRC2012_val.* says n01751748",
        ),
        (f"{SOMEBODY}.xml", r"its XML says n01440764 \(tench\), .* says n01443537 \(goldfish\)"),
    ],
)
def test_four_real_sources_of_labels_agree_or_two_are_named(
    real_data: Path, tmp_path: Path, changed: str, said: str
) -> None:
    with zipfile.ZipFile(real_data / "ilsvrc-text.zip") as archive:
        files = {name: archive.read(place) for name, place in LABEL_LISTS.items()}
        files["LOC_synset_mapping.txt"] = archive.read("LOC_synset_mapping.txt")
    with zipfile.ZipFile(real_data / "annotations-real.zip") as archive:
        files |= {name: archive.read(name) for name in archive.namelist() if "Annotations/CLS-LOC/val/" in name}
    for name in files:
        if changed and name.endswith(changed):
            files[name] = files[name].replace(b"<name>n01443537<", b"<name>n01440764<")
            files[name] = files[name].replace(f"{SOMEBODY},n01443537 ".encode(), f"{SOMEBODY},n01440764 ".encode())
            files[name] = files[name].replace(f"{SOMEBODY}.JPEG 1\n".encode(), f"{SOMEBODY}.JPEG 0\n".encode())
            if "ground_truth" in name:
                lines = files[name].splitlines()
                files[name] = b"\n".join([*lines[:235], b"490", *lines[236:]])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    workspace = Workspace(tmp_path / "w")
    fetch(workspace, tmp_path / "a.zip")
    if not said:
        assert annotations(workspace).stats["labels"] == 183
        return
    with pytest.raises(ContradictionError, match=f"two labels for {SOMEBODY}: .*{said}"):
        annotations(workspace)


def test_svhn_writes_voc_in_a_dialect_of_its_own(real_data: Path) -> None:
    # Its digits are 1 to 9 and, for zero, 10.
    digits = Catalog(Synset(str(digit), digit - 1, str(digit)) for digit in range(1, 11))
    with zipfile.ZipFile(real_data / "annotations-real.zip") as archive:
        found = [
            read_annotation(archive.read(name), key=Path(name).stem, catalog=digits)
            for name in archive.namelist()
            if name.startswith("svhn-voc/train/") and name.endswith(".xml")
        ]

    assert (len(found), sum(len(annotation.boxes) for annotation, _ in found)) == (300, 649)
    assert max(len(annotation.classes) for annotation, _ in found) == 4
    odd = {annotation.key: [oddity.rule for oddity in odd] for annotation, odd in found if odd}
    assert odd == {"127": ["boxes_outside"], "252": ["boxes_outside"]}
    assert next(annotation for annotation, _ in found if annotation.key == "1") == Annotation(
        "1", 741, 350, (BoundingBox("1", 246, 77, 327, 296), BoundingBox("9", 323, 81, 419, 300))
    )


def test_the_size_is_that_of_the_xml_even_where_the_picture_has_another(real_data: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    fetch(workspace, real_data / "ilsvrc-nano.zip")
    annotations(workspace)
    boxes = pd.read_csv(workspace.catalog / "boxes.csv")
    pictures = pd.read_csv(real_data / "ilsvrc-nano.files.csv").query("width == 224 and height == 224")
    squeezed = boxes[boxes["ImageId"].isin(pictures["path"].map(lambda path: Path(path).stem))]

    assert len(squeezed)
    assert not ((squeezed["width"] == 224) & (squeezed["height"] == 224)).any()
    assert (squeezed["xmax"] <= squeezed["width"]).all()
    assert (squeezed["ymax"] <= squeezed["height"]).all()
