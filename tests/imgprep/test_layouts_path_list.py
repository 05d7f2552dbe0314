"""A CSV of paths and labels: read from any container, and each thing wrong with it named with its line."""

import contextlib
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import DamagedError, MemberError, SourceError
from imgprep.layouts import Listing, find_layout, get_layout
from imgprep.layouts.naming import make_key
from imgprep.layouts.path_list import PathListLayout
from imgprep.sources import Member, open_source
from imgprep.testing.containers import Container, write_source

PICTURES = {"x/a 1.png": b"1", "x/b.jpg": b"22", "c.jpg": b"3"}


def scan(folder: Path, text: str, *, more: dict[str, bytes] | None = None, container: Container = "zip") -> Listing:
    files = {f"set/{name}": content for name, content in PICTURES.items()}
    path = write_source(folder / "a", files | {"set/labels.csv": text.encode()} | (more or {}), container)
    with open_source(path) as source:
        layout = find_layout(source)
        assert layout.name == "path-list"
        return layout.scan(layout.mount(source))


@pytest.mark.parametrize("container", get_args(Container))
def test_rows_are_pictures(tmp_path: Path, container: Container) -> None:
    header = "\ufefflabel,other,Filename,split"
    lines = (header, "cat,9,x/a 1.png,train", "", '"big ""dog""",9,./x/b.jpg,Val', ",,c.jpg,test\r\n")
    listing = scan(tmp_path, "\r\n".join(lines), container=container)

    assert [(i.key, i.split, i.wnid, i.member.name, i.member.num_bytes) for i in listing.images] == [
        ("x_a_1-c92b89aa9e364f96", "train", "cat", "set/x/a 1.png", 1),
        ("x_b-9a3ec232cd162b0f", "val", 'big "dog"', "set/x/b.jpg", 2),
        ("c", "test", "", "set/c.jpg", 1),
    ]
    assert [synset.wnid for synset in listing.catalog] == ['big "dog"', "cat"]
    assert [dict(found.labels) for found in listing.label_lists] == [{listing.images[1].key: 'big "dog"'}]


def test_imagenet_names_stay_and_what_is_not_listed_is_counted(tmp_path: Path) -> None:
    more = {"set/y/n01440764_1.JPEG": b"", "other/z.png": b"", "words.txt": b"cat\tdomestic cat\n"}
    listing = scan(tmp_path, "path,label\ny/n01440764_1.JPEG,cat\nc.jpg,dog\n", more=more)

    assert [(image.key, image.split) for image in listing.images] == [("n01440764_1", "train"), ("c", "train")]
    assert [synset.name for synset in listing.catalog] == ["domestic cat", "dog"]
    assert sorted(listing.ignored) == ["other/z.png", "set/x/a 1.png", "set/x/b.jpg"]


def test_paths_are_found_however_accents_are_written(tmp_path: Path) -> None:
    listing = scan(tmp_path, "path,label\nmo\u0308we.jpg,a\n", more={"set/m\u00f6we.jpg": b""})

    assert listing.images[0].member.name == "set/m\u00f6we.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the columns path"),
        ("path;label\n", "line 1: expected the columns path"),
        ("path,label,filename\n", "line 1: two columns path"),
        ("path,label\n", "lists no picture"),
        ("path,label\nx/no.png,cat\n", "line 2: there is no file 'x/no.png'"),
        ("path,label\nc.jpg,a\nlabels.csv,b\n", "line 3: 'labels.csv' is no picture: known extensions are jpg, jpeg"),
        ("path,label\nc.jpg,cat\nx/b.jpg,cat\nc.jpg,dog\n", "line 4: set/c.jpg was on line 2"),
        ("path,label\nc.jpg,\n", "line 2: the label of 'c.jpg' is empty"),
        ("path,label\n,cat\n", "line 2: the path is empty"),
        ("path,label\nc.jpg\n", "line 2: 1 fields, expected 2"),
        ("path,label\n/c.jpg,cat\n", "line 2: the path '/c.jpg' is not one below"),
        ("path,label\nx/../c.jpg,cat\n", "line 2: the path 'x/../c.jpg' is not one below"),
        ("path,label\nx\\b.jpg,cat\n", "line 2: the path .* is not one below"),
        ('path,label\nc.jpg,"a, b"\n', "line 2: c.jpg: the class 'a, b' has a comma"),
        ("path,label,split\nc.jpg,cat,dev\n", "line 2: the split 'dev' is none of train, training, val"),
        ('path,label\nc.jpg,"cat\n', "line 2: no CSV"),
        (f"path,label\nc.jpg,{'x' * 200_000}\n", "line 2: no CSV"),
    ],
)
def test_each_fault_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DamagedError, match=rf"^set/labels\.csv.*{message}"):
        scan(tmp_path, text)


