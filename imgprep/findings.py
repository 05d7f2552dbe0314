"""What ``imgprep doctor`` found: the columns and codes of ``doctor.csv``, for whoever reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from imgprep.errors import DamagedError, MissingInputError
from imgprep.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

DOCTOR_FILE: Final = "doctor.csv"
"""Its name in the folder of the catalog."""

COLUMNS: Final = {
    "key": "str",
    "split": "str",
    "path": "str",
    "wnid": "str",
    "format": "str",
    "mode": "str",
    "width": "Int64",
    "height": "Int64",
    "orientation": "Int64",
    "bits": "Int64",
    "progressive": "str",
    "complete": "str",
    "pillow": "str",
    "opencv": "str",
    "phash": "str",
    "findings": "str",
    "twin": "str",
    "conflict": "str",
}
"""Name to pandas dtype. One row a picture, in the order of the manifest; what could not be found out is empty."""

ODD_CODES: Final = {
    "unreadable": "its bytes cannot be read from the source",
    "breaks-decoder": "a decoder crashed on it, or wanted more time or memory than a picture of the limit may take",
    "not-an-image": "no decoder knows it: empty, another kind of file, or a broken header",
    "too-large": "its header claims more pixels than the limit, or more than 100 scans; it was not decoded",
    "undecodable": "the header can be read, the pixels cannot",
    "decoders-differ": "one of Pillow and OpenCV decodes it, the other does not",
    "truncated": "the file stops before the end of the picture",
    "damaged": "it decodes, but a strict decoder objects to its coded bytes",
    "wrong-extension": "the extension of its name is that of another format",
    "cmyk": "CMYK or YCCK: four inks, not RGB or grey",
    "rotated": "an EXIF orientation other than upright",
    "animated": "more than one frame: an animation, pages, or several pictures in one file",
    "deep": "more than 8 bits a channel",
    "extreme-aspect": "one side is many times the other",
    "size-differs": "the XML gives it another size",
    "box-outside": "a box of its XML is empty or reaches beyond the picture",
}
"""Codes about one picture and what they mean, the most serious first."""

PAIR_CODES: Final = {
    "leak": "the same as, or looks like, a picture of a later split: train in val or test, val in test",
    "label-conflict": "the same as, or looks like, a picture of another class, in its own split or a later one",
    "duplicate": "byte for byte an earlier picture of its split",
    "near-duplicate": "looks like an earlier picture of its split",
}
"""Codes about two pictures and what they mean; :func:`other_column` has the key of the other one.

Splits come in the order train, val, test, and what is between two of them is a finding about the earlier: a split that
is held out stays as it is. Within a split, of two that contradict each other both are found, as no one knows which
label is right; a picture without a label contradicts none.
"""

CODES: Final = ODD_CODES | PAIR_CODES
"""All codes, in the order in which they stand in ``findings`` and in summaries."""

_CONFLICT: Final = "label-conflict"
_MAX_HEADER: Final = 1000

_ANNOTATION_CODES: Final = frozenset({"size-differs", "box-outside"})
"""What the XML says otherwise: the picture itself may be as good as any."""


def drop_word(code: str) -> str:
    """Which word of ``imgprep subset --drop`` leaves out pictures with a code; empty for none."""
    if code in PAIR_CODES:
        return {"leak": "leaks", _CONFLICT: "conflicts"}.get(code, "duplicates")
    return "" if code in _ANNOTATION_CODES else "odd"


def other_column(code: str) -> str:
    """The column with the key of the other picture, for one of :data:`PAIR_CODES`."""
    return "conflict" if code == _CONFLICT else "twin"


def codes_of(findings: str) -> list[str]:
    """The codes in a cell of the column ``findings``."""
    return findings.split()


def is_odd(findings: str) -> bool:
    """Whether a cell of the column ``findings`` holds a code about the picture itself, not about a pair."""
    return any(code not in PAIR_CODES for code in findings.split())


def read_doctor(path: Path) -> pd.DataFrame:
    """Read ``doctor.csv``.

    Args:
        path: The file, as a rule ``catalog/doctor.csv`` of a workspace.

    Returns:
        One row a picture with the columns and dtypes of :data:`COLUMNS`.

    Raises:
        MissingInputError: It is not there, or is the table of an older version, which knew nothing of ``conflict``.
        DamagedError: It is no CSV, has other columns, holds an unknown code, or has a key twice.
    """
    if _header(path) == [name for name in COLUMNS if name != "conflict"]:
        raise MissingInputError(
            f"{path} is that of an older version, without the column conflict", "run `imgprep doctor` again"
        )
    table = read_table(path, COLUMNS, made_by="imgprep doctor")
    unknown = {code for cell in table["findings"].unique() for code in codes_of(cell)} - CODES.keys()
    if unknown:
        raise DamagedError(f"{path}: {min(unknown)[:100]!r} is no code of a finding", "run `imgprep doctor` again")
    twice = table["key"][table["key"].duplicated()]
    if len(twice):
        raise DamagedError(f"{path}: the key {twice.iloc[0]} stands twice", "run `imgprep doctor` again")
    return table


def _header(path: Path) -> list[str]:
    """The names in the first line, as far as one can tell; what is no table is for its reader to refuse."""
    try:
        with path.open("rb") as file:
            return file.readline(_MAX_HEADER).decode("latin-1").rstrip("\r\n").split(",")
    except FileNotFoundError:
        return []
