"""subset: the same spec gives the same rows, choices nest, short classes are said."""

from __future__ import annotations

import json
import random
import re
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from imgprep.annotations import annotations
from imgprep.catalog import catalog
from imgprep.doctor import DoctorSpec, plan_doctor
from imgprep.errors import (
    ContradictionError,
    DamagedError,
    ImgprepError,
    LockedError,
    MissingInputError,
    OutputExistsError,
    SpecError,
    UnknownClassError,
    UsageError,
)
from imgprep.fetch import fetch
from imgprep.fetch.request import PartRequest, choose
from imgprep.fetch.sequential import read_directory
from imgprep.findings import COLUMNS, DOCTOR_FILE
from imgprep.layouts.survey import survey
from imgprep.records import SPLITS, Catalog, Record, Synset
from imgprep.selection import CombineSpec, Operation, SubsetSpec, choose_classes, choose_pictures, parse_line
from imgprep.shard import plan_job, shard
from imgprep.shard_plan import ShardSpec
from imgprep.sources.part import ArchiveRecord, PartRecord
from imgprep.sources.ranges import RangeFile
from imgprep.sources.zip import ZipSource
from imgprep.subset import Pictures, Selection, combine, plan_subset, select, subset
from imgprep.tables import (
    manifest_records,
    manifest_table,
    read_catalog,
    read_manifest,
    read_manifest_pieces,
    read_table,
    write_table,
)
from imgprep.testing.toy import ToySpec, write_toy_imagenet
from imgprep.workspace import Workspace

Cli = Callable[..., Result]

CLASSES = Catalog(Synset(f"n{number:08d}", number, f"class {number}") for number in range(6))


def make_manifest(counts: dict[int, int], *, val: int = 3) -> pd.DataFrame:
    """Rows of the classes of CLASSES: so many train images each, and ``val`` validation images."""
    rows = []
    for number, count in counts.items():
        wnid = CLASSES[number].wnid
        rows += [Record(f"{wnid}_{i}", "train", f"{wnid}_{i}.JPEG", wnid, number, 10, None) for i in range(count)]
        rows += [Record(f"val_{number}_{i}", "val", f"v{number}{i}.JPEG", wnid, -1, 10, None) for i in range(val)]
    rows.append(Record("test_1", "test", "t.JPEG", "", -1, 10, None))
    return manifest_table(rows)


MANIFEST = make_manifest({0: 20, 1: 20, 2: 9, 3: 20, 4: 0, 5: 30})


def keys(selection: Selection, split: str = "train") -> set[str]:
    return {record.key for record in manifest_records(selection.manifest) if record.split == split}


def test_a_number_of_classes_takes_only_those_with_enough_images() -> None:
    selection = select(MANIFEST, CLASSES, SubsetSpec(classes=4, per_class=20))

    assert [synset.wnid for synset in selection.catalog] == ["n00000000", "n00000001", "n00000003", "n00000005"]
    assert [(synset.wnid, n) for synset, n in selection.passed_over] == [("n00000002", 9)]
    assert selection.manifest.groupby(["split", "label"]).size().to_dict() == {
        (split, label): 20 if split == "train" else 3 for split in ("train", "val") for label in range(4)
    }


def test_labels_are_new_and_dense_in_catalog_order() -> None:
    selection = select(MANIFEST, CLASSES, SubsetSpec(classes=("class 5", "n00000001"), per_class=2))
    pairs = {(record.wnid, record.label) for record in manifest_records(selection.manifest)}

    assert pairs == {("n00000001", 0), ("n00000005", 1)}
    assert [(s.index, s.wnid) for s in selection.catalog] == [(0, "n00000001"), (1, "n00000005")]


def test_more_classes_than_are_eligible_is_an_error_with_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"5 classes were asked for, but only 4 have 20 .* \(1 more have fewer\)"):
        select(MANIFEST, CLASSES, SubsetSpec(classes=5, per_class=20))


def test_named_classes_that_are_short_are_listed_unless_allowed() -> None:
    spec = SubsetSpec(classes=("n00000002", "n00000005"), per_class=25)
    with pytest.raises(UsageError, match=r"n00000002 \(class 2\) has 9.*--allow-short"):
        select(MANIFEST, CLASSES, spec)
    selection = select(MANIFEST, CLASSES, SubsetSpec(classes=spec.classes, per_class=25, allow_short=True))

    assert [(synset.wnid, n) for synset, n in selection.short] == [("n00000002", 9)]
    assert selection.num_rows("train") == 9 + 25


def test_a_named_class_without_any_image_is_an_error_even_when_short_is_allowed() -> None:
    with pytest.raises(UsageError, match="no training image of n00000004"):
        select(MANIFEST, CLASSES, SubsetSpec(classes=("n00000004",), allow_short=True))


def test_an_unknown_class_is_an_error() -> None:
    with pytest.raises(UnknownClassError, match="did you mean n00000001"):
        select(MANIFEST, CLASSES, SubsetSpec(classes=("class 1x",)))


def test_a_class_named_twice_is_taken_once() -> None:
    selection = select(MANIFEST, CLASSES, SubsetSpec(classes=("n00000001", "class 1"), per_class=2))

    assert len(selection.catalog) == 1


@pytest.mark.parametrize("val_per_class", [0, 1, None])
def test_validation_images_come_along(val_per_class: int | None) -> None:
    selection = select(MANIFEST, CLASSES, SubsetSpec(classes=2, per_class=5, val_per_class=val_per_class))

    assert selection.num_rows("val") == 2 * (3 if val_per_class is None else val_per_class)


@settings(max_examples=40)
@given(
    small=st.integers(1, 20), more=st.integers(0, 20), classes=st.integers(1, 3), extra=st.integers(0, 1),
    seed=st.integers(0, 2**63 - 1), shuffle=st.randoms(use_true_random=False),
)  # fmt: skip
def test_choices_nest_and_do_not_depend_on_the_order_of_rows(
    small: int, more: int, classes: int, extra: int, seed: int, shuffle: random.Random
) -> None:
    manifest = make_manifest({0: 40, 1: 40, 3: 40, 5: 40})
    order = list(range(len(manifest)))
    shuffle.shuffle(order)
    inner = select(manifest, CLASSES, SubsetSpec(classes=classes, per_class=small, seed=seed))
    outer = select(
        manifest.iloc[order], CLASSES, SubsetSpec(classes=classes + extra, per_class=small + more, seed=seed)
    )
    again = select(manifest.iloc[order], CLASSES, SubsetSpec(classes=classes, per_class=small, seed=seed))

    assert keys(inner) <= keys(outer)
    assert again.manifest.equals(inner.manifest)
    assert again.digest == inner.digest


