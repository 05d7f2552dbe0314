"""Class folders: from any container, with and without splits, with odd names, up to shards."""

import io
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import get_args

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imgprep.annotations import annotations
from imgprep.catalog import catalog
from imgprep.errors import SourceError
from imgprep.fetch import fetch
from imgprep.index import read_index
from imgprep.layouts import Listing, find_layout, get_layout
from imgprep.layouts.imagefolder import ImageFolderLayout
from imgprep.layouts.naming import make_key
from imgprep.records import is_key
from imgprep.selection import SubsetSpec
from imgprep.shard import plan_job, shard
from imgprep.shard_plan import ShardSpec
from imgprep.sources import Member, open_source
from imgprep.subset import subset
from imgprep.testing.containers import Container, write_source
from imgprep.workspace import Workspace

JUNK = dict.fromkeys(
    ("set/.DS_Store", "__MACOSX/set/cat/._1.jpg", "set/cat/Thumbs.db", "set/noisy_imagenette.csv"), b""
)


def scan(folder: Path, files: dict[str, bytes], container: Container = "zip") -> Listing:
    with open_source(write_source(folder / "a", files, container)) as source:
        layout = find_layout(source)
        assert layout.name == "imagefolder"
        return layout.scan(layout.mount(source))


def rows(listing: Listing) -> list[tuple[str, str, str]]:
    return [(image.key, image.split, image.wnid) for image in listing.images]


def jpeg(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 20), color).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("container", get_args(Container))
@pytest.mark.parametrize("prefix", ["", "set/", "a/b c/"])
def test_folders_are_classes_and_junk_is_counted(tmp_path: Path, container: Container, prefix: str) -> None:
    files = {f"{prefix}{name}": b"" for name in ("cat/1.jpg", "cat/2.PNG", "dog/1.jpeg", "dog/notes.txt")}
    listing = scan(tmp_path, files | JUNK, container)

    assert sorted(rows(listing)) == [
        ("cat_1", "train", "cat"), ("cat_2", "train", "cat"), ("dog_1", "train", "dog"),
    ]  # fmt: skip
    assert [(synset.wnid, synset.name) for synset in listing.catalog] == [("cat", "cat"), ("dog", "dog")]
    assert sorted(listing.ignored) == sorted([f"{prefix}dog/notes.txt", *JUNK])
    assert listing.label_lists == ()


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_split_folders_are_splits(tmp_path: Path, val: str) -> None:
    listing = scan(
        tmp_path,
        {
            "set/train/cat/1.jpg": b"",
            "set/train/dog/1.jpg": b"",
            f"set/{val}/cat/1.jpg": b"",
            "set/test/dog/1.jpg": b"",
            "set/test/7.jpg": b"",
            "set/cover/picture.jpg": b"",
        },
    )

    assert rows(listing) == [
        ("cat_1", "train", "cat"),
        ("dog_1", "train", "dog"),
        ("val_cat_1", "val", "cat"),
        ("test_dog_1", "test", "dog"),
        ("test_7", "test", ""),
    ]
    assert [dict(labels.labels) for labels in listing.label_lists] == [{"val_cat_1": "cat"}]
    assert listing.ignored == ["set/cover/picture.jpg"]


