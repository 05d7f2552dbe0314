"""request: what is chosen from an archive's directory is what `imgprep subset` chooses from the archive."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgprep.annotations import AnnotationsSpec
from imgprep.annotations import annotations as read_annotations
from imgprep.catalog import catalog
from imgprep.errors import ContradictionError, ImgprepError, MissingInputError, SpecError
from imgprep.fetch import fetch
from imgprep.fetch.request import PartChoice, PartRequest, choose
from imgprep.fetch.sequential import read_directory
from imgprep.layouts.ilsvrc import MAPPING, VAL_SOLUTION
from imgprep.layouts.survey import Survey, survey
from imgprep.records import Catalog
from imgprep.selection import SubsetSpec
from imgprep.sources.ranges import RangeFile
from imgprep.sources.zip import ZipSource
from imgprep.subset import load_manifest, select, subset
from imgprep.tables import manifest_records, write_table
from imgprep.testing.toy import ToySpec, write_toy_imagenet
from imgprep.workspace import Workspace

TOY = ToySpec(classes=6, per_class=7, short_classes=2, val_per_class=5, test=2, min_side=32, max_side=40)
ANNOTATED_VAL = re.compile(r"ILSVRC/Annotations/CLS-LOC/val/.*")

Keep = Callable[[str], bool]
VARIANTS: Mapping[str, Keep] = {
    "as on Kaggle": lambda _: True,
    "without LOC_val_solution.csv": lambda name: name != VAL_SOLUTION,
    "without LOC_synset_mapping.txt": lambda name: name != MAPPING,
    "without any list": lambda name: not name.startswith("LOC_"),
    "without annotations": lambda name: "Annotations" not in name,
    "without validation labels": lambda name: name != VAL_SOLUTION and not ANNOTATED_VAL.fullmatch(name),
    "with half of the solution": lambda _: True,
}


@dataclass(frozen=True)
class Case:
    """An archive: what its directory says, and what imgprep made of the whole of it."""

    path: Path
    found: Survey
    manifest: pd.DataFrame
    catalog: Catalog
    workspace: Workspace

    def content(self, member: int) -> bytes:
        with ZipSource(self.path) as source:
            return source.read(self.found.directory.name(member))

    def choose(self, request: PartRequest) -> PartChoice:
        return choose(self.found, request, self.content)

    def names(self, choice: PartChoice) -> set[str]:
        return {self.found.directory.name(int(member)) for member in choice.members}


def repack(source: Path, target: Path, keep: Keep, *, halve: bool) -> None:
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(target, "w") as part:
        for name in filter(keep, whole.namelist()):
            content = whole.read(name)
            if halve and name == VAL_SOLUTION:
                lines = content.splitlines(keepends=True)
                content = b"".join(lines[: len(lines) // 2])
            part.writestr(name, content)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("cases")
    write_toy_imagenet(folder / "whole.zip", TOY)
    made: dict[str, Case] = {}
    for number, (variant, keep) in enumerate(VARIANTS.items()):
        path = folder / f"{number}.zip"
        repack(folder / "whole.zip", path, keep, halve="half" in variant)
        workspace = Workspace(folder / f"w{number}")
        fetch(workspace, path)
        catalog(workspace)
        read_annotations(workspace, AnnotationsSpec(max_rejects=99))
        manifest, classes, _ = load_manifest(workspace, None)
        with RangeFile(path) as file:
            found = survey(read_directory(file, path.stat().st_size, path.name), where=path.name)
        made[variant] = Case(path, found, manifest, classes, workspace)
    return made


def picture_names(rows: pd.DataFrame) -> set[str]:
    return {record.path for record in manifest_records(rows)}


WNIDS = ("n90000001", "n90000002", "n90000004", "n90000005", "n90000003", "ring", "cone", "cross", "nonsense")
SPECS = st.builds(
    SubsetSpec,
    classes=st.none() | st.integers(1, 8) | st.lists(st.sampled_from(WNIDS), min_size=1, max_size=3).map(tuple),
    per_class=st.none() | st.integers(1, 8),
    val_per_class=st.none() | st.integers(0, 6),
    seed=st.integers(0, 3) | st.integers(0, (1 << 63) - 1),
    allow_short=st.booleans(),
)


@settings(max_examples=150)
@given(variant=st.sampled_from(list(VARIANTS)), spec=SPECS)
def test_the_choice_is_that_of_the_subset_command(cases: dict[str, Case], variant: str, spec: SubsetSpec) -> None:
    case = cases[variant]
    try:
        expected = select(case.manifest, case.catalog, spec)
    except ImgprepError as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            case.choose(PartRequest(subset=spec))
        return
    choice = case.choose(PartRequest(subset=spec))
    names = case.names(choice)

    assert {name for name in names if name.endswith(".JPEG")} == picture_names(expected.manifest)
    assert choice.pictures == {split: expected.num_rows(split) for split in ("train", "val")}
    assert choice.classes is not None
    assert list(choice.classes.catalog) == list(expected.catalog)


@settings(max_examples=30)
@given(spec=SPECS)
def test_a_choice_comes_with_what_later_stages_need(cases: dict[str, Case], spec: SubsetSpec) -> None:
    case = cases["as on Kaggle"]
    try:
        names = case.names(case.choose(PartRequest(subset=spec)))
    except ImgprepError:
        return
    with zipfile.ZipFile(case.path) as archive:
        every = set(archive.namelist())
    train = {name.rsplit("/", 1)[-1].removesuffix(".JPEG") for name in names if "/train/" in name}
    xml = {name for name in every if name.endswith(".xml")}

    assert {MAPPING, VAL_SOLUTION} == {name for name in names if name.startswith("LOC_")}
    assert {name for name in names if name.endswith(".xml")} == {
        name for name in xml if ANNOTATED_VAL.fullmatch(name) or Path(name).stem in train
    }


def test_without_pictures_a_part_is_every_list_and_annotation(cases: dict[str, Case]) -> None:
    case = cases["as on Kaggle"]
    choice = case.choose(PartRequest())
    with zipfile.ZipFile(case.path) as archive:
        assert case.names(choice) == {name for name in archive.namelist() if not name.endswith(".JPEG")}
    assert (choice.pictures, choice.classes) == ({}, None)


def test_a_manifest_is_met_by_exactly_its_pictures(cases: dict[str, Case]) -> None:
    case = cases["as on Kaggle"]
    made = subset(case.workspace, SubsetSpec(classes=3, per_class=4, val_per_class=2), name="mine")
    assert made.selection is not None
    by_manifest = case.choose(PartRequest(manifest=made.folder / "manifest.csv"))
    by_spec = case.choose(PartRequest(subset=SubsetSpec(classes=3, per_class=4, val_per_class=2)))

    assert {n for n in case.names(by_manifest) if n.endswith(".JPEG")} == picture_names(made.selection.manifest)
    assert case.names(by_manifest) == case.names(by_spec)
    assert by_manifest.pictures == {"train": 12, "val": 6}


def test_a_manifest_may_name_test_pictures(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["as on Kaggle"]
    rows = case.manifest[case.manifest["split"] == "test"]
    write_table(tmp_path / "manifest.csv", rows)
    choice = case.choose(PartRequest(manifest=tmp_path / "manifest.csv"))

    assert {name for name in case.names(choice) if name.endswith(".JPEG")} == picture_names(rows)
    assert choice.pictures == {"test": TOY.test}


@pytest.mark.parametrize(
    ("column", "value", "kind", "said"),
    [
        ("key", "n90000001_999", MissingInputError, "that are not in the archive: 1, such as"),
        ("crc32", "00000001", ContradictionError, r"the manifest says CRC-32 00000001, the archive"),
    ],
)
def test_a_manifest_of_another_archive_is_refused(
    cases: dict[str, Case], tmp_path: Path, column: str, value: str, kind: type[ImgprepError], said: str
) -> None:
    case = cases["as on Kaggle"]
    write_table(tmp_path / "right.csv", case.manifest[case.manifest["wnid"] == "n90000001"])
    lines = (tmp_path / "right.csv").read_text().splitlines()
    place = lines[0].split(",").index(column)
    cells = lines[1].split(",")
    cells[place] = value
    (tmp_path / "manifest.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:], ""]))
    with pytest.raises(kind, match=f"{said}.*another archive"):
        case.choose(PartRequest(manifest=tmp_path / "manifest.csv"))


def test_a_training_folder_that_the_mapping_does_not_know_is_a_contradiction(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ILSVRC/Data/CLS-LOC/train/n00000009/n00000009_1.JPEG", b"x")
        archive.writestr(MAPPING, b"n00000001 one\n")
    with RangeFile(path) as file:
        found = survey(read_directory(file, path.stat().st_size, "x"), where="x")

    def content(member: int) -> bytes:
        with ZipSource(path) as source:
            return source.read(found.directory.name(member))

    with pytest.raises(ContradictionError, match=r"1 training folders are not in LOC_synset_mapping\.txt: n00000009"):
        choose(found, PartRequest(subset=SubsetSpec()), content)


def test_requests_are_equal_when_their_options_are(tmp_path: Path) -> None:
    manifest, copy = tmp_path / "manifest.csv", tmp_path / "copy.csv"
    manifest.write_text("a\n")
    copy.write_text("a\n")
    by_spec = PartRequest(subset=SubsetSpec(classes=("a",), per_class=3))

    assert by_spec.to_options() == PartRequest(subset=SubsetSpec(classes=("a",), per_class=3)).to_options()
    assert by_spec.to_options() != PartRequest(subset=SubsetSpec(classes=("a",))).to_options()
    assert PartRequest(manifest=manifest).to_options() == PartRequest(manifest=copy).to_options()
    assert PartRequest().to_options() == {"metadata_only": True}
    assert PartRequest(manifest=manifest).line == "the pictures of manifest.csv"


def test_a_request_is_one_thing_and_its_manifest_is_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="by options or by a manifest"):
        PartRequest(subset=SubsetSpec(), manifest=tmp_path / "m.csv")
    with pytest.raises(MissingInputError, match=r"m\.csv does not exist - name a manifest\.csv"):
        PartRequest(manifest=tmp_path / "m.csv").to_options()
