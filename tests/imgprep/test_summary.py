"""Summaries count what the tables hold, and say where sizes come from."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imgprep import summary as module
from imgprep.annotations import annotations
from imgprep.catalog import catalog
from imgprep.doctor import DoctorSpec, plan_doctor
from imgprep.errors import DamagedError, MissingInputError, SpecError
from imgprep.findings import COLUMNS
from imgprep.selection import rank
from imgprep.summary import SummarySpec, describe, size_in_header, summarise
from imgprep.tables import BOXES_COLUMNS, MANIFEST_COLUMNS, VAL_COLUMNS, read_table
from imgprep.testing.toy import ToyListing, ToySpec
from imgprep.workspace import Workspace


@pytest.fixture
def listed(fetched: Workspace) -> Workspace:
    """A workspace with catalog and annotations."""
    catalog(fetched)
    annotations(fetched)
    return fetched


def manifest(folder: Path) -> pd.DataFrame:
    return read_table(folder / "manifest.csv", MANIFEST_COLUMNS, made_by="")


def write_doctor(workspace: Workspace, sizes: dict[str, tuple[int | None, int | None]], findings: str = "") -> None:
    """A ``doctor.csv`` of some pictures."""
    rows: list[dict[str, object]] = [
        {**dict.fromkeys(COLUMNS, ""), "key": key, "width": width, "height": height, "findings": findings}
        for key, (width, height) in sizes.items()
    ]
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(workspace.catalog / "doctor.csv", index=False)
    plan_doctor(workspace, DoctorSpec())[1].write(workspace.catalog, ["doctor.csv"], {})


def test_pictures_of_classes_and_splits(listed: Workspace, toy: tuple[Path, ToyListing], toy_spec: ToySpec) -> None:
    found = summarise(listed, SummarySpec())
    rows = manifest(listed.catalog)
    val = read_table(listed.catalog / "val.csv", VAL_COLUMNS, made_by="")

    assert {name: split.pictures for name, split in found.splits.items()} == {
        "train": toy[1].train,
        "val": toy[1].val,
        "test": toy[1].test,
    }
    assert found.splits["val"].labelled == toy[1].val
    assert found.splits["test"].labelled == found.splits["test"].classes == 0
    trained = Counter(rows.loc[rows["split"] == "train", "wnid"])
    assert {s.synset.wnid: s.pictures["train"] for s in found.classes if s.pictures} == trained
    assert {s.synset.wnid: s.pictures["val"] for s in found.classes if s.pictures} == Counter(val["wnid"])
    assert sum(each.num_bytes for each in found.classes) == rows.loc[rows["split"] != "test", "num_bytes"].sum()
    assert sorted(found.num_bytes) == sorted(rows["num_bytes"])
    assert found.counts("val").tolist() == [toy_spec.val_per_class] * toy_spec.classes
    assert found.counts("test").tolist() == []


def test_a_subset_counts_its_own_rows_and_boxes(sharded: Workspace) -> None:
    found = summarise(sharded, SummarySpec(subset="main"))
    rows = manifest(sharded.subset("main"))
    boxes = read_table(sharded.catalog / "boxes.csv", BOXES_COLUMNS, made_by="")
    boxes = boxes[boxes["ImageId"].isin(set(rows["key"]))]

    assert found.what == "subset main"
    assert [each.pictures["train"] for each in found.classes] == [8] * 4
    assert found.boxes is not None
    assert sorted(found.boxes.per_picture) == sorted(boxes["ImageId"].value_counts())
    share = (boxes["xmax"] - boxes["xmin"]) * (boxes["ymax"] - boxes["ymin"]) / (boxes["width"] * boxes["height"])
    assert np.sort(found.boxes.share) == pytest.approx(np.sort(share.to_numpy(float)))
    assert found.sizes.basis == "boxes"
    assert len(found.sizes.width) == boxes["ImageId"].nunique()


def test_pieces_make_no_difference(listed: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = summarise(listed, SummarySpec()).to_json()
    for name in ("read_labelled", "read_pieces"):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, original=original, **kw: original(*args, **kw, num_rows=7))

    assert summarise(listed, SummarySpec()).to_json() == whole


def test_doctor_comes_first_and_tells_findings(listed: Workspace) -> None:
    keys = manifest(listed.catalog)["key"].tolist()
    write_doctor(listed, {keys[0]: (30, 20), keys[1]: (None, None), keys[2]: (0, 5), "stranger": (1, 1)}, "cmyk leak")

    found = summarise(listed, SummarySpec())

    assert (found.sizes.basis, found.sizes.unknown) == ("doctor", 2)
    assert (found.sizes.width.tolist(), found.sizes.height.tolist()) == ([30], [20])
    assert found.sizes.aspect.tolist() == [1.5]
    assert found.findings == {"cmyk": 3, "leak": 3}
    assert summarise(listed, SummarySpec(sizes="boxes")).sizes.basis == "boxes"


def test_a_sample_is_the_pictures_of_lowest_rank(listed: Workspace) -> None:
    (listed.catalog / "boxes.csv").unlink()
    rows = manifest(listed.catalog)
    first = sorted(rows["key"], key=lambda key: rank(3, "image", key))[:12]

    found = summarise(listed, SummarySpec(sample=12, seed=3))
    everything = summarise(listed, SummarySpec(sample=10_000))

    assert found.boxes is None
    assert (found.sizes.basis, len(found.sizes.width) + found.sizes.unknown) == ("sample", 12)
    assert len(everything.sizes.width) + everything.sizes.unknown == len(rows)
    # The file of zero bytes has no header; the one that is cut has one.
    assert everything.sizes.unknown == 1
    empty = rows.loc[rows["num_bytes"] == 0, "key"].iloc[0]
    assert found.sizes.unknown == (empty in first)


def test_sizes_that_are_asked_for_must_be_there(listed: Workspace) -> None:
    with pytest.raises(MissingInputError, match=r"doctor.csv has no size .* run `imgprep doctor` first"):
        summarise(listed, SummarySpec(sizes="doctor"))
    with pytest.raises(MissingInputError, match=r"classes\.csv does not exist"):
        summarise(listed, SummarySpec(subset="none"))
    with pytest.raises(SpecError, match="sample must be 1 or more"):
        SummarySpec(sample=0)


@pytest.mark.parametrize(
    ("old", "new"), [(",train,", ",tra\nin,"), (",train,", ",other,"), (",n90000001,0,", ",nobody,0,")]
)
def test_a_manifest_that_its_classes_do_not_fit_is_damaged(listed: Workspace, old: str, new: str) -> None:
    path = listed.catalog / "manifest.csv"
    path.write_text(path.read_text().replace(old, new, 1))

    with pytest.raises(DamagedError):
        summarise(listed, SummarySpec())


def test_odd_boxes_stay_between_nothing_and_all(listed: Workspace) -> None:
    path = listed.catalog / "boxes.csv"
    key = manifest(listed.catalog)["key"].iloc[0]
    header = ",".join(BOXES_COLUMNS)
    path.write_text(
        f"{header}\n{key},train,n90000001,30,0,10,10,40,20\n{key},train,n90000001,-5,-5,999,999,40,20\n"
        f"{key},train,n90000001,0,0,1,1,,\n{key},train,n90000001,0,0,1,1,0,9\n"
    )

    found = summarise(listed, SummarySpec(sizes="boxes"))

    assert found.boxes is not None
    assert found.boxes.share.tolist() == [0.25, 1.0]
    assert found.boxes.per_picture.tolist() == [4]
    assert (found.sizes.width.tolist(), found.sizes.height.tolist()) == ([40], [20])


@given(st.lists(st.floats(0, 1e9), max_size=30))
def test_quantiles_are_in_order_and_within(numbers: list[float]) -> None:
    found = describe(np.array(numbers, float))

    assert found["n"] == len(numbers)
    if numbers:
        row = [found[name] for name in ("min", "p5", "p25", "median", "p75", "p95", "max")]
        assert row == sorted(row)
        assert (row[0], row[-1]) == (min(numbers), max(numbers))
        assert found["mean"] == pytest.approx(np.mean(numbers))


@given(content=st.binary(max_size=60))
def test_any_bytes_have_a_size_or_none(content: bytes) -> None:
    found = size_in_header(content)

    assert found is None or min(found) >= 0


def test_a_header_tells_the_size_without_the_pixels() -> None:
    stream = io.BytesIO()
    Image.new("L", (31, 17)).save(stream, "JPEG")

    assert size_in_header(stream.getvalue()) == (31, 17)
    assert size_in_header(stream.getvalue()[:-8]) == (31, 17)


def test_findings_of_another_catalog_are_not_told(listed: Workspace) -> None:
    key = manifest(listed.catalog)["key"][0]
    write_doctor(listed, {key: (20, 20)}, "cmyk")
    assert summarise(listed, SummarySpec()).findings == {"cmyk": 1}
    with (listed.catalog / "doctor.csv").open("a") as file:
        file.write("\n")

    assert summarise(listed, SummarySpec()).findings is None
