"""Keys and names: one rule, whatever else is there; different texts never share a key."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import SourceError
from imgprep.layouts.naming import class_id, find_beside, is_junk, is_picture, make_key, parse_names, picture_key
from imgprep.records import SPLITS, is_key
from imgprep.sources import Member


@pytest.mark.parametrize(
    ("file_stem", "wnid", "split", "key"),
    [
        ("n01440764_10026", "n01440764", "train", "n01440764_10026"),
        ("n01440764_10026", "n01440764", "val", "n01440764_10026"),
        ("ILSVRC2012_val_00000293", "n01440764", "train", "ILSVRC2012_val_00000293"),
        ("image_0001", "Motorbikes", "train", "Motorbikes_image_0001"),
        ("Motorbikes_1", "Motorbikes", "train", "Motorbikes_1"),
        ("1", "1", "train", "1_1"),
        ("12", "1", "train", "1_12"),
        ("1", "cat", "val", "val_cat_1"),
        ("cat_1", "cat", "test", "test_cat_1"),
        ("1", "", "test", "test_1"),
        ("a b", "cat", "train", "cat_a_b-85be41a08fcfa610"),
        ("IMG.1", "Möwe", "val", "val_Mowe_IMG_1-e2dec8806bc81dba"),
        ("1", "鳥", "train", "__1-ce58470567b467bf"),
    ],
)
def test_keys_follow_the_rule(file_stem: str, wnid: str, split: str, key: str) -> None:
    assert picture_key(file_stem, wnid, split) == key  # type: ignore[arg-type]


@given(st.text(max_size=120))
def test_any_text_makes_a_key_and_keys_stay(text: str) -> None:
    key = make_key(text)

    assert is_key(key)
    assert make_key(key) == key


@given(st.text("ab ._é-", max_size=8), st.text("ab ._é-", max_size=8))
def test_other_texts_have_other_keys(one: str, other: str) -> None:
    same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    assert (make_key(one) == make_key(other)) == same


@given(st.text("é n1_", max_size=9), st.text("é n1_", max_size=9), st.sampled_from(SPLITS))
def test_the_key_of_a_picture_does_not_depend_on_how_accents_are_written(file_stem: str, wnid: str, split: str) -> None:
    stem_apart, wnid_apart = (unicodedata.normalize("NFD", text) for text in (file_stem, wnid))
    keys = {
        picture_key(one, other, split)  # type: ignore[arg-type]
        for one in (file_stem, stem_apart)
        for other in (wnid, wnid_apart)
    }
    assert len(keys) == 1


def test_names_that_differ_after_the_length_of_a_key_stay_apart() -> None:
    assert make_key("x" * 95 + "1") != make_key("x" * 95 + "2")


@pytest.mark.parametrize("name", ["a/.DS_Store", "__MACOSX/a/._1.jpg", ".git/a.png", "a/../b.jpg"])
def test_hidden_files_are_junk(name: str) -> None:
    assert is_junk(name)
    assert not is_picture(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/1.JPEG", True), ("a/1.JpG", True), ("a b/é.tiff", True), ("1.webp", True), ("a/Thumbs.db", False),
     ("a/noisy_imagenette.csv", False), ("a/.jpg", False), ("a/jpg", False), ("a/\x1b.jpg", False),
     ("a/b\n.jpg", False)],
)  # fmt: skip
def test_pictures_are_told_by_their_extension(name: str, expected: bool) -> None:
    assert is_picture(name) is expected


@pytest.mark.parametrize("text", ["a,b", "a\nb", "a\x07"])
def test_a_class_that_could_not_be_named_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match=r"x\.zip: the class"):
        class_id(text, where="x.zip")


def test_names_come_from_lines_of_several_forms() -> None:
    text = "n1\ttench, Tinca\nn2 goldfish\nn3: shark\nn4,ray\nsea lion\tseal\nn9 nobody\n\nn1 again\nn5\n"
    wnids = {"n1", "n2", "n3", "n4", "n5", "sea lion"}

    assert parse_names(text, wnids) == {
        "n1": "tench, Tinca", "n2": "goldfish", "n3": "shark", "n4": "ray", "sea lion": "seal",
    }  # fmt: skip


def test_the_nearest_list_counts() -> None:
    members = [Member(name, 1) for name in ("words.txt", "a/words.txt", "a/b/words.txt", "other/words.txt")]

    assert find_beside(members, "a/", ["words.txt"])["words.txt"].name == "a/words.txt"
    assert find_beside(members, "", ["words.txt"])["words.txt"].name == "words.txt"
    assert find_beside(members[3:], "a/", ["words.txt"]) == {}
