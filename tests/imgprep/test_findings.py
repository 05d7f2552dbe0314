"""The table of findings: what is read back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from imgprep.errors import DamagedError, MissingInputError
from imgprep.findings import (
    CODES,
    COLUMNS,
    ODD_CODES,
    PAIR_CODES,
    codes_of,
    drop_word,
    is_odd,
    other_column,
    read_doctor,
)
from imgprep.selection import DROPS
from imgprep.tables import write_table


def rows(*findings: str) -> pd.DataFrame:
    table = pd.DataFrame({name: [""] * len(findings) for name in COLUMNS}, dtype=object)
    table["key"] = [f"k{place}" for place in range(len(findings))]
    table["findings"] = list(findings)
    for name in ("width", "height", "orientation", "bits"):
        table[name] = pd.array([pd.NA] * len(findings), "Int64")
    return table.astype(COLUMNS)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    table = rows("", "cmyk rotated", "leak")
    table.loc[1, ["width", "format", "phash"]] = [500, "JPEG", "00000000ffffffff"]
    write_table(tmp_path / "doctor.csv", table)

    pd.testing.assert_frame_equal(read_doctor(tmp_path / "doctor.csv"), table)


def test_an_unknown_code_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "doctor.csv", rows("", "cmyk haunted"))

    with pytest.raises(DamagedError, match="'haunted' is no code of a finding - run `imgprep doctor` again"):
        read_doctor(tmp_path / "doctor.csv")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "doctor.csv", pd.concat([rows(""), rows("")]))

    with pytest.raises(DamagedError, match="the key k0 stands twice"):
        read_doctor(tmp_path / "doctor.csv")


def test_without_a_table_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="run `imgprep doctor` first"):
        read_doctor(tmp_path / "doctor.csv")


def test_the_table_of_an_older_version_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    table = rows("", "leak")
    write_table(tmp_path / "doctor.csv", table.drop(columns="conflict"))
    with pytest.raises(MissingInputError, match="older version, without the column conflict - run `imgprep doctor` ag"):
        read_doctor(tmp_path / "doctor.csv")

    write_table(tmp_path / "doctor.csv", table.drop(columns="twin"))
    with pytest.raises(DamagedError, match="has the columns key,"):
        read_doctor(tmp_path / "doctor.csv")

    (tmp_path / "doctor.csv").write_bytes(b"\xff\x00," * 5000)
    with pytest.raises(DamagedError, match="run `imgprep doctor` again"):
        read_doctor(tmp_path / "doctor.csv")


def test_every_code_of_a_pair_has_a_column_for_the_other_one() -> None:
    assert [other_column(code) for code in PAIR_CODES] == ["twin", "conflict", "twin", "twin"]
    assert set(map(other_column, PAIR_CODES)) <= COLUMNS.keys()


@pytest.mark.parametrize(
    ("findings", "odd"),
    [
        ("", False),
        ("cmyk", True),
        ("leak", False),
        ("label-conflict", False),
        ("duplicate leak", False),
        ("leak deep", True),
    ],
)
def test_a_pair_alone_is_not_odd(findings: str, odd: bool) -> None:
    assert is_odd(findings) is odd


def test_codes_are_of_one_kind_and_have_no_blanks() -> None:
    assert ODD_CODES.keys() & PAIR_CODES.keys() == set()
    assert [codes_of(code) for code in CODES] == [[code] for code in CODES]


def test_what_the_xml_says_otherwise_is_no_reason_to_drop_a_picture() -> None:
    words = {code: drop_word(code) for code in CODES}

    assert [code for code, word in words.items() if not word] == ["size-differs", "box-outside"]
    assert [words[code] for code in PAIR_CODES] == ["leaks", "conflicts", "duplicates", "duplicates"]
    assert {word for word in words.values() if word} == set(DROPS)
    assert words["truncated"] == "odd"