def test_another_seed_makes_another_choice() -> None:
    digests = {select(MANIFEST, CLASSES, SubsetSpec(classes=2, per_class=5, seed=seed)).digest for seed in range(8)}

    assert len(digests) == 8


def test_the_choice_is_pinned() -> None:
    """These rows are what papers cite by spec. Only a new SELECTION_VERSION may change them."""
    selection = select(MANIFEST, CLASSES, SubsetSpec(classes=2, per_class=3, val_per_class=1))

    assert sorted(keys(selection)) == [
        "n00000003_15", "n00000003_2", "n00000003_8", "n00000005_1", "n00000005_12", "n00000005_18",
    ]  # fmt: skip
    assert selection.digest == "518de207e04f563500803276e16ff8d7e85a8649ec38d826efdab2ef18d513d9"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": 0}, "classes must be 1 or more, got 0"),
        ({"classes": ()}, "at least one class"),
        ({"classes": ("",)}, "none may be empty"),
        ({"per_class": 0}, "per_class must be 1 or more, got 0"),
        ({"per_class": -5}, "got -5"),
        ({"val_per_class": -1}, "val_per_class must be 0 or more, got -1"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 2**63}, "seed must be from 0"),
    ],
)
def test_illegal_specs_cannot_be_built(options: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        SubsetSpec(**options)  # type: ignore[arg-type]  # the values are wrong on purpose


@pytest.fixture
def cataloged(fetched: Workspace) -> Workspace:
    catalog(fetched)
    annotations(fetched)
    return fetched


def test_a_subset_is_a_folder_with_manifest_and_classes(cataloged: Workspace) -> None:
    result = subset(cataloged, SubsetSpec(classes=3, per_class=4), name="small")
    manifest = read_manifest(result.folder / "manifest.csv", made_by="x")

    assert result.folder == cataloged.root / "subsets" / "small"
    assert manifest.groupby("split").size().to_dict() == {"train": 12, "val": 12}
    assert [synset.index for synset in read_catalog(result.folder / "classes.csv")] == [0, 1, 2]


def test_the_same_again_does_nothing_and_another_is_refused(cataloged: Workspace) -> None:
    spec = SubsetSpec(classes=3, per_class=4)
    first = subset(cataloged, spec, name="main")
    second = subset(cataloged, spec, name="main")
    with pytest.raises(OutputExistsError, match=r"per_class was 4, now 5.*--overwrite"):
        subset(cataloged, SubsetSpec(classes=3, per_class=5), name="main")

    assert (first.action, second.action, second.digest) == ("run", "skip", first.digest)
    assert subset(cataloged, SubsetSpec(classes=3, per_class=5), name="main", overwrite=True).action == "run"


def test_subsets_compose(cataloged: Workspace) -> None:
    subset(cataloged, SubsetSpec(classes=4, per_class=8), name="outer")
    inner = subset(cataloged, SubsetSpec(classes=2, per_class=3, parent="outer"), name="inner")
    direct = plan_subset(cataloged, SubsetSpec(classes=2, per_class=3))

    assert inner.digest == direct.digest
    with pytest.raises(SpecError, match="from itself"):
        subset(cataloged, SubsetSpec(parent="inner"), name="inner")
    with pytest.raises(MissingInputError, match="--name nowhere"):
        subset(cataloged, SubsetSpec(parent="nowhere"), name="new")


def test_the_choice_does_not_depend_on_the_container(cataloged: Workspace, toy_spec: ToySpec, tmp_path: Path) -> None:
    write_toy_imagenet(tmp_path / "toy", toy_spec)
    other = Workspace(tmp_path / "other")
    fetch(other, tmp_path / "toy")
    catalog(other)
    annotations(other)
    spec = SubsetSpec(classes=3, per_class=4)

    assert plan_subset(other, spec).digest == plan_subset(cataloged, spec).digest


def test_names_cannot_leave_the_workspace(cataloged: Workspace) -> None:
    for name in ("../x", "a/b", "", ".hidden"):
        with pytest.raises(SpecError, match="a name is made of"):
            subset(cataloged, SubsetSpec(), name=name)


PAIRS = (("low", ("class 0", "class 1")), ("middle", ("class 2", "class 3")), ("high", ("class 4", "class 5")))

AMOUNTS = {
    "per_class": st.none() | st.integers(1, 5),
    "seed": st.integers(0, 1),
    "allow_short": st.booleans(),
}
NAMED = st.sampled_from([("class 0",), ("class 1", "class 3"), ("class 2",)])
REQUESTS = st.builds(
    SubsetSpec, **AMOUNTS, classes=st.none() | st.integers(1, 4) | NAMED, val_per_class=st.none() | st.integers(0, 2)
) | st.builds(
    SubsetSpec,
    **AMOUNTS,
    classes=st.none() | st.integers(1, 2) | st.just(("low", "high")),
    superclasses=st.just(PAIRS),
    val_per_class=st.none() | st.integers(0, 3),
)
DIVIDED = st.builds(SubsetSpec, **AMOUNTS, classes=st.none() | st.integers(1, 4) | NAMED, split=st.just((2, 1)))
"""Requests of ``subset`` that ``fetch`` does not know."""


def chosen(manifest: pd.DataFrame, spec: SubsetSpec) -> object:
    """What a spec chooses, or that it cannot."""
    try:
        selection = select(manifest, CLASSES, spec)
    except UsageError:
        return "refused"
    return selection.manifest.to_csv(index=False), [synset.wnid for synset in selection.catalog]


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(0, 7), min_size=6, max_size=6),
    requests=st.lists(REQUESTS, min_size=1, max_size=3),
    wanted=REQUESTS | DIVIDED,
)
def test_a_part_that_answers_gives_what_the_whole_gives(
    sizes: list[int], requests: list[SubsetSpec], wanted: SubsetSpec
) -> None:
    whole = make_manifest(dict(enumerate(sizes)), val=2)
    met = [spec for spec in requests if chosen(whole, spec) != "refused"]
    held = {key for spec in met for key in select(whole, CLASSES, spec).manifest["key"]}
    record = PartRecord(
        archive=ArchiveRecord(name="a.zip", smallest_class=min((size for size in sizes if size), default=0)),
        requests=tuple(spec.to_options() for spec in met),
        members={},
    )

    if record.answers(wanted.to_options()):
        assert chosen(whole[whole["key"].isin(held)], wanted) == chosen(whole, wanted)
    # A request that was met is always answered.
    assert all(record.answers(spec.to_options()) for spec in met)


