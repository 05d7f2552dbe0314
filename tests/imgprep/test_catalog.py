"""catalog lists every picture of the source once."""

from __future__ import annotations

import csv
import zlib
from pathlib import Path

import pytest

from imgprep.catalog import catalog
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
