"""Catalogs resolve what people write; keys are safe as names of tar members."""

from __future__ import annotations

import pytest

from imgprep.errors import SpecError, UnknownClassError
from imgprep.records import Catalog, Synset, is_key, is_wnid

CATALOG = Catalog(
    Synset(wnid, place, name)
    for place, (wnid, name) in enumerate(
        [
            ("n01440764", "tench, Tinca tinca"),
            ("n02012849", "crane"),
            ("n02102040", "English springer, English springer spaniel"),
            ("n03126707", "crane"),
            ("n09999999", "null"),
        ]
    )
)


@pytest.mark.parametrize(
    ("text", "wnid"),
    [
        ("n01440764", "n01440764"),
        ("tench", "n01440764"),
        ("TINCA TINCA", "n01440764"),
        ("English_springer_spaniel", "n02102040"),
        ("tench, Tinca tinca", "n01440764"),
        ("null", "n09999999"),
    ],
)
def test_resolve_takes_wnids_and_names(text: str, wnid: str) -> None:
    assert CATALOG.resolve(text).wnid == wnid


def test_an_ambiguous_name_is_an_error_that_lists_the_wnids() -> None:
    with pytest.raises(UnknownClassError, match="n02012849, n03126707"):
        CATALOG.resolve("crane")


@pytest.mark.parametrize(
    ("text", "near"), [("tensh", "tench"), ("springer", "English springer"), ("n01440765", "n01440764")]
)
def test_an_unknown_class_comes_with_near_matches(text: str, near: str) -> None:
    with pytest.raises(UnknownClassError) as caught:
        CATALOG.resolve(text)

    assert near in caught.value.advice


def test_an_unknown_class_without_near_match_says_where_all_are_listed() -> None:
    with pytest.raises(UnknownClassError, match=r"classes\.csv"):
        CATALOG.resolve("zzzzqqqq")


def test_a_catalog_refuses_wrong_indices_and_repeated_wnids() -> None:
    with pytest.raises(SpecError, match="index 3 at place 0"):
        Catalog([Synset("n00000001", 3, "x")])
    with pytest.raises(SpecError, match="twice"):
        Catalog([Synset("n00000001", 0, "x"), Synset("n00000001", 1, "y")])


@pytest.mark.parametrize("text", ["n01440764_10026", "ILSVRC2012_val_00000001", "a", "A-b_c"])
def test_keys(text: str) -> None:
    assert is_key(text)


@pytest.mark.parametrize("text", ["", "a.b", "a/b", "../a", "a b", "-rf", "a\n", "é", "a" * 91])
def test_not_keys(text: str) -> None:
    assert not is_key(text)


def test_wnids() -> None:
    assert [is_wnid(text) for text in ("n01440764", "n1", "n0144076x", "m01440764", "n014407641")] == [
        True,
        False,
        False,
        False,
        False,
    ]
