"""ImageNet's own archives: tars in a tar, the development kit's numbering, boxes in packed tars."""

import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

from imgprep.annotations import annotations
from imgprep.catalog import catalog
from imgprep.errors import ContradictionError, DamagedError, MemberError, SourceError
from imgprep.fetch import fetch
from imgprep.layouts import Listing, find_layout
from imgprep.layouts.ilsvrc import parse_mapping, parse_solution
from imgprep.layouts.label_lists import parse_meta
from imgprep.selection import SubsetSpec
from imgprep.shard import plan_job, shard
from imgprep.shard_plan import ShardSpec
from imgprep.sources import open_source
from imgprep.subset import subset
from imgprep.testing.containers import Container, mat_file, tar_file, write_source
from imgprep.workspace import Workspace

TRAIN = "ILSVRC2012_img_train.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where indices of packed tars go."""
    monkeypatch.setenv("IMGPREP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def synset(number: int, wnid: str, words: str, children: int = 0) -> dict[str, Any]:
    return {
        "ILSVRC2012_ID": np.array([number], np.uint8),
        "WNID": wnid,
        "words": words,
        "num_children": np.array([children], np.uint8),
    }


SYNSETS = [
    synset(1, "n00000007", "kit fox, Vulpes"),
    synset(2, "n00000003", "tench"),
    synset(3, "n00000001", "animal", 2),
    synset(4, "n00000005", "goldfish"),
]
KIT = {META: mat_file({"synsets": SYNSETS}), TRUTH: b"2\n1\n4\n", "ILSVRC2012_devkit_t12/readme.txt": b"x"}
FILES = {
    TRAIN: tar_file(
        {
            "n00000007.tar": tar_file({"n00000007_1.JPEG": b"fox", "n00000007_2.JPEG": b"foxes"}),
            "n00000003.tar": tar_file({"n00000003_9.JPEG": b"tench"}),
        }
    ),
    "ILSVRC2012_img_val.tar": tar_file({f"ILSVRC2012_val_0000000{n}.JPEG": b"val" for n in (1, 2, 3)}),
    "ILSVRC2012_img_test_v10102019.tar": tar_file({"test/ILSVRC2012_test_00000001.JPEG": b"test"}),
    DEVKIT: tar_file(KIT, packed=True),
    "ILSVRC2012_bbox_train_v2.tar.gz": tar_file({"n00000007/n00000007_1.xml": b"<a/>"}, packed=True),
    "ILSVRC2012_bbox_val_v3.tgz": tar_file({"val/ILSVRC2012_val_00000002.xml": b"<a/>"}, packed=True),
    "ILSVRC2012_bbox_train_dogs.tar.gz": b"not opened",
    "cover.jpg": b"",
}


def scan(folder: Path, files: dict[str, bytes], container: Container = "directory") -> Listing:
    with open_source(write_source(folder / "a", files, container)) as raw:
        layout = find_layout(raw)
        assert layout.name == "devkit"
        with layout.mount(raw) as source:
            return layout.scan(source)


@pytest.mark.parametrize("container", get_args(Container))
@pytest.mark.parametrize("prefix", ["", "imagenet/"])
def test_everything_is_found_in_its_tar(tmp_path: Path, container: Container, prefix: str) -> None:
    listing = scan(tmp_path, {f"{prefix}{name}": content for name, content in FILES.items()}, container)

    assert [(synset.wnid, synset.name) for synset in listing.catalog] == [
        ("n00000003", "tench"), ("n00000005", "goldfish"), ("n00000007", "kit fox, Vulpes"),
    ]  # fmt: skip
    assert sorted((image.key, image.split, image.wnid, image.member.num_bytes) for image in listing.images) == [
        ("ILSVRC2012_test_00000001", "test", "", 4),
        ("ILSVRC2012_val_00000001", "val", "", 3),
        ("ILSVRC2012_val_00000002", "val", "", 3),
        ("ILSVRC2012_val_00000003", "val", "", 3),
        ("n00000003_9", "train", "n00000003", 5),
        ("n00000007_1", "train", "n00000007", 3),
        ("n00000007_2", "train", "n00000007", 5),
    ]
    assert sorted((entry.key, entry.split, entry.wnid) for entry in listing.annotations) == [
        ("ILSVRC2012_val_00000002", "val", ""), ("n00000007_1", "train", "n00000007"),
    ]  # fmt: skip
    assert [dict(found.labels) for found in listing.label_lists] == [
        {
            "ILSVRC2012_val_00000001": "n00000003",
            "ILSVRC2012_val_00000002": "n00000007",
            "ILSVRC2012_val_00000003": "n00000005",
        }
    ]
    assert listing.ignored == [f"{prefix}cover.jpg"]


def test_the_kit_may_be_unpacked_or_missing(tmp_path: Path) -> None:
    tars = {name: content for name, content in FILES.items() if "devkit" not in name}

    assert scan(tmp_path / "1", tars | KIT).label_lists[0].name == TRUTH
    without = scan(tmp_path / "2", tars)
    assert [synset.name for synset in without.catalog] == ["n00000003", "n00000007"]
    assert without.label_lists == ()


def test_a_kit_without_the_ground_truth_still_names_the_classes(tmp_path: Path) -> None:
    kit = {META: KIT[META], "._junk": b"", "._ILSVRC2012_img_train.tar": b""}
    tars = {name: content for name, content in FILES.items() if "devkit" not in name}
    listing = scan(tmp_path, tars | kit)

    assert [synset.name for synset in listing.catalog] == ["tench", "goldfish", "kit fox, Vulpes"]
    assert listing.label_lists == ()


@pytest.mark.parametrize("container", get_args(Container))
def test_tars_of_classes_are_enough(tmp_path: Path, container: Container) -> None:
    files = {
        "n00000001.tar": tar_file({"n00000001_1.JPEG": b"1"}),
        "n00000002.tar": tar_file({"n00000002_1.JPEG": b""}),
    }
    listing = scan(tmp_path, files, container)

    assert [(image.key, image.wnid) for image in listing.images] == [
        ("n00000001_1", "n00000001"), ("n00000002_1", "n00000002"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (FILES | KIT, SourceError, r"meta\.mat twice|ground_truth\.txt twice"),
        (FILES | {"n00000009.tar": tar_file({"n00000009_1.JPEG": b""})}, ContradictionError, r"meta\.mat: n00000009"),
        ({"ILSVRC2012_img_train.tar": tar_file({"readme": b""})}, SourceError, "no picture in its tars"),
        ({TRAIN: FILES[TRAIN][:2000]}, SourceError, r"img_train\.tar.* cut off"),
        (FILES | {DEVKIT: b"\x1f\x8bno"}, SourceError, r"devkit_t12\.tar\.gz in .*damaged"),
        (FILES | {DEVKIT: tar_file(KIT | {TRUTH: b"2\n5\n"}, packed=True)}, MemberError, r"truth\.txt, line 2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    tmp_path: Path, files: dict[str, bytes], error: type[DamagedError], message: str
) -> None:
    with pytest.raises(error, match=message):
        scan(tmp_path, files)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * 200, "no MAT file"),
        (mat_file({"other": SYNSETS}), "no structs `synsets`"),
        (mat_file({"synsets": "text"}), "no structs `synsets`"),
        (mat_file({"synsets": [{"WNID": "n00000001"}]}), "synset 1 lacks"),
        (mat_file({"synsets": [*SYNSETS, synset(1, "n00000009", "x")]}), "synset 5 must have a new"),
        (mat_file({"synsets": [*SYNSETS, synset(9, "n00000003", "x")]}), "synset 5 must have a new"),
        (mat_file({"synsets": [synset(9, "tench", "x")]}), "synset 1 must have"),
        (mat_file({"synsets": [SYNSETS[0] | {"ILSVRC2012_ID": np.array([np.nan])}]}), "synset 1 lacks"),
    ],
)
def test_a_damaged_kit_is_named(content: bytes, message: str) -> None:
    with pytest.raises(MemberError, match=rf"meta\.mat.*{message}"):
        parse_meta(content, where="meta.mat")


