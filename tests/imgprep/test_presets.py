"""presets: lists with a name never change, lists in files are read whatever editor wrote them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import SpecError
from imgprep.layouts.ilsvrc import parse_mapping
from imgprep.presets import (
    PRESETS,
    find_preset,
    get_preset,
    join_names,
    parse_class_list,
    parse_names,
    parse_superclass,
    parse_superclasses,
)

NAMES = st.text(min_size=1, max_size=12).filter(str.strip)


@pytest.mark.parametrize(
    ("name", "sizes", "sha256"),
    [
        ("imagenette", [10], "f59eff25ad35433f"),
        ("imagewoof", [10], "7068c1227e6e914e"),
        ("imagenet-100", [100], "469d277522bc36e8"),
        ("dogs-vehicles-food", [118, 41, 44], "d2d4c2e53c30de55"),
        ("bike-ship", [2, 5], "7f644744310aaf6f"),
    ],
)
def test_a_list_with_a_name_never_changes(name: str, sizes: list[int], sha256: str) -> None:
    """Subsets are cited by these names."""
    preset = get_preset(name)
    lists = [preset.classes] if preset.classes else [wnids for _, wnids in preset.superclasses]
    labels = [label for label, _ in preset.superclasses]
    wnids = [wnid for some in lists for wnid in some]

    assert [len(some) for some in lists] == sizes
    assert len(set(wnids)) == len(wnids)
    assert hashlib.sha256(" ".join([*labels, *wnids]).encode()).hexdigest()[:16] == sha256


def test_presets_are_classes_of_imagenet_with_the_names_they_should_have(real_data: Path) -> None:
    catalog = parse_mapping((real_data / "LOC_synset_mapping.txt").read_bytes(), where="mapping")
    named = {
        name: {label: [catalog.by_wnid(wnid).synonyms[0] for wnid in wnids] for label, wnids in lists}
        for name, preset in PRESETS.items()
        for lists in [preset.superclasses or (("", preset.classes),)]
    }
    dogs = named["dogs-vehicles-food"]["dogs"]

    assert named["imagenette"][""] == [
        "tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck",
        "gas pump", "golf ball", "parachute",
    ]  # fmt: skip
    assert sorted(map(str.lower, named["imagewoof"][""])) == [
        "australian terrier", "beagle", "border terrier", "dingo", "english foxhound", "golden retriever",
        "old english sheepdog", "rhodesian ridgeback", "samoyed", "shih-tzu",
    ]  # fmt: skip
    assert (dogs[0], dogs[-1]) == ("Chihuahua", "Mexican hairless")
    assert {"pizza", "banana", "espresso"} <= set(named["dogs-vehicles-food"]["food"])
    assert not {"hay", "cup", "plate", "menu"} & set(named["dogs-vehicles-food"]["food"])
    assert {"sports car", "mountain bike", "tank"} <= set(named["dogs-vehicles-food"]["vehicles"])
    assert named["bike-ship"] == {
        "bike": ["bicycle-built-for-two", "mountain bike"],
        "ship": ["aircraft carrier", "container ship", "liner", "pirate", "schooner"],
    }


def test_an_unknown_preset_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"no preset 'imagenet' - known presets: imagenette, imagewoof"):
        get_preset("imagenet")


def test_a_list_is_known_by_its_content() -> None:
    assert [find_preset(preset.classes or None, preset.superclasses) for preset in PRESETS.values()] == list(PRESETS)
    assert find_preset(3, PRESETS["bike-ship"].superclasses) == "bike-ship"
    assert find_preset(None, ()) == find_preset(PRESETS["imagenette"].classes[::-1], ()) == ""


@given(st.lists(NAMES, min_size=1, max_size=5))
def test_names_between_commas_come_back_whatever_they_hold(names: list[str]) -> None:
    text = join_names(names)

    assert parse_names(text) == tuple(names)
    assert len(text.splitlines()) == 1
    assert text.isprintable()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (" tench , English springer", ("tench", "English springer")),
        ('"tench, Tinca tinca" , ring', ("tench, Tinca tinca", "ring")),
        ('"3","all"', ("3", "all")),
        ("Küche,水", ("Küche", "水")),
    ],
)
def test_names_as_people_write_them(text: str, names: tuple[str, ...]) -> None:
    assert parse_names(text) == names


@pytest.mark.parametrize(
    "text",
    ["", " ", "a,", ",a", "a,,b", '"a', 'a"b', '"a"b', '"\\x"', '""', '" ",a', '"' * 3, '"a\nb"', " " * 50_000 + '"'],
)
def test_names_that_cannot_be_read_are_errors(text: str) -> None:
    with pytest.raises(SpecError):
        parse_names(text)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a_list_of_classes_is_read_whatever_editor_wrote_it(start: str, end: str) -> None:
    lines = [
        "# mine",
        "n01440764 tench, Tinca tinca",
        "",
        "  goldfish\t ",
        '"tench, Tinca tinca"',
        "great white  shark",
        "Çörek",
        '"#hashtag"',
    ]

    assert parse_class_list(start + end.join(lines)) == (
        "n01440764", "goldfish", "tench, Tinca tinca", "great white  shark", "Çörek", "#hashtag",
    )  # fmt: skip
    assert parse_superclasses(
        start + end.join(["# a", "sea fish: tench,  goldfish ", "", '"Käse: alt":"a:b", c ', ""])
    ) == (
        ("sea fish", ("tench", "goldfish")),
        ("Käse: alt", ("a:b", "c")),
    )


@pytest.mark.parametrize("text", ["", "\n \r\n", "# nothing\n", '""'])
def test_a_list_without_a_class_is_an_error(text: str) -> None:
    with pytest.raises(SpecError, match="names no class"):
        parse_class_list(text)
    with pytest.raises(SpecError):
        parse_superclasses(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: b\nfish tench", "line 2: expected `label: class, class, ...`, got 'fish tench'"),
        (": tench", "line 1: expected `label"),
        ("fish:", "line 1: '' holds an empty name"),
        ("fish: tench,", "line 1: .* holds an empty name"),
    ],
)
def test_a_bad_line_of_superclasses_is_named(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_superclasses(text)


@given(st.text(max_size=40))
def test_hostile_text_is_a_list_or_an_error(text: str) -> None:
    for parse in (parse_names, parse_class_list, parse_superclass, parse_superclasses):
        try:
            assert parse(text)
        except SpecError:
            continue