@pytest.mark.parametrize(
    ("more", "when_whole"),
    [
        ({"split": (70, 20, 10)}, True),
        ({"folds": 5, "fold": 1}, True),
        ({"exclude": ("some",)}, False),
        ({"drop": ("odd",)}, False),
    ],
)
def test_what_fetch_does_not_know_is_answered_by_whole_classes_at_most(more: dict[str, Any], when_whole: bool) -> None:
    whole = make_manifest({0: 40, 1: 50})
    wanted = SubsetSpec(classes=("class 0",), per_class=10, **more)
    for per_class, answers in ((10, False), (39, False), (None, when_whole)):
        had = SubsetSpec(classes=("class 0",), per_class=per_class, val_per_class=None)
        record = PartRecord(archive=ArchiveRecord(name="a.zip"), requests=(had.to_options(),), members={})
        held = whole[whole["key"].isin(select(whole, CLASSES, had).manifest["key"])]

        assert record.answers(wanted.to_options()) == answers
        if wanted.shares and per_class != 39:  # the one that is missing may be none that is wanted
            assert (chosen(held, wanted) == chosen(whole, wanted)) == answers


@pytest.mark.parametrize(
    "options",
    [
        {"superclasses": (("round", ("disc", "ring")), ("edged", ("square", "n90000004"))), "per_class": 9},
        {"superclasses": (("round", ("disc", "ring")), ("one", ("square",))), "classes": 1, "val_per_class": 3},
        {"superclasses": (("round", ("disc", "ring")),), "per_class": 20, "val_per_class": 5, "seed": 4},
    ],
)
def test_fetch_chooses_the_same_of_a_superclass(
    cataloged: Workspace, toy_zip: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    spec = SubsetSpec(**options)
    with RangeFile(toy_zip) as file, ZipSource(toy_zip) as source:
        directory = read_directory(file, toy_zip.stat().st_size, toy_zip.name)
        found = survey(directory, where=toy_zip.name)
        expected = plan_subset(cataloged, spec)
        write_table(tmp_path / "manifest.csv", expected.manifest)
        choices = [
            choose(found, request, lambda member: source.read(directory.name(member)))
            for request in (PartRequest(subset=spec), PartRequest(manifest=tmp_path / "manifest.csv"))
        ]

    pictures = {record.path for record in manifest_records(expected.manifest)}
    for choice in choices:
        names = set(map(directory.name, choice.members.tolist()))
        assert {name for name in names if name.endswith(".JPEG")} == pictures
        assert choice.pictures == {split: expected.num_rows(split) for split in ("train", "val")}


def test_a_divided_manifest_names_pictures_that_fetch_finds(cataloged: Workspace, toy_zip: Path) -> None:
    made = subset(cataloged, SubsetSpec(classes=2, split=(2, 1, 1)), name="main")
    with RangeFile(toy_zip) as file:
        directory = read_directory(file, toy_zip.stat().st_size, toy_zip.name)
    choice = choose(survey(directory, where="x"), PartRequest(manifest=made.folder / "manifest.csv"), lambda _: b"")
    names = set(map(directory.name, choice.members.tolist()))

    assert made.selection is not None
    assert set(made.selection.manifest["path"]) == {name for name in names if name.endswith(".JPEG")}
    # The annotations of training pictures come along, whatever split they are in now.
    annotated = [
        directory.name(member) for member in range(len(directory)) if "CLS-LOC/train" in directory.name(member)
    ]
    wanted = {
        name for name in annotated if name.endswith(".xml") and Path(name).stem in set(made.selection.manifest["key"])
    }
    assert wanted
    assert wanted <= names


# Superclasses, splits and folds.


def by_split(selection: Selection) -> dict[str, dict[str, int]]:
    """Rows of each class in each split."""
    table = selection.manifest.groupby(["split", "wnid"]).size()
    return {split: table[split].to_dict() for split in dict.fromkeys(selection.manifest["split"])}


def test_superclasses_merge_classes_under_one_label() -> None:
    selection = select(MANIFEST, CLASSES, SubsetSpec(superclasses=PAIRS, per_class=12, val_per_class=4))

    assert [(s.index, s.wnid, s.name) for s in selection.catalog] == [
        (0, "low", "low"), (1, "middle", "middle"), (2, "high", "high"),
    ]  # fmt: skip
    assert by_split(selection) == {
        "train": {"low": 12, "middle": 12, "high": 12}, "val": {"low": 4, "middle": 4, "high": 4},
    }  # fmt: skip
    assert {(record.wnid, record.label) for record in manifest_records(selection.manifest)} == {
        ("low", 0), ("middle", 1), ("high", 2),
    }  # fmt: skip
    # Evenly from both classes: 6 and 6; class 4 has none, so class 5 gives all.
    origin = [
        record.path.partition("_")[0] for record in manifest_records(selection.manifest) if record.split == "train"
    ]
    assert {wnid: origin.count(wnid) for wnid in origin} == {
        "n00000000": 6, "n00000001": 6, "n00000002": 6, "n00000003": 6, "n00000005": 12,
    }  # fmt: skip


def test_a_split_is_exact_and_leaves_the_given_validation_pictures_out() -> None:
    manifest = make_manifest({0: 120, 1: 150})
    manifest.loc[manifest["key"] == "val_1_0", "wnid"] = ""
    selection = select(manifest, CLASSES, SubsetSpec(per_class=50, split=(70, 20, 10)))

    assert by_split(selection) == {
        split: {"n00000000": number, "n00000001": number} for split, number in (("train", 35), ("val", 10), ("test", 5))
    }
    assert all(not key.startswith("val_") for key in selection.manifest["key"])
    assert not selection.unlabelled
    # One of the six validation pictures has no class, and so no class that was chosen.
    assert selection.replaced == {"val": 5}


def test_rows_that_cannot_be_chosen_are_counted() -> None:
    """They were left out without a word."""
    manifest = make_manifest({0: 20, 1: 20, 4: 0})
    manifest.loc[manifest["key"] == "val_1_0", "wnid"] = ""
    selection = select(manifest, CLASSES, SubsetSpec(classes=1))

    assert selection.unlabelled == {"val": 1, "test": 1}
    assert selection.untrained == {"val": 3}
    assert not selection.replaced
    named = select(manifest, CLASSES, SubsetSpec(classes=("n00000000",)))
    assert not named.untrained


def test_a_source_without_training_images_says_what_it_has() -> None:
    manifest = make_manifest({0: 0, 1: 0})
    with pytest.raises(UsageError, match=r"no training image to choose from, but 6 val and 1 test images.*fetch"):
        select(manifest, CLASSES, SubsetSpec())
    with pytest.raises(UsageError, match="drop or exclude fewer"):
        select(make_manifest({0: 1}, val=0), CLASSES, SubsetSpec(), without={"n00000000_0"})


@settings(max_examples=30)
@given(
    size=st.integers(1, 50), more=st.integers(0, 30), per_class=st.none() | st.integers(1, 60), folds=st.integers(2, 6),
    shares=st.lists(st.integers(1, 9), min_size=2, max_size=3).map(tuple), seed=st.integers(0, 9),
)  # fmt: skip
def test_splits_and_folds_are_disjoint_and_stable_when_pictures_are_added(
    size: int, more: int, per_class: int | None, folds: int, shares: tuple[int, ...], seed: int
) -> None:
    options: dict[str, Any] = {"per_class": per_class, "classes": ("class 0",), "seed": seed, "allow_short": True}
    small, large = make_manifest({0: size}), make_manifest({0: size + more})
    taken = size if per_class is None else min(size, per_class)

    before = select(small, CLASSES, SubsetSpec(**options, split=shares))
    everything = select(large, CLASSES, SubsetSpec(**options | {"per_class": None}, split=shares))
    parts = [keys(before, split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == taken
    assert all(keys(before, split) <= keys(everything, split) for split in ("train", "val", "test"))

    each = [select(small, CLASSES, spec) for spec in SubsetSpec(**options, folds=folds).each_fold()]
    held_out = [keys(fold, "val") for fold in each]
    assert sum(map(len, held_out)) == len(set().union(*held_out)) == taken
    assert all(keys(fold, "train") == set().union(*held_out) - keys(fold, "val") for fold in each)


def test_small_splits_lie_inside_large_ones() -> None:
    manifest = make_manifest({0: 300, 1: 300, 2: 300})
    inner = select(manifest, CLASSES, SubsetSpec(classes=2, per_class=40, split=(3, 1)))
    outer = select(manifest, CLASSES, SubsetSpec(classes=3, per_class=100, split=(3, 1)))

    assert all(keys(inner, split) < keys(outer, split) for split in ("train", "val"))


# Dropped and excluded pictures.


@given(gone=st.sets(st.integers(0, 29), max_size=12), per_class=st.integers(1, 15), seed=st.integers(0, 9))
def test_pictures_left_out_are_made_up_for(gone: set[int], per_class: int, seed: int) -> None:
    without = {f"n00000005_{number}" for number in gone}
    spec = SubsetSpec(classes=("class 5",), per_class=per_class, seed=seed)

    selection = select(MANIFEST, CLASSES, spec, without=without)

    assert len(keys(selection)) == per_class
    assert not keys(selection) & without
    assert keys(select(MANIFEST, CLASSES, spec)) - without <= keys(selection)
    assert selection.left_out == len(without)


def write_doctor(
    workspace: Workspace, findings: dict[str, str], *, twin: str = "", conflicts: Mapping[str, str] | None = None
) -> None:
    """A table of the doctor for all pictures of a catalog."""
    manifest = read_manifest(workspace.catalog / "manifest.csv", made_by="x")
    table = pd.DataFrame({name: manifest.get(name, "") for name in COLUMNS})
    table["findings"] = [findings.get(key, "") for key in table["key"]]
    table["twin"] = [twin if codes else "" for codes in table["findings"]]
    table["conflict"] = [(conflicts or {}).get(key, "") for key in table["key"]]
    write_table(workspace.catalog / DOCTOR_FILE, table)
    sign_doctor(workspace)


def sign_doctor(workspace: Workspace) -> None:
    """Say that the table is about the source and the catalog as they are."""
    plan_doctor(workspace, DoctorSpec())[1].write(workspace.catalog, [DOCTOR_FILE], {})


def test_what_the_doctor_found_is_dropped(cataloged: Workspace) -> None:
    findings = ("rotated", "duplicate", "cmyk near-duplicate", "leak")
    manifest = read_manifest(cataloged.catalog / "manifest.csv", made_by="x")
    train = manifest[(manifest["split"] == "train") & (manifest["wnid"] == "n90000001")]["key"].tolist()
    write_doctor(cataloged, dict(zip(train, findings, strict=False)), twin=train[-1])

    left = {}
    for drop in (("odd",), ("duplicates",), ("leaks",), ("odd", "duplicates", "leaks")):
        selection = plan_subset(cataloged, SubsetSpec(classes=("disc",), drop=drop))
        left[drop] = [number for number, key in enumerate(train[:4]) if key in keys(selection)]
        assert selection.line.endswith(f" drop={','.join(drop)}")

    assert list(left.values()) == [[1, 3], [0, 3], [0, 1, 2], []]


def test_of_pictures_that_contradict_each_other_none_is_kept(cataloged: Workspace) -> None:
    """Beside a twin that is not to be chosen from, and only where the contradicting one is to be."""
    manifest = read_manifest(cataloged.catalog / "manifest.csv", made_by="x")
    train = manifest[(manifest["split"] == "train") & (manifest["wnid"] == "n90000001")]["key"].tolist()
    other = manifest[(manifest["split"] == "train") & (manifest["wnid"] == "n90000002")]["key"].iloc[0]
    codes = "label-conflict near-duplicate"
    write_doctor(
        cataloged,
        {train[0]: codes, train[1]: codes, other: "label-conflict"},
        twin=train[2],
        conflicts={train[0]: other, train[1]: train[3], other: train[0]},
    )
    gone = cataloged.root / "gone.csv"
    write_table(gone, manifest[manifest["key"].isin(train[2:4])])

    def left(*drop: str, exclude: tuple[str, ...] = ()) -> set[str]:
        spec = SubsetSpec(classes=2, drop=drop, exclude=exclude)
        return keys(plan_subset(cataloged, spec)) & {train[0], train[1], other}

    assert left("conflicts") == set()
    assert left("duplicates") == {other}
    # Neither the twin of the two nor what the second contradicts is there.
    assert left("conflicts", exclude=(str(gone),)) == {train[1]}
    assert left("duplicates", exclude=(str(gone),)) == {train[0], train[1], other}


def test_the_doctor_must_have_seen_everything(cataloged: Workspace) -> None:
    spec = SubsetSpec(classes=2, drop=("odd",))
    with pytest.raises(MissingInputError, match=r"doctor.csv does not exist - run `imgprep doctor` first"):
        plan_subset(cataloged, spec)
    write_doctor(cataloged, {})
    table = read_table(cataloged.catalog / DOCTOR_FILE, COLUMNS, made_by="x")
    write_table(cataloged.catalog / DOCTOR_FILE, table.iloc[2:])
    sign_doctor(cataloged)
    with pytest.raises(MissingInputError, match="has not seen 2 of the pictures, such as n9"):
        plan_subset(cataloged, spec)


def test_a_new_look_of_the_doctor_makes_another_subset_only_where_it_changes_one(cataloged: Workspace) -> None:
    spec = SubsetSpec(classes=("disc",), per_class=5, drop=("odd",))
    write_doctor(cataloged, {})
    first = subset(cataloged, spec, name="clean")
    chosen = read_manifest(first.folder / "manifest.csv", made_by="x")["key"].tolist()
    write_doctor(cataloged, {"n90000002_1": "cmyk"})
    assert subset(cataloged, spec, name="clean").action == "skip"
    write_doctor(cataloged, {chosen[0]: "cmyk"})
    with pytest.raises(OutputExistsError, match="the doctor is another one"):
        subset(cataloged, spec, name="clean")


def test_subsets_and_manifests_are_excluded(cataloged: Workspace, tmp_path: Path) -> None:
    first = subset(cataloged, SubsetSpec(classes=3, per_class=4, val_per_class=1), name="first")
    elsewhere = tmp_path / "some manifest.csv"
    elsewhere.write_bytes((first.folder / "manifest.csv").read_bytes())
    by_name = plan_subset(cataloged, SubsetSpec(classes=3, per_class=4, exclude=("first",)))
    by_path = plan_subset(cataloged, SubsetSpec(classes=3, per_class=4, exclude=(str(elsewhere),)))

    assert by_name.digest == by_path.digest
    assert not set(by_name.manifest["key"]) & set(read_manifest(elsewhere, made_by="x")["key"])
    assert by_name.num_rows("train") == 12
    assert by_name.line.endswith(f" exclude=first#{first.digest[:16]}")
    with pytest.raises(MissingInputError, match=r"gone.csv does not exist"):
        plan_subset(cataloged, SubsetSpec(exclude=("gone.csv",)))
    with pytest.raises(SpecError, match="from itself"):
        subset(cataloged, SubsetSpec(exclude=("first",)), name="first")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: [*lines, lines[1]], "stands twice"),
        (lambda lines: [lines[0], lines[1].replace("n9", "../n9", 1)], "is no key"),
        (lambda lines: lines[:1] and ["key,split"], "is not a table|has the columns"),
    ],
)
def test_a_damaged_manifest_is_not_excluded(
    cataloged: Workspace, tmp_path: Path, damage: Callable[[list[str]], list[str]], said: str
) -> None:
    lines = (cataloged.catalog / "manifest.csv").read_text().splitlines()
    (tmp_path / "bad.csv").write_text("\n".join(damage(lines)) + "\n")
    with pytest.raises(DamagedError, match=said):
        plan_subset(cataloged, SubsetSpec(exclude=(str(tmp_path / "bad.csv"),)))


