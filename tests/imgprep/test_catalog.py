"""catalog lists every picture of the source once."""

from __future__ import annotations

import csv
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgprep import catalog as module
from imgprep.catalog import catalog
from imgprep.errors import ImgprepError
from imgprep.fetch import fetch
from imgprep.layouts import open_dataset
from imgprep.records import UNLABELLED
from imgprep.sources import open_source
from imgprep.tables import manifest_records, read_catalog, read_manifest
from imgprep.testing.toy import ToyListing
from imgprep.workspace import Workspace


def test_the_manifest_has_every_picture_with_its_size_and_crc(fetched: Workspace, toy: tuple[Path, ToyListing]) -> None:
    path, listing = toy
    stats = catalog(fetched).stats
    records = list(manifest_records(read_manifest(fetched.catalog / "manifest.csv", made_by="")))
    with open_source(path) as source:
        contents = {record.key: source.read(record.path) for record in records}

    assert (stats["train"], stats["val"], stats["test"]) == (listing.train, listing.val, listing.test)
    assert len(records) == len(contents) == listing.train + listing.val + listing.test
    assert all(r.num_bytes == len(contents[r.key]) and r.crc32 == zlib.crc32(contents[r.key]) for r in records)


def test_labels_are_places_in_the_mapping_and_only_train_has_them(fetched: Workspace) -> None:
    catalog(fetched)
    classes = read_catalog(fetched.catalog / "classes.csv")
    records = list(manifest_records(read_manifest(fetched.catalog / "manifest.csv", made_by="")))

    assert all(classes[r.label].wnid == r.wnid for r in records if r.split == "train")
    assert {(r.wnid, r.label) for r in records if r.split != "train"} == {("", UNLABELLED)}


def test_the_file_is_plain_csv_in_catalog_order(fetched: Workspace) -> None:
    catalog(fetched)
    content = (fetched.catalog / "manifest.csv").read_bytes()
    rows = list(csv.DictReader(content.decode().splitlines()))
    order = [(["train", "val", "test"].index(row["split"]), int(row["label"]), row["key"]) for row in rows]

    assert content.startswith(b"key,split,path,wnid,label,num_bytes,crc32\n")
    assert b"\r" not in content
    assert order == sorted(order)


def test_a_second_run_does_nothing(fetched: Workspace) -> None:
    assert [catalog(fetched).action, catalog(fetched).action] == ["run", "skip"]


def test_an_output_that_was_removed_is_made_again(fetched: Workspace) -> None:
    catalog(fetched)
    (fetched.catalog / "classes.csv").unlink()

    assert catalog(fetched).action == "run"
    assert (fetched.catalog / "classes.csv").is_file()


def test_a_table_edited_at_the_same_size_is_made_again(fetched: Workspace) -> None:
    catalog(fetched)
    path = fetched.catalog / "manifest.csv"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"n90000001", b"n90000002", 1))

    assert catalog(fetched).action == "run"
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "text", ["", "{}", '{"version":1}', '{"version":1,"inputs":{},"options":{},"counts":{},"outputs":[1]}',
             '{"version":1,"inputs":{},"options":{},"counts":{},"outputs":{"classes.csv":1}}', "[" * 200_000],
)  # fmt: skip
def test_a_damaged_receipt_means_the_work_is_done_again(fetched: Workspace, text: str) -> None:
    catalog(fetched)
    (fetched.catalog / "catalog.receipt.json").write_text(text)

    assert catalog(fetched).action == "run"
    assert catalog(fetched).action == "skip"


# Of a zip, the tables are made from arrays. They must be what the layout's own listing gives, to the byte.


def tables(workspace: Workspace) -> dict[str, object]:
    """What ``catalog`` makes or objects to."""
    try:
        stats = catalog(workspace).stats.to_dict()
    except ImgprepError as error:
        return {"error": str(error)}
    return {"stats": stats} | {
        name: (workspace.catalog / name).read_bytes() for name in ("classes.csv", "manifest.csv")
    }


