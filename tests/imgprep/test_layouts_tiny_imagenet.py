"""Tiny-ImageNet: classes in its own order, boxes and labels from its lists; a real one goes up to shards."""

import re
import zipfile
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.annotations import annotations
from imgprep.catalog import catalog
from imgprep.errors import DamagedError, MemberError, SourceError
from imgprep.fetch import fetch
from imgprep.layouts import Listing, find_layout, get_layout
from imgprep.layouts.ilsvrc import parse_mapping
from imgprep.layouts.tiny_imagenet import _boxes
from imgprep.records import Annotation, BoundingBox
from imgprep.selection import SubsetSpec
from imgprep.shard import plan_job, shard
from imgprep.shard_plan import ShardSpec
from imgprep.sources import open_source
from imgprep.subset import subset
from imgprep.testing.containers import Container, write_source
from imgprep.voc import parse_annotation
from imgprep.workspace import Workspace

TREE = {
    "wnids.txt": b"n00000002\nn00000001\n",
    "words.txt": b"n00000001\ttench, Tinca\nn00000009\tentity\n",
    "train/n00000001/images/n00000001_0.JPEG": b"1",
    "train/n00000001/images/n00000001_1.JPEG": b"2",
    "train/n00000001/n00000001_boxes.txt": b"n00000001_0.JPEG\t0\t10\t63\t58\nn00000001_1.JPEG\t6\t7\t8\t9\n",
    "train/n00000002/images/n00000002_0.JPEG": b"3",
    "val/images/val_0.JPEG": b"4",
    "val/val_annotations.txt": b"val_0.JPEG\tn00000002\t0\t32\t44\t62\n",
    "test/images/test_0.JPEG": b"5",
}


def scan(folder: Path, files: dict[str, bytes], container: Container = "zip") -> Listing:
    with open_source(write_source(folder / "a", files, container)) as source:
        layout = find_layout(source)
        assert layout.name == "tiny-imagenet"
        return layout.scan(layout.mount(source))


@pytest.mark.parametrize("container", get_args(Container))
@pytest.mark.parametrize("prefix", ["", "tiny-imagenet-200/"])
def test_pictures_boxes_and_labels_are_listed(tmp_path: Path, container: Container, prefix: str) -> None:
    files = {f"{prefix}{name}": content for name, content in TREE.items()}
    listing = scan(tmp_path, files | {f"__MACOSX/{name}": b"" for name in TREE}, container)

    assert [(synset.wnid, synset.name) for synset in listing.catalog] == [
        ("n00000002", "n00000002"), ("n00000001", "tench, Tinca"),
    ]  # fmt: skip
    assert sorted((image.key, image.split, image.wnid) for image in listing.images) == [
        ("n00000001_0", "train", "n00000001"),
        ("n00000001_1", "train", "n00000001"),
        ("n00000002_0", "train", "n00000002"),
        ("test_0", "test", ""),
        ("val_0", "val", ""),
    ]
    assert sorted(listing.boxes, key=lambda pair: pair[1].key) == [
        ("train", Annotation("n00000001_0", 64, 64, (BoundingBox("n00000001", 0, 10, 63, 58),))),
        ("train", Annotation("n00000001_1", 64, 64, (BoundingBox("n00000001", 6, 7, 8, 9),))),
        ("val", Annotation("val_0", 64, 64, (BoundingBox("n00000002", 0, 32, 44, 62),))),
    ]
    assert [dict(found.labels) for found in listing.label_lists] == [{"val_0": "n00000002"}]
    assert len(listing.ignored) == len(TREE)