# Manifests that are read in pieces.


ROWS = st.lists(
    st.tuples(st.sampled_from(SPLITS), st.sampled_from(["", "n00000009", *(synset.wnid for synset in CLASSES)])),
    max_size=60,
)
"""Split and wnid of each row, in any order; some wnids are in no catalog."""


def straightforward(manifest: pd.DataFrame, spec: SubsetSpec, without: set[str]) -> tuple[object, ...]:
    """What :func:`select` is to choose, from a table that is held whole."""
    rows = [record for record in manifest_records(manifest) if record.key not in without]
    train = [record.wnid for record in rows if record.split == "train"]
    choice = choose_classes({wnid: train.count(wnid) for wnid in train}, CLASSES, spec)
    names = spec.part_splits()
    found = []
    for synset in choice.catalog:
        for split, limit in (("train", spec.per_class), ("val", spec.val_per_class), ("test", None)):
            if split in names and split != "train":
                continue
            members = choice.members[synset.wnid]
            keys = {w: [r.key for r in rows if (r.split, r.wnid) == (split, w)] for w in members}
            divided = bool(names) and split == "train"
            parts = choose_pictures(keys, limit, seed=spec.seed, shares=spec.shares if divided else (1,))
            for part, name in zip(parts, names if divided else (split,), strict=True):
                found += [(SPLITS.index(name), synset.index, key) for key in part]
    by_key = {record.key: record for record in rows}
    expected = [
        (key, SPLITS[place], by_key[key].path, choice.catalog[label].wnid, label, by_key[key].num_bytes)
        for place, label, key in sorted(found)
    ]
    unlabelled = [r for r in manifest_records(manifest) if (r.split, r.wnid) == ("val", "")]
    return (
        expected,
        list(choice.catalog),
        list(choice.passed_over),
        list(choice.short),
        len(unlabelled) if unlabelled and "val" not in names else None,
        len(manifest) - len(rows),
    )


