"""Which layout a source has: each is told by its names in any container, none is taken for another."""

import re
from pathlib import Path
from typing import get_args

import pytest

from imgprep.errors import SourceError, SpecError
from imgprep.layouts import find_layout, get_layout, layouts
from imgprep.layouts.imagefolder import ImageFolderLayout
from imgprep.sources import open_source
from imgprep.testing.containers import Container, tar_file, write_source

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "add-a-layout.md"

CLASS_TAR = tar_file({"n01440764_1.JPEG": b""})
TREES: dict[str, dict[str, bytes]] = {
    "ilsvrc": {
        "ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_1.JPEG": b"",
        "ILSVRC/Data/CLS-LOC/train/n01443537/n01443537_1.JPEG": b"",
        "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG": b"",
        "LOC_val_solution.csv": b"",
    },
    "devkit": {
        "ILSVRC2012_img_train.tar": tar_file({"n01440764.tar": CLASS_TAR}),
        "ILSVRC2012_img_val.tar": tar_file({"ILSVRC2012_val_00000001.JPEG": b""}),
        "labels.csv": b"",
    },
    "tiny-imagenet": {
        "train/n01440764/images/n01440764_0.JPEG": b"",
        "train/n01443537/images/n01443537_0.JPEG": b"",
        "val/images/val_0.JPEG": b"",
        "words.txt": b"",
    },
    "svhn": {"train_32x32.mat": b"", "train/1.png": b"", "test/1.png": b""},
    "path-list": {"images/cat/1.jpg": b"", "images/dog/1.jpg": b"", "labels.csv": b"path,label"},
    "imagefolder": {
        "imagenette2/train/n01440764/n01440764_1.JPEG": b"",
        "imagenette2/val/n02102040/n02102040_1.JPEG": b"",
        "imagenette2/noisy_imagenette.csv": b"",
    },
}


def test_every_layout_is_tested_here() -> None:
    assert list(TREES) == list(layouts())


@pytest.mark.parametrize("container", get_args(Container))
@pytest.mark.parametrize("prefix", ["", "data/my set/"])
@pytest.mark.parametrize("name", TREES)
def test_a_layout_is_found_by_its_names(tmp_path: Path, name: str, prefix: str, container: Container) -> None:
    files = {f"{prefix}{member}": content for member, content in TREES[name].items()}
    with open_source(write_source(tmp_path / "a", files, container)) as source:
        assert find_layout(source).name == name
        assert get_layout(name).matches(source.members())


@pytest.mark.parametrize("name", TREES)
def test_a_packed_tar_does_as_well(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.tgz"
    path.write_bytes(tar_file(TREES[name], packed=True))
    with open_source(path) as source:
        assert find_layout(source).name == name


@pytest.mark.parametrize("name", TREES)
def test_no_layout_before_it_is_taken_with_it(tmp_path: Path, name: str) -> None:
    """The order settles it only between a layout and the class folders or the list that are part of it."""
    with open_source(write_source(tmp_path / "a", TREES[name], "zip")) as source:
        found = {layout.name for layout in layouts().values() if layout.matches(source.members())}

    assert found - {"imagefolder", "path-list"} == {name} - {"imagefolder", "path-list"}


@pytest.mark.parametrize(
    "files", [{}, {"a.txt": b""}, {"1.jpg": b""}, {"cats/1.jpg": b""}, {".a/1.jpg": b"", ".b/1.jpg": b""}]
)
def test_an_error_names_all_layouts(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = write_source(tmp_path / "a", files, "zip")
    with open_source(path) as source, pytest.raises(SourceError, match="no dataset of a known layout") as failure:
        find_layout(source)
    assert all(name in failure.value.advice for name in layouts())
    with pytest.raises(SpecError, match=", ".join(layouts())):
        get_layout("nothing")


def test_the_layout_in_the_documentation_works(tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCUMENTATION.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, type[ImageFolderLayout]] = {}
    exec(code, names)  # the page's own example
    layout = names["PetLayout"]()
    files = {"pets/images/Abyssinian_12.jpg": b"", "pets/images/basset_hound_1.jpg": b"", "pets/readme": b""}
    with open_source(write_source(tmp_path / "a", files, "zip")) as source:
        assert layout.matches(source.members())
        listing = layout.scan(layout.mount(source))

    assert [(image.key, image.wnid) for image in listing.images] == [
        ("Abyssinian_12", "Abyssinian"), ("basset_hound_1", "basset_hound"),
    ]  # fmt: skip
    assert listing.ignored == ["pets/readme"]


def test_the_documentation_lists_every_layout() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", DOCUMENTATION.read_text(encoding="utf-8"), re.MULTILINE)

    assert rows == list(layouts())
