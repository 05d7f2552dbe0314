"""Tables read back as they were written, whatever the names in them; anything else is damage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import DamagedError, MissingInputError
from imgprep.records import Catalog, Record, Synset
from imgprep.tables import (
    MANIFEST_COLUMNS,
    ManifestRow,
    catalog_table,
    manifest_records,
    manifest_table,
    read_catalog,
    read_labelled,
    read_manifest,
    read_pieces,
    read_table,
    table_bytes,
    write_manifest,
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
    with pytest.raises(DamagedError, match="the key k stands twice, for p and p"):
        read_manifest(tmp_path / "manifest.csv", made_by="x")


# Written as they are made, read in pieces.


def row_of(record: Record) -> ManifestRow:
    return (
        record.key,
        record.split,
        record.path,
        record.wnid,
        record.label,
        record.num_bytes,
        record.crc32,
    )


@given(rows=st.lists(records, max_size=6), batch=st.integers(1, 3))
def test_a_manifest_written_row_by_row_has_the_bytes_of_the_table(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Record], batch: int
) -> None:
    path = tmp_path_factory.mktemp("manifest") / "manifest.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imgprep.tables._BATCH_ROWS", batch)
        write_manifest(path, map(row_of, rows))

    assert path.read_bytes() == table_bytes(manifest_table(rows))


def test_rows_that_fail_leave_no_file(tmp_path: Path) -> None:
    def rows() -> Iterator[ManifestRow]:
        yield "a", "train", "a", "n", 0, 1, None
        raise KeyError

    with pytest.raises(KeyError):
        write_manifest(tmp_path / "manifest.csv", rows())

    assert not any(tmp_path.iterdir())


@given(rows=st.lists(records, max_size=9), num_rows=st.integers(1, 4))
def test_pieces_are_the_table(tmp_path_factory: pytest.TempPathFactory, rows: list[Record], num_rows: int) -> None:
    path = tmp_path_factory.mktemp("manifest") / "manifest.csv"
    write_table(path, manifest_table(rows))

    pieces = list(read_pieces(path, MANIFEST_COLUMNS, made_by="x", num_rows=num_rows))

    assert max(map(len, pieces)) <= num_rows
    assert [row for piece in pieces for row in manifest_records(piece)] == rows
    assert pieces[0].dtypes.tolist() == read_table(path, MANIFEST_COLUMNS, made_by="x").dtypes.tolist()


def test_what_is_no_table_is_damage_in_any_piece(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text(f"{','.join(MANIFEST_COLUMNS)}\na,train,a,n,0,1,\nb,train,b,n,0,one,\n")

    pieces = read_pieces(path, MANIFEST_COLUMNS, made_by="imgprep catalog", num_rows=1)
    next(pieces)
    with pytest.raises(DamagedError, match="run `imgprep catalog` again"):
        next(pieces)
    path.write_text("key,split\na,train\n")
    with pytest.raises(DamagedError, match=r"is not a table of|has the columns"):
        next(read_pieces(path, MANIFEST_COLUMNS, made_by="x"))
    with pytest.raises(MissingInputError, match="run `imgprep catalog` first"):
        next(read_pieces(tmp_path / "none.csv", MANIFEST_COLUMNS, made_by="imgprep catalog"))


def test_validation_pictures_get_the_class_in_the_table_beside(tmp_path: Path) -> None:
    rows = [
        ("a", "train", "p", "n1", 0, 1, None),
        ("v", "val", "q", "", -1, 1, None),
        ("w", "val", "r", "", -1, 1, None),
    ]
    write_manifest(tmp_path / "manifest.csv", rows)

    def wnids() -> list[str]:
        return [wnid for piece in read_labelled(tmp_path, made_by="x", num_rows=2) for wnid in piece["wnid"]]

    assert wnids() == ["n1", "", ""]
    (tmp_path / "val.csv").write_text("ImageId,wnid,label\nother,n3,2\nv,n2,1\na,n9,8\n")
    assert wnids() == ["n1", "n2", ""]