def test_a_list_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"set/labels\.csv is not UTF-8"):
        scan(tmp_path, "", more={"set/labels.csv": b"path,label\n\xff,a\n"})


@pytest.mark.parametrize("split", ["train", "val"])
def test_pictures_whose_keys_collide_get_a_hash_of_their_path(tmp_path: Path, split: str) -> None:
    rows = ["c.jpg,a", "c.png,b", "n01440764_1.JPEG,a", "x/n01440764_1.JPEG,b", "d.jpg,a"]
    more = dict.fromkeys((f"set/{row.split(',')[0]}" for row in rows), b"")
    listing = scan(tmp_path, "\n".join(["path,label,split", *(f"{row},{split}" for row in rows)]), more=more)

    keys = [image.key for image in listing.images]
    assert keys == [*map(make_key, ("c.jpg", "c.png", "n01440764_1.JPEG", "x/n01440764_1.JPEG")), "d"]
    assert keys[:2] == ["c_jpg-acec91c45d84ab02", "c_png-ea595f74a26b85d3"]
    assert listing.path_keys == 4
    labels = [dict(zip(keys, "ababa", strict=True))] if split == "val" else []
    assert [dict(found.labels) for found in listing.label_lists] == labels


def test_a_name_that_imitates_a_hash_is_refused(tmp_path: Path) -> None:
    imitation = f"{make_key('c.jpg')}.png"
    rows = f"path,label\nc.jpg,a\nc.png,b\n{imitation},b\n"
    with pytest.raises(SourceError, match=rf"two pictures with the key c_jpg-\w+: set/c\.jpg and set/{imitation}"):
        scan(tmp_path, rows, more={"set/c.png": b"", f"set/{imitation}": b""})


@pytest.mark.parametrize("container", get_args(Container))
def test_links_are_spoken_of_where_there_may_be_some(tmp_path: Path, container: Container) -> None:
    with pytest.raises(MemberError, match=r"there is no file 'no\.jpg'") as caught:
        scan(tmp_path, "path,label\nno.jpg,a\n", container=container)

    assert ("--follow-links" in caught.value.advice) == (container == "directory")


@pytest.mark.parametrize("folders", [True, False])
@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (["labels.csv"], r"^labels\.csv, line 1: expected the columns path .*, got 'id,breed'"),
        (["labels.csv", "old/labels.csv"], "holds 2 CSV files .* - keep one of them"),
        (["a.csv", "b.csv"], r"holds 2 CSV files .* - call the one with the columns path,label labels\.csv"),
    ],
)
def test_class_folders_are_another_way(tmp_path: Path, folders: bool, lists: list[str], message: str) -> None:
    names = ["cat/1.jpg", "dog/1.jpg"] if folders else ["all/1.jpg"]
    files = dict.fromkeys(names, b"") | dict.fromkeys(lists, b"id,breed\n1,pug\n")
    with (
        open_source(write_source(tmp_path / "a", files, "zip")) as source,
        pytest.raises(DamagedError, match=message) as caught,
    ):
        get_layout("path-list").scan(source)

    assert ("`--layout imagefolder`" in caught.value.advice) == folders


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["labels.csv", "cat/1.jpg", "dog/1.jpg"], True),
        (["train.csv", "images/1.jpg"], True),
        (["train.csv", "1.jpg"], True),
        (["notes.csv", "cat/1.jpg", "dog/1.jpg"], False),
        (["noisy_imagenette.csv", "1.jpg"], False),
        (["a.csv", "b.csv", "1.jpg"], False),
        (["labels.csv"], False),
        (["1.jpg"], False),
    ],
)
def test_a_list_is_told_by_its_name_or_by_being_alone(names: list[str], expected: bool) -> None:
    assert PathListLayout().matches([Member(name, 1) for name in names]) is expected


@pytest.mark.parametrize(
    ("names", "message"), [(["1.jpg"], "holds no CSV"), (["a.csv", "b.csv", "1.jpg"], "2 CSV files .*: a.csv, b.csv")]
)
def test_which_list_is_meant_must_be_clear(tmp_path: Path, names: list[str], message: str) -> None:
    path = write_source(tmp_path / "a", dict.fromkeys(names, b""), "zip")
    with open_source(path) as source, pytest.raises(SourceError, match=message):
        get_layout("path-list").scan(source)


@given(st.text(max_size=300))
def test_any_text_is_a_list_or_an_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    # Damage must not raise anything else.
    with contextlib.suppress(DamagedError):
        assert scan(tmp_path_factory.mktemp("list"), f"path,label\nc.jpg,cat\n{text}").images