def test_imagenette_keeps_the_names_of_imagenet(tmp_path: Path) -> None:
    listing = scan(
        tmp_path,
        {
            "imagenette2/noisy_imagenette.csv": b"path,noisy_labels_0",
            "imagenette2/train/n01440764/ILSVRC2012_val_00000293.JPEG": b"",
            "imagenette2/train/n02102040/n02102040_1.JPEG": b"",
            "imagenette2/val/n01440764/n01440764_10026.JPEG": b"",
            "LOC_synset_mapping.txt": b"n01440764 tench, Tinca tinca\nn01443537 goldfish\n",
        },
    )

    assert rows(listing) == [
        ("ILSVRC2012_val_00000293", "train", "n01440764"),
        ("n02102040_1", "train", "n02102040"),
        ("n01440764_10026", "val", "n01440764"),
    ]
    assert [synset.name for synset in listing.catalog] == ["tench, Tinca tinca", "n02102040"]
    assert listing.ignored == ["imagenette2/noisy_imagenette.csv"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert rows(scan(tmp_path, {"train/1.jpg": b"", "car/1.jpg": b""})) == [
        ("train_1", "train", "train"),
        ("car_1", "train", "car"),
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/cat/1.jpg", "b/dog/1.jpg"], r"class folders in 2 places: a/ \(1 pictures\), b/"),
        (["x, y/1.jpg", "dog/1.jpg"], "the class 'x, y' has a comma"),
    ],
)
def test_what_cannot_be_told_apart_is_named(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        scan(tmp_path, dict.fromkeys(files, b""))


@pytest.mark.parametrize("files", [[], ["1.jpg", "2.jpg"], ["cat/1.jpg"], ["cat/1.txt", "dog/2.txt"]])
def test_less_than_two_folders_of_pictures_are_no_layout(tmp_path: Path, files: list[str]) -> None:
    path = write_source(tmp_path / "a", dict.fromkeys(files, b""), "zip")
    with open_source(path) as source, pytest.raises(SourceError, match=r"known layouts: .*imagefolder"):
        find_layout(source)


def test_one_class_is_enough_when_the_layout_is_said(tmp_path: Path) -> None:
    with open_source(write_source(tmp_path / "a", {"cat/1.jpg": b""}, "zip")) as source:
        assert rows(get_layout("imagefolder").scan(source)) == [("cat_1", "train", "cat")]
    with (
        open_source(write_source(tmp_path / "b", {"1.jpg": b""}, "zip")) as source,
        pytest.raises(SourceError, match="no picture in a folder"),
    ):
        get_layout("imagefolder").scan(source)


class Names:
    """A source of which only the names count."""

    kind = "directory"
    path = Path("x")

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def members(self) -> list[Member]:
        return [Member(name, 0) for name in self.names]


STEPS = st.text("abe_ é\u0301-.", min_size=1, max_size=4).filter(lambda text: not text.startswith("."))
EXTENSIONS = st.sampled_from(["jpg", "png", "JPG"])


def keys_by_name(names: list[str]) -> dict[str, str]:
    return {image.member.name: image.key for image in ImageFolderLayout().scan(Names(names)).images}  # type: ignore[arg-type]


@given(
    st.sampled_from([[""], ["train/", "val/", "test/", "Valid/"]]).flatmap(
        lambda splits: st.sets(
            st.builds("{}{}/{}.{}".format, st.sampled_from(splits), STEPS, STEPS, EXTENSIONS), min_size=1, max_size=9
        )
    ),
    st.randoms(),
)
def test_keys_are_unique_and_depend_on_neighbours_only_where_they_collide(names: set[str], random: Random) -> None:
    listed = sorted(names)
    alone = {name: keys_by_name([name])[name] for name in listed}
    together = keys_by_name(listed)
    random.shuffle(listed)

    assert keys_by_name(listed) == together
    assert together.keys() == names
    assert len(set(together.values())) == len(names)
    assert all(map(is_key, together.values()))
    numbers = Counter(alone.values())
    assert all((together[name] == alone[name]) == (numbers[alone[name]] == 1) for name in names)


@pytest.mark.parametrize(
    ("colliding", "keys"),
    [
        (["cat/0.jpg", "cat/cat_0.jpg"], ["cat_0_jpg-448d51664b97b41c", "cat_cat_0_jpg-"]),
        (["cat/x0.jpg", "cat/x0.png"], ["cat_x0_jpg-", "cat_x0_png-"]),
        (["a/b_c.jpg", "a_b/c.jpg"], ["a_b_c_jpg-", "a_b_c_jpg-"]),
        (["a/n01440764_1.JPEG", "b/n01440764_1.JPEG"], ["a_n01440764_1_JPEG-", "b_n01440764_1_JPEG-"]),
        (["Mo\u0308we/1.jpg", "Möwe/1.jpg"], ["_Mo_u0308we_1_jpg_-", "_M_xf6we_1_jpg_-"]),
    ],
)
@pytest.mark.parametrize("prefix", ["", "set/"])
def test_pictures_whose_keys_collide_get_a_hash_of_their_path(
    tmp_path: Path, prefix: str, colliding: list[str], keys: list[str]
) -> None:
    listing = scan(tmp_path, {f"{prefix}{name}": b"" for name in (*colliding, "dog/1.jpg")})

    for image, key in zip(listing.images, (*keys, "dog_1"), strict=True):
        assert re.fullmatch(f"{key}[0-9a-f]*", image.key)
    assert listing.path_keys == len(colliding)
    assert [image.key for image in listing.images] == list(keys_by_name([*colliding, "dog/1.jpg"]).values()), (
        "where the tree lies does not count"
    )


def test_labels_go_by_the_keys_told_apart(tmp_path: Path) -> None:
    names = ["train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "val/cat/1.png", "val/dog/1.jpg"]
    listing = scan(tmp_path, dict.fromkeys(names, b""))

    labels = {image.key: image.wnid for image in listing.images if image.split == "val"}
    assert [dict(found.labels) for found in listing.label_lists] == [labels]
    assert len(labels) == 3
    assert labels["val_dog_1"] == "dog"


@pytest.mark.parametrize(
    ("imitated", "message"),
    [
        (["cat/1.jpg"], r"two pictures with the key cat_1_jpg-\w+: cat/1\.jpg and cat/cat_1_jpg-\w+\.gif"),
        (["cat/1.jpg", "cat/1.png"], r"2 keys stand for more than one picture, e\.g\. cat_1_jpg-\w+: cat/1\.jpg and "),
    ],
)
def test_a_name_that_imitates_a_hash_is_refused(imitated: list[str], message: str) -> None:
    names = ["cat/1.jpg", "cat/1.png", *(f"cat/{make_key(name)}.gif" for name in imitated)]
    with pytest.raises(SourceError, match=message):
        keys_by_name(names)


def test_what_is_odd_has_keys_of_its_own(real_data: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    workspace.root.mkdir()
    fetch(workspace, real_data / "awkward.zip")
    counted = catalog(workspace).stats
    annotations(workspace)
    manifest = pd.read_csv(workspace.catalog / "manifest.csv")

    assert counted["train"] == len(manifest) == manifest["key"].nunique() > 100
    hashed = manifest[manifest["path"].str.contains("rotating-squares")]["key"]
    assert sorted(key.rpartition("-")[0] for key in hashed) == [
        "animated_rotating-squares_gif",
        "animated_rotating-squares_webp",
    ]
    assert counted["path_keys"] == 2


@pytest.mark.parametrize("container", get_args(Container))
def test_odd_names_go_all_the_way(tmp_path: Path, container: Container) -> None:
    colors = {"sea lion": "blue", "Möwe": "white", "null": "red"}
    files = {
        f"meine Bilder/{split}/{name}/Foto {number}.jpg": jpeg(color)
        for split in ("train", "val", "test")
        for name, color in colors.items()
        for number in range(3)
    }
    workspace = Workspace(tmp_path / "w")
    workspace.root.mkdir()
    fetch(workspace, write_source(tmp_path / "a", files, container))
    catalog(workspace)
    annotations(workspace)
    subset(workspace, SubsetSpec(classes=("sea lion", "möwe")), name="main")
    spec = ShardSpec(size=16)
    job = plan_job(workspace, spec, subset="main")
    shard(workspace, job, spec)

    manifest = pd.read_csv(workspace.subset("main") / "manifest.csv")
    labelled = manifest[manifest["split"] != "test"]
    assert labelled.groupby(["split", "wnid"]).size().to_dict() == {
        ("train", "Möwe"): 3, ("train", "sea lion"): 3, ("val", "Möwe"): 3, ("val", "sea lion"): 3,
    }  # fmt: skip
    index = read_index(job.folder)
    assert [info.name for info in index.classes] == ["Möwe", "sea lion"]
    assert sum(split.num_samples for split in index.splits.values()) == len(manifest) >= 12


def test_caltech_goes_from_its_zip_to_shards(real_data: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    workspace.root.mkdir()
    fetch(workspace, real_data / "caltech-folders.zip")
    assert catalog(workspace).stats.to_dict()["train"] == 494
    annotations(workspace)
    subset(workspace, SubsetSpec(classes=3, per_class=10), name="main")
    spec = ShardSpec(size=64)
    job = plan_job(workspace, spec, subset="main")
    result = shard(workspace, job, spec)

    assert result.stats["train"] == 30
    assert len(read_index(job.folder).classes) == 3


@pytest.mark.parametrize("held_out", ["test", "val", "Validation"])
def test_held_out_pictures_are_no_class(tmp_path: Path, held_out: str) -> None:
    with pytest.raises(SourceError, match=f"right in {held_out}, which is no class"):
        scan(tmp_path, {"cat/1.jpg": b"", "dog/1.jpg": b"", f"{held_out}/1.jpg": b""})


def test_training_and_validation_are_splits(tmp_path: Path) -> None:
    names = [f"{split}/{wnid}/1.jpg" for split in ("training", "validation") for wnid in ("cat", "dog")]
    listing = scan(tmp_path, dict.fromkeys(names, b""))

    assert [image.split for image in listing.images] == ["train", "train", "val", "val"]
