"""subset: the same spec gives the same rows, choices nest, short classes are said."""

from __future__ import annotations

import random
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgprep.annotations import annotations
from imgprep.catalog import catalog
from imgprep.errors import MissingInputError, OutputExistsError, SpecError, UnknownClassError, UsageError
from imgprep.fetch import fetch
from imgprep.records import Catalog, Record, Synset
from imgprep.selection import SubsetSpec
from imgprep.sources.part import ArchiveRecord, PartRecord
from imgprep.subset import Selection, plan_subset, select, subset
from imgprep.tables import manifest_records, manifest_table, read_catalog, read_manifest
from imgprep.testing.toy import ToySpec, write_toy_imagenet
from imgprep.workspace import Workspace

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
    inner = subset(cataloged, SubsetSpec(classes=2, per_class=3), name="inner", parent="outer")
    direct = plan_subset(cataloged, SubsetSpec(classes=2, per_class=3))

    assert inner.digest == direct.digest
    with pytest.raises(SpecError, match="from itself"):
        subset(cataloged, SubsetSpec(), name="inner", parent="inner")
    with pytest.raises(MissingInputError, match="--name nowhere"):
        subset(cataloged, SubsetSpec(), name="new", parent="nowhere")


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


SPECS = st.builds(
    SubsetSpec,
    classes=st.none() | st.integers(1, 4) | st.sampled_from([("class 0",), ("class 1", "class 3"), ("class 2",)]),
    per_class=st.none() | st.integers(1, 5),
    val_per_class=st.none() | st.integers(0, 2),
    seed=st.integers(0, 1),
    allow_short=st.booleans(),
)


def chosen(manifest: pd.DataFrame, spec: SubsetSpec) -> object:
    """What a spec chooses, or that it cannot."""
    try:
        selection = select(manifest, CLASSES, spec)
    except UsageError:
        return "refused"
    return selection.manifest.to_csv(index=False), [synset.wnid for synset in selection.catalog]


@settings(max_examples=300)
@given(
    sizes=st.lists(st.integers(0, 7), min_size=6, max_size=6),
    requests=st.lists(SPECS, min_size=1, max_size=3),
    wanted=SPECS,
)
def test_a_part_that_answers_gives_what_the_whole_gives(
    sizes: list[int], requests: list[SubsetSpec], wanted: SubsetSpec
) -> None:
    whole = make_manifest(dict(enumerate(sizes)), val=2)
    met = [spec for spec in requests if chosen(whole, spec) != "refused"]
    held = set().union(*(set(select(whole, CLASSES, spec).manifest["key"]) for spec in met))
    record = PartRecord(
        archive=ArchiveRecord(name="a.zip", smallest_class=min((size for size in sizes if size), default=0)),
        requests=tuple(spec.to_options() for spec in met),
        members={},
    )

    if record.answers(wanted.to_options()):
        assert chosen(whole[whole["key"].isin(held)], wanted) == chosen(whole, wanted)
    # A request that was met is always answered.
    assert all(record.answers(spec.to_options()) for spec in met)
