"""selection: ranks to the byte as documented, shares that are exact, nested and stable, specs that fit one line."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgprep.errors import SpecError, UsageError
from imgprep.presets import PRESETS
from imgprep.records import Catalog, Synset
from imgprep.selection import (
    DROPS,
    OPERATIONS,
    CombineSpec,
    SubsetSpec,
    apportion,
    choose_classes,
    choose_keys,
    choose_pictures,
    parse_line,
    part_of,
    rank,
    share_out,
    slug,
    split_citation,
    split_pin,
)

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "subset-hash.md").read_text(encoding="utf-8")

KEYS = st.lists(st.integers(0, 10_000).map("n01440764_{}".format), unique=True, max_size=60)
SHARES = st.lists(st.integers(1, 90), min_size=1, max_size=4)
NAMES = st.text(min_size=1, max_size=8).filter(str.strip)


# The page that says how, to the byte.


@pytest.mark.parametrize("row", re.findall(r"^\| (\d+) \| `(\w+)` \| `(\w+)` \| `(\w{32})` \|$", PAGE, re.MULTILINE))
def test_a_rank_is_what_the_page_says(row: tuple[str, str, str, str]) -> None:
    assert rank(int(row[0]), row[1], row[2]).hex() == row[3]


def test_the_page_has_its_examples() -> None:
    assert len(re.findall(r"`\w{32}` \|$", PAGE, re.MULTILINE)) == 5
    assert part_of("n01440764_10026", (70, 20, 10), seed=0) == 1
    assert part_of("n01440764_10026", (1,) * 5, seed=0) == 3
    assert f"{int.from_bytes(rank(0, 'split', 'n01440764_10026'), 'big') / 2**128:.3f}" == "0.725"


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    per_class=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_code_of_the_page_chooses_the_same(sizes: list[int], per_class: int, seed: int) -> None:
    code: dict[str, Any] = {}
    exec(PAGE.split("```python\n")[1].partition("```")[0], code)
    train = {f"n{number:08d}": [f"n{number:08d}_{i}" for i in range(size)] for number, size in enumerate(sizes)}
    catalog = Catalog(Synset(wnid, place, wnid) for place, wnid in enumerate(train))
    number = min(2, sum(size >= per_class for size in sizes))

    chosen = code["choose"](train, number, per_class, seed)

    assert len(code["digest"](chosen)) == 64
    if number:
        spec = SubsetSpec(classes=number, per_class=per_class, seed=seed)
        choice = choose_classes({wnid: len(keys) for wnid, keys in train.items()}, catalog, spec)
        ours = {s.wnid: choose_pictures({s.wnid: train[s.wnid]}, per_class, seed=seed)[0] for s in choice.catalog}
        assert {wnid: set(keys) for wnid, keys in ours.items()} == {wnid: set(keys) for wnid, keys in chosen.items()}


# Shares.


def places(sizes: list[int], shares: list[int], limit: int) -> list[int]:
    """The rule of :func:`apportion`, place by place, in fractions."""
    taken = [0] * len(sizes)
    for _ in range(min(limit, sum(sizes))):
        left = [part for part in range(len(sizes)) if taken[part] < sizes[part]]
        taken[min(left, key=lambda part: ((2 * taken[part] + 1) / shares[part], part))] += 1
    return taken


@given(
    parts=st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 2, 4, 8, 64])), min_size=1, max_size=4),
    limit=st.integers(0, 120),
)
def test_places_go_to_the_part_that_is_furthest_behind(parts: list[tuple[int, int]], limit: int) -> None:
    sizes, shares = [size for size, _ in parts], [share for _, share in parts]

    taken = apportion(sizes, shares, limit)

    assert taken == places(sizes, shares, limit)
    assert sum(taken) == min(limit, sum(sizes))
    assert apportion(sizes, shares, None) == sizes
    assert all(more >= n for n, more in zip(taken, apportion(sizes, shares, limit + 1), strict=True))


@given(shares=SHARES, times=st.integers(1, 5), extra=st.integers(0, 50))
def test_whole_shares_are_met_exactly(shares: list[int], times: int, extra: int) -> None:
    sizes = [share * times + extra for share in shares]

    assert apportion(sizes, shares, sum(shares) * times) == [share * times for share in shares]


def rounds(counts: dict[str, int], limit: int, seed: int) -> dict[str, int]:
    """The rule of :func:`share_out`, picture by picture."""
    shared = dict.fromkeys(counts, 0)
    order = sorted(counts, key=lambda wnid: rank(seed, "class", wnid))
    while sum(shared.values()) < min(limit, sum(counts.values())):
        for wnid in order:
            if shared[wnid] < counts[wnid] and sum(shared.values()) < limit:
                shared[wnid] += 1
    return shared


@given(sizes=st.lists(st.integers(0, 15), min_size=1, max_size=6), limit=st.integers(0, 60), seed=st.integers(0, 3))
def test_classes_of_a_superclass_give_evenly(sizes: list[int], limit: int, seed: int) -> None:
    counts = {f"n{number:08d}": size for number, size in enumerate(sizes)}

    shared = share_out(counts, limit, seed=seed)

    assert shared == rounds(counts, limit, seed)
    assert share_out(counts, None, seed=seed) == counts
    # A part of an archive that was fetched for a larger limit gives the same.
    larger = share_out(counts, limit + 7, seed=seed)
    assert share_out(larger, limit, seed=seed) == shared


# Parts.


@given(keys=KEYS, more=KEYS, shares=SHARES, limit=st.none() | st.integers(0, 60), seed=st.integers(0, 5))
def test_parts_are_disjoint_and_stable_and_nest(
    keys: list[str], more: list[str], shares: list[int], limit: int | None, seed: int
) -> None:
    parts = choose_pictures({"a": keys}, limit, seed=seed, shares=shares)
    chosen = [key for part in parts for key in part]
    grown = choose_pictures({"a": [*more, *(key for key in keys if key not in more)]}, None, seed=seed, shares=shares)
    larger = choose_pictures({"a": keys[::-1]}, None if limit is None else limit + 5, seed=seed, shares=shares)

    assert len(chosen) == len(set(chosen)) == min(len(keys), len(keys) if limit is None else limit)
    # Added pictures move none from one part to another, and a larger choice takes none back.
    assert all(set(part) <= set(other) for part, other in zip(parts, grown, strict=True))
    assert all(set(part) <= set(other) for part, other in zip(parts, larger, strict=True))


def test_parts_are_as_large_as_their_shares_but_for_chance() -> None:
    keys = [f"n01440764_{number}" for number in range(20_000)]
    for shares in ((70, 20, 10), (1,) * 10):
        for part, share in zip(choose_pictures({"a": keys}, None, seed=3, shares=shares), shares, strict=True):
            p = share / sum(shares)
            assert abs(len(part) - 20_000 * p) < 4 * math.sqrt(20_000 * p * (1 - p))  # 4 standard deviations


def test_a_split_of_a_part_of_the_pictures_is_exact_where_there_are_enough() -> None:
    keys = [f"n01440764_{number}" for number in range(400)]

    assert list(map(len, choose_pictures({"a": keys}, 100, seed=0, shares=(70, 20, 10)))) == [70, 20, 10]
    assert list(map(len, choose_pictures({"a": keys}, 10, seed=0, shares=(80, 20)))) == [8, 2]
    assert list(map(len, choose_pictures({"a": keys}, 50, seed=0, shares=(1,) * 5))) == [10] * 5
    # Two pictures are too few for three parts; nothing is lost.
    assert sum(map(len, choose_pictures({"a": keys[:2]}, 2, seed=0, shares=(70, 20, 10)))) == 2


def test_proportional_shares_are_the_same_shares() -> None:
    keys = [f"n01440764_{number}" for number in range(500)]

    assert [part_of(key, (7, 2, 1), seed=1) for key in keys] == [part_of(key, (70, 20, 10), seed=1) for key in keys]


def test_the_part_of_a_picture_says_nothing_of_its_rank() -> None:
    """Else a small choice would be all of one part."""
    keys = [f"n01440764_{number}" for number in range(4_000)]
    first = choose_keys(keys, 2_000, seed=0)

    assert abs(sum(part_of(key, (1, 1), seed=0) == 0 for key in first) - 1_000) < 4 * math.sqrt(500)


def test_superclasses_take_evenly_from_their_classes_in_every_part() -> None:
    keys = {wnid: [f"{wnid}_{i}" for i in range(200)] for wnid in ("n00000001", "n00000002", "n00000003", "n00000004")}
    keys["n00000005"] = ["n00000005_0"]

    for part, number in zip(choose_pictures(keys, 100, seed=0, shares=(70, 20, 10)), (70, 20, 10), strict=True):
        shared = [sum(key.startswith(wnid) for key in part) for wnid in list(keys)[:4]]
        assert len(part) == number
        assert max(shared) - min(shared) <= 1


# Superclasses.

CLASSES = Catalog(
    [Synset("n02012849", 0, "crane"), Synset("n03126707", 1, "crane"), Synset("n01440764", 2, "tench, Tinca tinca")]
)


def test_superclasses_are_the_classes_in_the_order_of_their_list() -> None:
    spec = SubsetSpec(superclasses=(("Big Birds!", ("n02012849",)), ("Fish", ("tench", "Tinca tinca"))), per_class=5)
    choice = choose_classes({"n02012849": 5, "n01440764": 9}, CLASSES, spec)

    assert [(s.index, s.wnid, s.name) for s in choice.catalog] == [(0, "big-birds", "Big Birds!"), (1, "fish", "Fish")]
    assert choice.members == {"big-birds": ("n02012849",), "fish": ("n01440764",)}
    assert choice.quotas({"n02012849": 5, "n01440764": 9}, 4, seed=0) == {"n02012849": 4, "n01440764": 4}


def test_classes_choose_among_superclasses() -> None:
    both = (("birds", ("n02012849", "n03126707")), ("fish", ("tench",)))
    counts = {"n02012849": 3, "n03126707": 3, "n01440764": 5}

    assert [s.wnid for s in choose_classes(counts, CLASSES, SubsetSpec(superclasses=both, per_class=6)).catalog] == [
        "birds"
    ]
    named = SubsetSpec(superclasses=both, classes=("FISH",))
    assert [s.wnid for s in choose_classes(counts, CLASSES, named).catalog] == ["fish"]
    with pytest.raises(UsageError, match="2 classes were asked for, but only 1 have 6"):
        choose_classes(counts, CLASSES, SubsetSpec(superclasses=both, classes=2, per_class=6))


def test_a_class_is_in_one_superclass() -> None:
    spec = SubsetSpec(superclasses=(("fish", ("tench",)), ("food", ("n01440764", "n02012849"))))
    with pytest.raises(UsageError, match=r"n01440764 \(tench\) is in two superclasses: fish and food"):
        choose_classes({"n01440764": 1}, CLASSES, spec)


def test_a_name_of_two_classes_is_an_error_in_a_superclass_too() -> None:
    with pytest.raises(UsageError, match="2 classes are named 'crane': n02012849, n03126707 - give the wnid"):
        choose_classes({"n02012849": 1}, CLASSES, SubsetSpec(superclasses=(("birds", ("crane",)),)))


# Specs.

TEXTS = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
LABELS = st.from_regex(r"[A-Za-zäЖ][\w .:'\"]{0,6}", fullmatch=True).filter(slug)
SUPERCLASSES = st.lists(st.tuples(LABELS, TEXTS), min_size=1, max_size=3, unique_by=lambda pair: slug(pair[0]))
DIVISIONS: st.SearchStrategy[dict[str, Any]] = (
    st.builds(dict, val_per_class=st.none() | st.integers(0, 50))
    | st.builds(dict, split=st.lists(st.integers(1, 100), min_size=2, max_size=3).map(tuple))
    | st.builds(dict, folds=st.integers(5, 9), fold=st.none() | st.integers(0, 4))
)
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "classes": st.integers(1, 2000) | TEXTS | st.just(PRESETS["imagenette"].classes),
        "per_class": st.integers(1, 2000),
        "seed": st.integers(0, 2**63 - 1),
        "allow_short": st.booleans(),
        "superclasses": st.just(PRESETS["bike-ship"].superclasses) | SUPERCLASSES.map(tuple),
        "drop": st.lists(st.sampled_from(DROPS), max_size=4).map(tuple),
        "exclude": TEXTS,
        "parent": NAMES,
    },
)


@settings(max_examples=200)
@given(choice=CHOICES, division=DIVISIONS)
def test_a_line_gives_back_its_spec(choice: dict[str, Any], division: dict[str, Any]) -> None:
    spec = SubsetSpec(**choice, **division)
    line = spec.line

    assert parse_line(line) == spec
    assert line.isprintable()
    assert parse_line(line).line == line


@given(operation=st.sampled_from(OPERATIONS), first=NAMES, second=NAMES)
def test_a_line_gives_back_its_combination(operation: Any, first: str, second: str) -> None:
    spec = CombineSpec(operation=operation, first=first, second=second)

    assert parse_line(spec.line) == spec


def test_lines_are_as_short_as_they_can_be() -> None:
    specs = [
        SubsetSpec(),
        SubsetSpec(classes=("tench", "a, b", "3"), per_class=5, val_per_class=0, allow_short=True),
        SubsetSpec(classes=PRESETS["imagewoof"].classes, split=(70, 20, 10), parent="main#0123456789abcdef"),
        SubsetSpec(superclasses=PRESETS["bike-ship"].superclasses, folds=5, fold=0, drop=("leaks", "odd")),
        SubsetSpec(superclasses=(("sea fish", ("tench",)), ("Käse", ("a b", "c"))), classes=1, exclude=("../x.csv",)),
    ]

    assert [spec.line for spec in specs] == [
        "classes=all per-class=all val-per-class=all seed=0",
        'classes=tench,"a, b","3" per-class=5 val-per-class=0 seed=0 allow-short=yes',
        "preset=imagewoof per-class=all val-per-class=all seed=0 split=70/20/10 from=main#0123456789abcdef",
        "classes=all preset=bike-ship per-class=all val-per-class=all seed=0 folds=5 fold=0 drop=odd,leaks",
        'classes=1 per-class=all val-per-class=all seed=0 superclass="sea fish":tench superclass=Käse:"a b",c'
        " exclude=../x.csv",
    ]


def test_words_may_come_in_any_order_and_be_left_out() -> None:
    assert parse_line("  seed=3\tclasses=10 ") == SubsetSpec(classes=10, seed=3)
    assert parse_line("drop=conflicts,leaks,odd classes=ALL") == SubsetSpec(drop=("odd", "leaks", "conflicts"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "the spec is empty"),
        ("classes", "a spec is words such as per-class=100"),
        ("classes=1 per-class", "got 'per-class'"),
        ('classes="tench', "a spec is words"),
        ("classes=1 classes=2", "classes stands twice"),
        ("clases=1", "a spec has no 'clases' - known words: classes, per-class"),
        ("classes=", "holds an empty name"),
        ("classes=0", "classes must be 1 or more, got 0"),
        ("per-class=many", "a whole number was expected, got 'many'"),
        ("seed=-1", "a whole number was expected"),
        ("seed=99999999999999999999999", "a whole number was expected"),
        ("allow-short=maybe", "yes or no was expected"),
        ("split=70", "two or three shares"),
        ("split=70/0/30", "two or three shares"),
        ("split=a/b", "a whole number was expected, got 'a'"),
        ("from=a,b", "one name was expected"),
        ("preset=nope", "there is no preset 'nope'"),
        ("preset=imagenette classes=3", "both say which classes"),
        ("preset=imagenette superclass=a:b", "both say which classes"),
        ("superclass=a", "expected `label: class"),
        ("union=a", "union takes two subsets"),
        ("union=a,b seed=1", "union takes two subsets and nothing else"),
        ("union=a,b intersect=a,b", "union takes two subsets and nothing else"),
    ],
)
def test_lines_that_are_no_specs_are_errors(line: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_line(line)


@given(st.text(max_size=60) | st.text(alphabet='clases=",:/ 013unionfrom\\', max_size=60))
def test_hostile_lines_are_specs_or_errors(line: str) -> None:
    try:
        assert parse_line(line).line
    except SpecError:
        assert True


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": (70,)}, "split must be two or three shares"),
        ({"split": (70, 0)}, "got 70/0"),
        ({"split": (1, 2, 3, 4)}, "split must be"),
        ({"split": (1, 10**9)}, "from 1 to 10000"),
        ({"folds": 1}, "folds must be from 2 to 100, got 1"),
        ({"fold": 0}, "fold names one of several folds"),
        ({"folds": 3, "fold": 3}, "fold must be from 0 to 2"),
        ({"folds": 3, "split": (1, 1)}, "divide the same images"),
        ({"folds": 3, "val_per_class": 5}, "val_per_class means nothing"),
        ({"drop": ("odd", "ugly")}, "drop must be some of odd, duplicates, leaks, conflicts, got 'ugly'"),
        ({"exclude": ("",)}, "must have a name"),
        ({"parent": ""}, "must have a name"),
        ({"superclasses": (("a,b", ("c",)),)}, "no comma"),
        ({"superclasses": (("--", ("c",)),)}, "needs a letter or digit"),
        ({"superclasses": (("a\nb", ("c",)),)}, "a label of superclasses"),
        ({"superclasses": (("a b", ("c",)), ("A-B", ("d",)))}, "two superclasses would be called 'a-b'"),
        ({"superclasses": (("a", ()),)}, "names no class"),
    ],
)
def test_illegal_specs_cannot_be_built(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        SubsetSpec(**options)
    with pytest.raises(SpecError, match="not by 'minus'"):
        CombineSpec(operation="minus", first="a", second="b")  # type: ignore[arg-type]  # wrong on purpose


def test_options_of_the_first_version_are_what_they_were() -> None:
    """Receipts and parts that are on disks hold them."""
    assert SubsetSpec(classes=("tench",), per_class=3, parent="main").to_options() == {
        "classes": ["tench"], "per_class": 3, "val_per_class": None, "seed": 0, "allow_short": False,
    }  # fmt: skip


def test_folds_are_specs_of_their_own() -> None:
    spec = SubsetSpec(folds=3)

    assert [each.part_splits() for each in spec.each_fold()] == [
        ("val", "train", "train"), ("train", "val", "train"), ("train", "train", "val"),
    ]  # fmt: skip
    with pytest.raises(SpecError, match="which of the 3 folds is to be val"):
        spec.part_splits()


def test_digests_are_taken_off_citations_and_names() -> None:
    assert split_citation("classes=1 seed=0 (digest 044297a76f04b872)") == ("classes=1 seed=0", "044297a76f04b872")
    assert split_citation("classes=1 seed=0") == ("classes=1 seed=0", "")
    assert split_pin("a#b#0123456789abcdef") == ("a#b", "0123456789abcdef")
    assert split_pin("main#0123") == ("main#0123", "")
