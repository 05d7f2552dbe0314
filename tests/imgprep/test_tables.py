"""Tables read back as they were written, whatever the names in them; anything else is damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import DamagedError, MissingInputError
from imgprep.records import Catalog, Record, Synset
from imgprep.tables import (
    catalog_table,
    manifest_records,
    manifest_table,
    read_catalog,
    read_manifest,
    write_table,
)

# Blanks at the ends, commas, quotes, line breaks, and words that CSV readers like to take for missing values.
texts = st.one_of(
    st.sampled_from(["null", "NaN", "", "NA", "1e5", '"', "a,b", "a\nb", " x ", "é"]),
    st.text(st.characters(exclude_categories=["C"]), max_size=8),
)
records = st.builds(
    Record,
    key=st.uuids().map(str),
    split=st.sampled_from(["train", "val", "test"]),
    path=texts,
    wnid=texts,
    label=st.integers(-1, 999),
    num_bytes=st.integers(0, 2**40),
    crc32=st.none() | st.integers(0, 2**32 - 1),
)


@given(rows=st.lists(records, max_size=6))
def test_manifest_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Record]) -> None:
    path = tmp_path_factory.mktemp("manifest") / "manifest.csv"
    write_table(path, manifest_table(rows))

    assert list(manifest_records(read_manifest(path, made_by="x"))) == rows


@given(names=st.lists(texts, max_size=6))
def test_classes_round_trip(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.mktemp("classes") / "classes.csv"
    catalog = Catalog(Synset(f"n{place:08d}", place, name) for place, name in enumerate(names))
    write_table(path, catalog_table(catalog))

    assert list(read_catalog(path)) == list(catalog)


def test_a_missing_table_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="run `imgprep catalog` first"):
        read_catalog(tmp_path / "classes.csv")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"label,wnid\n0,n00000001\n",
        b"label,wnid,name\nx,n00000001,a\n",
        b"label,wnid,name\n1,n00000001,a\n",
        b"label,wnid,name\n0,n00000001,a\n1,n00000001,b\n",
        b"label,wnid,name\n0,n00000001,a,b,c\n",
        b"label,wnid,name\n0,n00000001,\xff\n",
        b'label,wnid,name\n0,n00000001,"open\n',
    ],
)
def test_a_damaged_table_is_said_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "classes.csv").write_bytes(content)
    with pytest.raises(DamagedError) as caught:
        read_catalog(tmp_path / "classes.csv")

    assert "classes.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_with_a_key_twice_is_damage(tmp_path: Path) -> None:
    row = Record("k", "train", "p", "n00000001", 0, 1, None)
    write_table(tmp_path / "manifest.csv", manifest_table([row, row]))
    with pytest.raises(DamagedError, match="the key k stands twice"):
        read_manifest(tmp_path / "manifest.csv", made_by="x")