@settings(max_examples=200)
@given(
    rows=ROWS,
    spec=REQUESTS
    | DIVIDED
    | st.builds(SubsetSpec, **AMOUNTS, superclasses=st.just(PAIRS), folds=st.just(3), fold=st.integers(0, 2)),
    gone=st.sets(st.integers(0, 60), max_size=8),
    labels=st.dictionaries(st.integers(0, 60), st.sampled_from([synset.wnid for synset in CLASSES]), max_size=30),
    num_rows=st.integers(1, 70),
)
def test_pieces_give_what_the_whole_table_gives(
    rows: list[tuple[str, str]], spec: SubsetSpec, gone: set[int], labels: dict[int, str], num_rows: int
) -> None:
    def table(wnids: dict[str, str]) -> pd.DataFrame:
        records = [
            Record(f"k{n}", split, f"{n}.JPEG", wnids.get(f"k{n}", wnid) if split == "val" else wnid, -1, n, None)
            for n, (split, wnid) in enumerate(rows)
        ]
        return manifest_table(records)

    def pieces() -> Iterator[pd.DataFrame]:
        whole = table({})
        yield from (whole.iloc[start : start + num_rows].copy() for start in range(0, len(whole) or 1, num_rows))

    wnids = {f"k{n}": wnid for n, wnid in labels.items()}
    without = {f"k{n}" for n in gone}
    pictures = Pictures(pieces(), pieces)
    pictures.label_val(wnids)
    try:
        expected = straightforward(table(wnids), spec, without)
    except ImgprepError as error:
        # Of a source without any, more is told here than a choice of classes knows.
        expected_text = (
            re.escape(str(error)) if "no training image to choose" not in str(error) else re.escape(error.what)
        )
        with pytest.raises(type(error), match=f"^{expected_text}"):
            select(pictures, CLASSES, spec, without=without)
        return
    selection = select(pictures, CLASSES, spec, without=without)
    found = [(r.key, r.split, r.path, r.wnid, r.label, r.num_bytes) for r in manifest_records(selection.manifest)]

    assert (
        found,
        list(selection.catalog),
        list(selection.passed_over),
        list(selection.short),
        selection.unlabelled.get("val"),
        selection.left_out,
    ) == expected
    assert selection.manifest.equals(select(table(wnids), CLASSES, spec, without=without).manifest)
    assert pd.concat(list(pictures.rows())).equals(table(wnids))