def test_the_real_kit_agrees_with_kaggle(real_data: Path) -> None:
    with zipfile.ZipFile(real_data / "ilsvrc-text.zip") as archive:
        meta = parse_meta(archive.read("devkit/meta.mat"), where="meta.mat")
        mapping = parse_mapping(archive.read("LOC_synset_mapping.txt"), where="mapping")
        solution = parse_solution(archive.read("LOC_val_solution.csv"), where="solution")
        truth = archive.read("devkit/ILSVRC2012_validation_ground_truth.txt").split()

    assert {found.wnid: found.words for found in meta.values()} == {found.wnid: found.name for found in mapping}
    assert sorted(meta) == list(range(1, 1001))
    assert {f"ILSVRC2012_val_{n:08d}": meta[int(number)].wnid for n, number in enumerate(truth, 1)} == solution


def rebuild(real_data: Path, folder: Path) -> Path:
    """Some of ImageNet as image-net.org packs it, from an archive as Kaggle packs it."""
    wnids = ("n01440764", "n02979186", "n02102040")
    with (
        zipfile.ZipFile(real_data / "ilsvrc-mini.zip") as archive,
        zipfile.ZipFile(real_data / "ilsvrc-text.zip") as kit,
    ):
        names = archive.namelist()

        def chosen(start: str, number: int) -> dict[str, bytes]:
            found = [name for name in names if name.startswith(f"ILSVRC/{start}") and "_val_0006" not in name]
            return {name.rsplit("/", 1)[-1]: archive.read(name) for name in found[:number]}

        tars = {f"{wnid}.tar": tar_file(chosen(f"Data/CLS-LOC/train/{wnid}/", 12)) for wnid in wnids}
        files = {
            "ILSVRC2012_img_train.tar": tar_file(tars),
            "ILSVRC2012_img_val.tar": tar_file(chosen("Data/CLS-LOC/val/", 200)),
            "ILSVRC2012_devkit_t12.tar.gz": tar_file(
                {META: kit.read("devkit/meta.mat"), TRUTH: kit.read("devkit/ILSVRC2012_validation_ground_truth.txt")},
                packed=True,
            ),
            "ILSVRC2012_bbox_val_v3.tgz": tar_file(
                {f"val/{name}": content for name, content in chosen("Annotations/CLS-LOC/val/", 200).items()},
                packed=True,
            ),
        }
    return write_source(folder / "imagenet", files, "directory")


def test_the_real_one_goes_from_its_tars_to_shards(real_data: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    workspace.root.mkdir()
    fetch(workspace, rebuild(real_data, tmp_path))
    counted = catalog(workspace).stats.to_dict()
    assert (counted["classes"], counted["train"], counted["val"]) == (1000, 36, 200)
    annotations(workspace)
    with zipfile.ZipFile(real_data / "ilsvrc-text.zip") as archive:
        solution = parse_solution(archive.read("LOC_val_solution.csv"), where="solution")
    val = pd.read_csv(workspace.catalog / "val.csv")
    assert {row.ImageId: row.wnid for row in val.itertuples()} == {key: solution[key] for key in val["ImageId"]}
    assert len(val) == 200

    subset(workspace, SubsetSpec(classes=2, per_class=10), name="main")
    spec = ShardSpec(size=64)
    result = shard(workspace, plan_job(workspace, spec, subset="main"), spec)
    assert (result.stats["train"], result.stats["rejected"]) == (20, 0)