def test_a_part_without_lists_is_usable(tmp_path: Path) -> None:
    listing = scan(tmp_path, {name: content for name, content in TREE.items() if not name.endswith(".txt")})

    assert [synset.wnid for synset in listing.catalog] == ["n00000001", "n00000002"]
    assert (len(listing.images), listing.boxes, listing.label_lists) == (5, [], ())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wnids.txt", b"n00000001\nn00000001\n", "wnids.txt, line 2: expected a new wnid"),
        ("wnids.txt", b"tench\n", "wnids.txt, line 1: expected a new wnid"),
        ("wnids.txt", b"n00000001\n", "wnids.txt lacks the training folders n00000002"),
        ("words.txt", b"\xff", "words.txt is not UTF-8"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn00000003\t0\t1\t2\t3\n", "line 1: expected `<file> <wnid> <x0>"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn00000002\t0\t1\t2\n", "val_annotations.txt, line 1"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn00000002\t0\t1\t2\t-3\n", "val_annotations.txt, line 1"),
        (
            "train/n00000001/n00000001_boxes.txt",
            b"\na.JPEG 1 2 3 4\na.JPEG 1 2 3 4\n",
            "line 3: expected a new picture",
        ),
    ],
)
def test_a_damaged_list_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(MemberError, match=message):
        scan(tmp_path, TREE | {name: content})


def test_two_trees_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds 2 trees: a/ \(5 pictures\), b/"):
        scan(tmp_path, {f"{prefix}/{name}": content for prefix in "ab" for name, content in TREE.items()})


def test_without_a_picture_there_is_nothing_to_list(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a", {"wnids.txt": b""}, "zip")
    with open_source(path) as source, pytest.raises(SourceError, match="has no picture"):
        get_layout("tiny-imagenet").scan(source)


@given(st.text("v0 .\tn1\n-JPEG/", max_size=60))
def test_any_list_is_boxes_or_an_error(text: str) -> None:
    try:
        for annotation, wnid in _boxes(text, "list", {"n00000001"}, "n00000001"):
            assert (annotation.classes, wnid) == (("n00000001",), "n00000001")
    except DamagedError:
        pass


def rebuild(real_data: Path) -> tuple[dict[str, bytes], dict[str, tuple[BoundingBox, ...]]]:
    """Tiny-ImageNet as it was, from the archive that took its pictures: some of it; and the boxes by key."""
    files: dict[str, bytes] = {}
    boxes: dict[str, tuple[BoundingBox, ...]] = {}
    with zipfile.ZipFile(real_data / "ilsvrc-mini.zip") as archive:
        mapping = archive.read(next(name for name in archive.namelist() if name.endswith("LOC_synset_mapping.txt")))
        names = parse_mapping(mapping, where="mapping")
        wnids = ("n02123045", "n01443537")
        files["wnids.txt"] = "\n".join(wnids).encode()
        files["words.txt"] = b"".join(line.replace(b" ", b"\t", 1) + b"\n" for line in mapping.splitlines())
        lists: dict[str, list[str]] = {}
        for name in archive.namelist():
            if match := re.fullmatch(r"ILSVRC/Annotations/CLS-LOC/(train/(n\d+)|val)/(.+)\.xml", name):
                annotation = parse_annotation(archive.read(name), key=match[3], catalog=names)
                (box,) = annotation.boxes[:1]
                number = match[3].rsplit("_", 1)[-1]
                corners = "\t".join(map(str, (box.xmin, box.ymin, box.xmax, box.ymax)))
                picture = archive.read(name.replace("Annotations", "Data").replace(".xml", ".JPEG"))
                if match[2] in wnids and len(lists.get(match[2], [])) < 30:
                    files[f"train/{match[2]}/images/{match[3]}.JPEG"] = picture
                    lists.setdefault(match[2], []).append(f"{match[3]}.JPEG\t{corners}\n")
                    boxes[match[3]] = (box,)
                elif not match[2] and int(number) > 60_000 and box.wnid in wnids:
                    key = f"val_{int(number) - 60_000}"
                    files[f"val/images/{key}.JPEG"] = picture
                    lists.setdefault("val", []).append(f"{key}.JPEG\t{box.wnid}\t{corners}\n")
                    boxes[key] = (box,)
    for wnid in wnids:
        files[f"train/{wnid}/{wnid}_boxes.txt"] = "".join(lists[wnid]).encode()
    files["val/val_annotations.txt"] = "".join(lists["val"]).encode()
    return {f"tiny-imagenet-200/{name}": content for name, content in files.items()}, boxes


def test_the_real_one_goes_from_its_zip_to_shards(real_data: Path, tmp_path: Path) -> None:
    files, boxes = rebuild(real_data)
    workspace = Workspace(tmp_path / "w")
    workspace.root.mkdir()
    path = write_source(tmp_path / "tiny-imagenet-200", files, "zip")
    fetch(workspace, path)
    counted = catalog(workspace).stats.to_dict()
    assert (counted["classes"], counted["train"], counted.get("ignored", 0)) == (2, 60, 0)
    annotations(workspace)
    subset(workspace, SubsetSpec(per_class=20), name="main")
    spec = ShardSpec(images="original")
    result = shard(workspace, plan_job(workspace, spec, subset="main"), spec)

    assert (result.stats["train"], result.stats["rejected"]) == (40, 0)
    assert result.stats["val"] == counted["val"] == sum("/val/images/" in name for name in files) > 5
    with open_source(path) as source:
        listing = find_layout(source).scan(source)
    assert {annotation.key: annotation.boxes for _, annotation in listing.boxes} == boxes
    assert listing.catalog[0].name == "tabby, tabby cat"
    lines = (workspace.catalog / "boxes.csv").read_text().splitlines()
    assert len(lines) == 1 + len(boxes)


@pytest.mark.parametrize("folder", ["images/", ""])
def test_validation_pictures_sorted_into_class_folders_keep_their_class(tmp_path: Path, folder: str) -> None:
    val = {name: content for name, content in TREE.items() if "val/images/" in name}
    tree = {name: content for name, content in TREE.items() if name not in val and "val_annotations" not in name}
    for name, content in val.items():
        before, after = name.split("val/images/")
        tree[f"{before}val/n00000002/{folder}{after}"] = content
    listing = scan(tmp_path, tree)

    keys = {image.key for image in listing.images if image.split == "val"}
    assert keys
    assert [dict(found.labels) for found in listing.label_lists] == [dict.fromkeys(keys, "n00000002")]