def both_ways(archive: Path, folder: Path) -> tuple[dict[str, object], dict[str, object]]:
    """The tables from arrays and from the listing."""
    found = []
    for name in ("arrays", "listing"):
        workspace = Workspace(folder / name)
        workspace.root.mkdir()
        fetch(workspace, archive)
        with pytest.MonkeyPatch.context() as patch:
            if name == "listing":
                patch.setattr(module, "_take_from_directory", lambda *_: None)
            found.append(tables(workspace))
    return found[0], found[1]


@pytest.mark.parametrize("archive", ["toy_zip", "wide_zip"])
def test_arrays_and_listing_give_the_same_bytes(
    archive: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 100)
    arrays, listing = both_ways(request.getfixturevalue(archive), tmp_path)

    assert "stats" in arrays
    assert arrays == listing


DATA = "ILSVRC/Data/CLS-LOC"
PICTURE = f"{DATA}/train/n00000001/n00000001_1.JPEG"
NAMES = st.one_of(
    st.sampled_from(
        [PICTURE, f"{DATA}/val/v_1.JPEG", f"{DATA}/test/t_1.JPEG", f"{DATA}/train/n00000002/n00000001_1.JPEG",
         f"{DATA}/train/n00000002/b.JPEG", f"{DATA}/train/n00000001/a.JPEG", f"{DATA}/val/a b.JPEG", f"{DATA}/x.txt",
         f"{DATA}/train/n00000001/more/c.JPEG", "other/\x07bell.txt", "other/fine.txt", f"{DATA}/val/\x1b.JPEG",
         "Data/CLS-LOC/val/second.JPEG", "__MACOSX/ILSVRC/Data/CLS-LOC/val/m.JPEG", "ILSVRC/LOC_synset_mapping.txt",
         "LOC_synset_mapping.txt", "LOC_val_solution.csv", "ILSVRC/Annotations/CLS-LOC/val/v_1.xml", "n,o\"te.txt"]
    ),
    st.builds(f"{DATA}/val/{{}}.JPEG".format, st.text("ab1_-. \t", max_size=3)),
)  # fmt: skip
LISTS = {
    "ILSVRC/LOC_synset_mapping.txt": b"n00000002 two\nn00000001 one\nn00000003 three, trois\n",
    "LOC_synset_mapping.txt": b"n00000001 one\nn00000002 two\n",
    "LOC_val_solution.csv": b"ImageId,PredictionString\nv_1,n00000001 1 1 2 2 \n",
}


@settings(max_examples=40)
@given(names=st.lists(NAMES, max_size=8, unique=True))
def test_odd_archives_are_told_alike(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("odd")
    with zipfile.ZipFile(folder / "odd.zip", "w") as archive:
        for name in dict.fromkeys([*names, PICTURE]):
            archive.writestr(name, LISTS.get(name, name.encode()))
    try:
        arrays, listing = both_ways(folder / "odd.zip", folder)
    except ImgprepError:
        # Nothing that can be adopted.
        return

    assert arrays == listing


def test_the_arrays_are_used_where_they_can_be(
    toy_zip: Path, fetched: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, layout = open_dataset(fetched)
    with source:
        assert module._take_from_directory(source, layout) is not None
    unpacked = toy_zip.parent / "unpacked"
    with zipfile.ZipFile(toy_zip) as archive:
        archive.extractall(unpacked)
    fetch(fetched, unpacked, overwrite=True)
    source, layout = open_dataset(fetched)
    with source:
        assert module._take_from_directory(source, layout) is None


def test_two_pictures_with_one_key_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twins.zip", "w") as archive:
        for folder in ("train/n00000001", "train/n00000002"):
            archive.writestr(f"{DATA}/{folder}/same.JPEG", b"x")

    arrays, listing = both_ways(tmp_path / "twins.zip", tmp_path)

    assert arrays == listing
    assert "two pictures with the key same" in str(arrays["error"])
    assert not list((tmp_path / "arrays").rglob("manifest.csv"))


def test_keys_whose_hashes_are_one_are_no_twins(fetched: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hash", lambda _: 7, raising=False)

    assert "stats" in tables(fetched)