def test_the_memory_of_a_choice_grows_by_few_bytes_a_row() -> None:
    def peak(num_pieces: int) -> int:
        def pieces() -> Iterator[pd.DataFrame]:
            for number in range(num_pieces):
                wnid = CLASSES[number % len(CLASSES)].wnid
                names = [f"{wnid}_{number}_{n}" for n in range(1000)]
                yield manifest_table(Record(name, "train", f"train/{name}.JPEG", wnid, 0, 1, 1) for name in names)

        tracemalloc.start()
        try:
            select(Pictures(pieces(), pieces), CLASSES, SubsetSpec(classes=1, per_class=10))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(6)  # what is loaded once
    small, large = peak(6), peak(36)

    # A row of a table takes some 300; its key alone has 14. A sixth of the rows are keys of the class that is chosen.
    assert (large - small) / 30_000 < 60


@pytest.mark.parametrize("num_rows", [1, 2, 100])
@pytest.mark.parametrize("has_one_hash", [False, True])
def test_a_key_that_stands_twice_is_found_across_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_rows: int, has_one_hash: bool
) -> None:
    if has_one_hash:
        monkeypatch.setattr("imgprep.tables.hash_keys", lambda keys: np.zeros(len(keys), np.uint64))
    path = tmp_path / "manifest.csv"
    for names, twice in (("abcde", ""), ("abcdcb", "c"), ("aab", "a")):
        write_table(path, manifest_table(Record(name, "train", "p", "n00000001", 0, 1, None) for name in names))
        pieces = read_manifest_pieces(path, made_by="x", num_rows=num_rows)
        if twice:
            with pytest.raises(DamagedError, match=f"the key {twice} stands twice"):
                list(pieces)
        else:
            assert [key for piece in pieces for key in piece["key"]] == list(names)


def test_what_is_wrong_with_a_manifest_is_told_in_order(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    head = "key,split,path,wnid,label,num_bytes,crc32\n"
    lines = ["a,train,p,w,0,1,", "a,train,p,w,0,1,", "b,nowhere,p,w,0,1,", "a.b,train,p,w,0,1,", "c,train,p,w,x,1,"]
    told = {5: "is not a table", 4: "'a.b' is no key", 3: "'nowhere' is no split", 2: "the key a stands twice"}
    for number, said in told.items():
        path.write_text(head + "\n".join(lines[:number]) + "\n")
        with pytest.raises(DamagedError, match=said):
            list(read_manifest_pieces(path, made_by="x", num_rows=1))


# Union, intersection, difference.


def part_of_manifest(numbers: set[int], classes: set[int]) -> tuple[pd.DataFrame, Catalog]:
    wnids = {CLASSES[number].wnid for number in classes}
    rows = MANIFEST[[int(key.rpartition("_")[2]) in numbers for key in MANIFEST["key"]]]
    rows = rows[rows["wnid"].isin(list(wnids))]
    kept = [synset for synset in CLASSES if synset.wnid in set(rows["wnid"])]
    catalog = Catalog(Synset(synset.wnid, place, synset.name) for place, synset in enumerate(kept))
    labels = {synset.wnid: synset.index for synset in catalog}
    return rows.assign(label=rows["wnid"].map(labels).astype("int64")), catalog


PARTS = st.builds(
    part_of_manifest, st.sets(st.integers(0, 8), min_size=1), st.sets(st.sampled_from([0, 1, 2, 3, 5]), min_size=1)
)


@settings(max_examples=60)
@given(one=PARTS, other=PARTS)
def test_subsets_combine_as_sets_of_pictures(
    one: tuple[pd.DataFrame, Catalog], other: tuple[pd.DataFrame, Catalog]
) -> None:
    left, right = set(one[0]["key"]), set(other[0]["key"])
    operations: list[tuple[Operation, set[str], bool]] = [
        ("union", left | right, True), ("intersect", left & right, True), ("difference", left - right, False),
    ]  # fmt: skip
    for operation, expected, is_symmetric in operations:
        if not expected:
            with pytest.raises(UsageError, match=f"the {operation} of these subsets is empty"):
                combine(operation, one, other)
            continue
        result = combine(operation, one, other)
        records = list(manifest_records(result.manifest))

        assert {record.key for record in records} == expected
        assert len(records) == len(expected)
        # Labels are dense, in order, and of classes that have pictures.
        assert {record.label for record in records} == set(range(len(result.catalog)))
        assert all(result.catalog[record.label].wnid == record.wnid for record in records)
        if is_symmetric:
            assert combine(operation, other, one).manifest.equals(result.manifest)


def test_a_picture_that_differs_is_an_error_except_for_a_difference() -> None:
    one = part_of_manifest({0, 1, 2}, {0, 1})
    for column, value in (("split", "val"), ("wnid", "n00000005"), ("crc32", 7)):
        other = one[0].copy()
        other["crc32"] = 8
        other[column] = [value, *other[column].iloc[1:]]
        first = one[0].assign(crc32=8)
        for operation in ("union", "intersect"):
            with pytest.raises(ContradictionError, match="1 pictures are not the same in both subsets, such as"):
                combine(operation, (first, one[1]), (other, CLASSES))
        with pytest.raises(UsageError, match="is empty"):
            combine("difference", (first, one[1]), (other, CLASSES))
    # An unknown CRC-32 contradicts none.
    assert len(combine("union", one, (one[0].assign(crc32=8), one[1])).manifest) == len(one[0])


def test_names_and_order_of_classes_are_those_of_the_first() -> None:
    rows, catalog = part_of_manifest({0, 1}, {0, 1})
    turned = Catalog([Synset("n00000001", 0, "one"), Synset("n00000000", 1, "zero")])

    assert [(s.wnid, s.name) for s in combine("union", (rows, turned), (rows, catalog)).catalog] == [
        ("n00000001", "one"), ("n00000000", "zero"),
    ]  # fmt: skip


def test_combinations_are_subsets_like_others(cataloged: Workspace) -> None:
    some = subset(cataloged, SubsetSpec(classes=3, per_class=4), name="some")
    more = subset(cataloged, SubsetSpec(classes=4, per_class=6), name="more")
    union = subset(cataloged, CombineSpec(operation="union", first="some", second="more"), name="both")
    rest = subset(cataloged, CombineSpec(operation="difference", first="more", second="some"), name="rest")
    back = subset(cataloged, CombineSpec(operation="union", first="rest", second="some"), name="back")

    assert union.digest == back.digest == more.digest
    assert union.line == f"union=some#{some.digest[:16]},more#{more.digest[:16]}"
    assert subset(cataloged, parse_line(union.line), name="both").action == "skip"
    assert rest.selection is not None
    assert rest.selection.num_rows("train") == 24 - 12
    spec = ShardSpec(size=48)
    shard(cataloged, plan_job(cataloged, spec, subset="rest"), spec)
    with pytest.raises(SpecError, match="from itself"):
        subset(cataloged, CombineSpec(operation="union", first="some", second="more"), name="some")


def test_subsets_of_different_sources_have_no_union(cataloged: Workspace) -> None:
    for name in ("a", "b"):
        subset(cataloged, SubsetSpec(classes=2, per_class=3), name=name)
    receipt = cataloged.subset("b") / "subset.receipt.json"
    document = json.loads(receipt.read_text())
    document["inputs"]["source"] = "another"
    receipt.write_text(json.dumps(document))

    of_other = "the subset b was chosen from another source than the one of now.*subset --name b"
    with pytest.raises(ContradictionError, match=of_other):
        subset(cataloged, CombineSpec(operation="union", first="a", second="b"), name="c")
    with pytest.raises(ContradictionError, match=of_other):
        subset(cataloged, SubsetSpec(classes=1, parent="b"), name="c")
    # What is common lies in the first one's source.
    assert plan_subset(cataloged, CombineSpec(operation="intersect", first="a", second="b")).num_rows("train") == 6


# Lines.


def test_every_line_reproduces_its_digest(cataloged: Workspace, tmp_path: Path) -> None:
    subset(cataloged, SubsetSpec(classes=4, per_class=8), name="main")
    (tmp_path / "x, y.csv").write_bytes((cataloged.subset("main") / "manifest.csv").read_bytes())
    specs: list[SubsetSpec | CombineSpec] = [
        SubsetSpec(classes=("disc", "ring"), per_class=100, allow_short=True, seed=3),
        SubsetSpec(
            superclasses=(("round things", ("disc", "ring")), ("Eckiges, ".strip(", "), ("square",))), per_class=6
        ),
        SubsetSpec(parent="main", classes=2, split=(3, 1, 1)),
        SubsetSpec(parent="main", folds=3, fold=2, exclude=()),
        SubsetSpec(per_class=1, exclude=("main", str(tmp_path / "x, y.csv"))),
        CombineSpec(operation="intersect", first="main", second="0"),
    ]
    for number, spec in enumerate(specs):
        result = subset(cataloged, spec, name=f"{number}")
        again = subset(cataloged, parse_line(result.line), name=f"again-{number}", digest=result.digest[:16])
        skipped = subset(cataloged, spec, name=f"{number}", digest=result.digest[:16])

        assert (again.digest, again.line, skipped.line) == (result.digest, result.line, result.line)


def test_a_line_of_another_choice_is_refused(cataloged: Workspace) -> None:
    spec = SubsetSpec(classes=2, per_class=3)
    with pytest.raises(
        ContradictionError, match=r"this choice has digest [0-9a-f]{8}, the spec was cited with 01234567"
    ):
        subset(cataloged, spec, name="main", digest="01234567")
    assert not cataloged.subset("main").exists()
    subset(cataloged, spec, name="main")
    with pytest.raises(ContradictionError, match="this choice has digest"):
        subset(cataloged, spec, name="main", digest="01234567")
    for stale in (
        SubsetSpec(parent="main#0123456789abcdef"),
        SubsetSpec(exclude=("main#0123456789abcdef",)),
        CombineSpec(operation="union", first="main", second="main#0123456789abcdef"),
    ):
        with pytest.raises(
            ContradictionError, match=r"main has digest [0-9a-f]{16}, the spec was made with 0123456789abcdef"
        ):
            plan_subset(cataloged, stale)


def test_a_test_split_stays_when_it_is_chosen_from(cataloged: Workspace) -> None:
    outer = subset(cataloged, SubsetSpec(classes=3, split=(1, 1, 2)), name="outer")
    inner = plan_subset(cataloged, SubsetSpec(parent="outer", classes=2, per_class=2))
    folds = plan_subset(cataloged, SubsetSpec(parent="outer", folds=2, fold=0, seed=1))
    again = plan_subset(cataloged, SubsetSpec(parent="outer", split=(1, 1, 1), seed=1))

    assert outer.selection is not None
    assert keys(inner, "test") < keys(outer.selection, "test")
    assert keys(folds, "test") == keys(outer.selection, "test")
    assert keys(folds, "train") | keys(folds, "val") == keys(outer.selection, "train")
    assert set(again.manifest["key"]) == keys(outer.selection, "train")


def test_choices_from_real_pictures_are_pinned(real_data: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "real")
    workspace.root.mkdir()
    fetch(workspace, real_data / "ilsvrc-mini.zip")
    catalog(workspace)
    annotations(workspace)
    lines = {
        "preset=imagenette per-class=200": ("0dc3ae4c8b9cd418", [2000, 300, 0]),
        "preset=imagenette per-class=200 split=70/20/10": ("a80909edcc83bf20", [1400, 400, 200]),
        "preset=dogs-vehicles-food per-class=60": ("3cda7aa3a9c7af12", [180, 477, 0]),
    }
    for line, (digest, counts) in lines.items():
        selection = plan_subset(workspace, parse_line(line))
        assert (selection.digest[:16], [selection.num_rows(split) for split in SPLITS]) == (digest, counts)


# The command.


@pytest.fixture
def ready(cli: Cli, toy_zip: Path) -> Cli:
    """The command line in a folder where the toy archive was fetched and listed."""
    for command in (["fetch", "--from", toy_zip], ["catalog"], ["annotations"]):
        assert cli(*command).exit_code == 0
    return cli


def test_lists_from_files_and_the_command_line_mean_the_same(ready: Cli) -> None:
    Path("mine.txt").write_bytes("\ufeff# mine\r\nDISC \r\n\r\nn90000002\r\n".encode())
    results = [
        ready("subset", "-n", "--json", "--per-class", "3", "--classes", classes)
        for classes in ("@mine.txt", "disc,n90000002", ' "disc" , ring', '"n90000002","disc"')
    ]

    assert [result.exit_code for result in results] == [0] * 4, results[0].output
    assert len({json.loads(result.stdout)["digest"] for result in results}) == 1


def test_superclasses_and_folds_come_out_as_subsets_that_can_be_packed(ready: Cli) -> None:
    Path("zoo.txt").write_text("round: disc, ring\nFlaches Zeug: square\n", encoding="utf-8")
    made = ready("subset", "--superclasses", "zoo.txt", "--per-class", "8", "--folds", "2", "--name", "zoo", "--json")
    again = ready("subset", "--superclasses", "zoo.txt", "--per-class", "8", "--folds", "2", "--name", "zoo")
    one = ready(
        "subset",
        "--superclasses",
        "zoo.txt",
        "--per-class",
        "8",
        "--folds",
        "2",
        "--fold",
        "1",
        "--name",
        "1",
        "--json",
    )
    document = json.loads(made.stdout)

    assert [fold["name"] for fold in document["folds"]] == ["zoo-fold0", "zoo-fold1"]
    assert document["folds"][1]["digest"] == json.loads(one.stdout)["digest"]
    assert document["folds"][0]["classes"] == ["round", "flaches-zeug"]
    assert [line.partition(":")[0] for line in again.stdout.splitlines()] == ["up to date", "up to date"]
    assert ready("shard", "--subset", "zoo-fold0", "--size", "32").exit_code == 0


def test_what_is_cited_can_be_made_again(ready: Cli) -> None:
    cited = (
        ready("subset", "--classes", "2", "--per-class", "5", "--split", "3/1/1")
        .stdout.partition("cite as: ")[2]
        .strip()
    )
    again = ready("subset", "--spec", cited, "--name", "again")
    other = ready("subset", "--spec", cited[: cited.index("(")] + "(digest 0123456789abcdef)", "--name", "other")

    assert re.search(r"subset: 2 classes, \d train, \d val and \d test images", again.stdout)
    assert again.stdout.partition("cite as: ")[2].strip() == cited
    assert (other.exit_code, Path("imgprep-data/subsets/other").exists()) == (3, False)


def test_combining_on_the_command_line(ready: Cli) -> None:
    ready("subset", "--classes", "3", "--per-class", "6", "--name", "a")
    ready("subset", "--classes", "2", "--per-class", "2", "--name", "b")
    result = ready("subset", "difference", "a", "b", "--name", "c", "--json")

    assert json.loads(result.stdout)["train"] == 18 - 4
    assert "would choose 3 classes" in ready("subset", "union", "a", "b", "-n").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "imagenet"], "there is no preset 'imagenet'"),
        (["--preset", "imagenette", "--classes", "3"], "both say which classes"),
        (["--preset", "imagenette", "--from", "x.zip"], "--preset and --from ask for different things"),
        (["--classes", "@gone.txt"], "'gone.txt' cannot be read"),
        (["--split", "1/1"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_fetch_reads_classes_and_presets_as_subset_does(cli: Cli, arguments: list[str], said: str) -> None:
    result = cli("fetch", *arguments)

    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    assert not Path("imgprep-data").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["union", "a"], "expected union, intersect or difference and two subsets"),
        (["join", "a", "b"], "not by 'join'"),
        (["union", "a", "b"], "manifest.csv does not exist"),
        (["union", "a", "b", "--classes", "3"], "says all about the subset, and there is --classes too"),
        (["union", "a", "b", "--from", "x"], "there is --from too"),
        (["--spec", "seed=1", "--per-class", "3"], "--spec says all about the subset"),
        (["--spec", "per-class"], "a spec is words such as per-class=100"),
        (["--spec", "folds=2 (digest 0123456789)"], "each fold has a digest of its own"),
        (["--preset", "imagenet"], "there is no preset 'imagenet'"),
        (["--preset", "imagenette", "--classes", "3"], "both say which classes"),
        (["--preset", "imagenette"], "no class is named 'n01440764'"),
        (["--classes", "@gone.txt"], "'gone.txt' cannot be read: No such file"),
        (["--classes", "@latin.txt"], "'latin.txt' is not UTF-8"),
        (["--classes", "@empty.txt"], "the list names no class"),
        (["--classes", "@big.txt"], "'big.txt' has more than 1.0 MB"),
        (["--classes", "@."], "cannot be read"),
        (["--classes", "@\0"], "cannot be read"),
        (["--superclasses", "latin.txt"], "is not UTF-8"),
        (["--superclasses", "names.txt"], "names.txt: line 1: expected `label: class, class, ...`"),
        (["--split", "70"], "two or three shares"),
        (["--split", "70/x"], "a whole number was expected"),
        (["--split", "1/1", "--folds", "2"], "divide the same images"),
        (["--split", "1/1", "--val-per-class", "2"], "val_per_class means nothing"),
        (["--fold", "1"], "fold names one of several folds"),
        (["--drop", "ugly"], "drop must be some of odd, duplicates, leaks, conflicts"),
        (["--drop", "odd"], "run `imgprep doctor` first"),
        (["--exclude", "gone"], "does not exist"),
        (["--exclude", "../gone/"], "does not exist|cannot|directory"),
        (["--from", ""], "must have a name"),
    ],
    ids=lambda value: " ".join(value).replace("\0", "NUL") if isinstance(value, list) else "",
)
def test_requests_that_cannot_be_met(ready: Cli, arguments: list[str], said: str) -> None:
    Path("latin.txt").write_bytes("Köter".encode("latin-1"))
    Path("empty.txt").write_text("# none\n")
    Path("names.txt").write_text("disc\n")
    Path("big.txt").write_bytes(b"a" * 1_000_001)

    result = ready("subset", *arguments)

    assert result.exit_code == 2, result.output
    assert re.search(said, result.stderr), result.stderr
    assert result.stdout == ""


def test_a_manifest_that_changes_between_its_readings_is_said() -> None:
    pictures = Pictures([MANIFEST], lambda: [MANIFEST.iloc[1:]])
    with pytest.raises(LockedError, match="changed the manifest while it was read"):
        select(pictures, CLASSES, SubsetSpec())


def test_findings_of_another_source_or_catalog_are_not_believed(cataloged: Workspace) -> None:
    write_doctor(cataloged, {})
    spec = SubsetSpec(classes=2, per_class=2, drop=("odd",))
    plan_subset(cataloged, spec)
    with (cataloged.catalog / DOCTOR_FILE).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(MissingInputError, match="not about the source and catalog of now"):
        plan_subset(cataloged, spec)


@pytest.mark.parametrize("division", [{"split": (80, 20)}, {"folds": 3, "fold": 0}])
def test_what_was_divided_is_not_divided_again_by_the_same_ranks(
    cataloged: Workspace, division: dict[str, Any]
) -> None:
    subset(cataloged, SubsetSpec(classes=3, split=(80, 20)), name="outer")
    subset(cataloged, SubsetSpec(parent="outer", per_class=5), name="inner")

    for parent in ("outer", "inner"):
        with pytest.raises(UsageError, match="the subset outer was divided with seed 0"):
            plan_subset(cataloged, SubsetSpec(parent=parent, **division))
        plan_subset(cataloged, SubsetSpec(parent=parent, seed=1, **division))


def test_one_of_a_pair_stays_where_the_other_is_not(cataloged: Workspace, tmp_path: Path) -> None:
    manifest = read_manifest(cataloged.catalog / "manifest.csv", made_by="x")
    first, second, *_ = manifest[(manifest["split"] == "train") & (manifest["wnid"] == "n90000001")]["key"]
    write_doctor(cataloged, {second: "duplicate"}, twin=first)
    both = plan_subset(cataloged, SubsetSpec(classes=("disc",), drop=("duplicates",)))
    only = tmp_path / "only.csv"
    write_table(only, manifest[manifest["key"] == first])
    rest = plan_subset(cataloged, SubsetSpec(classes=("disc",), drop=("duplicates",), exclude=(str(only),)))

    assert first in keys(both)
    assert second not in keys(both)
    assert first not in keys(rest)
    assert second in keys(rest)
