"""CSV tables and the nouns in them. All are RFC 4180, UTF-8, with LF line ends."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from imgprep.errors import DamagedError, MissingInputError
from imgprep.files import write_bytes
from imgprep.records import SPLITS, Catalog, Record, Rejected, Synset, is_key

if TYPE_CHECKING:
    import pandas as pd

MANIFEST_COLUMNS: Final = {
    "key": "str",
    "split": "str",
    "path": "str",
    "wnid": "str",
    "label": "int64",
    "num_bytes": "int64",
    "crc32": "Int64",
}
CLASSES_COLUMNS: Final = {"label": "int64", "wnid": "str", "name": "str"}
VAL_COLUMNS: Final = {"ImageId": "str", "wnid": "str", "label": "int64"}
BOXES_COLUMNS: Final = {
    "ImageId": "str",
    "split": "str",
    "wnid": "str",
    "xmin": "int64",
    "ymin": "int64",
    "xmax": "int64",
    "ymax": "int64",
    "width": "Int64",
    "height": "Int64",
}
REJECTED_COLUMNS: Final = {"key": "str", "split": "str", "path": "str", "reason": "str"}


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table atomically as CSV, without the row index; missing values are empty fields."""
    write_bytes(path, table_bytes(table))


def table_bytes(table: pd.DataFrame) -> bytes:
    """The CSV that :func:`write_table` writes."""
    buffer = io.BytesIO()
    table.to_csv(buffer, index=False, lineterminator="\n", encoding="utf-8")
    return buffer.getvalue()


def read_table(path: Path, columns: dict[str, str], *, made_by: str) -> pd.DataFrame:
    """Read a CSV table with known columns.

    Args:
        path: The file.
        columns: Name to pandas dtype; just these, in this order.
        made_by: The command that writes such a file, for advice.

    Raises:
        MissingInputError: It is not there.
        DamagedError: It is no CSV, or its columns or values are others.
    """
    import pandas as pd

    nullable = {name: [""] for name, dtype in columns.items() if dtype == "Int64"}
    try:
        # A class may well be called "null" or "nan": only the nullable columns know a missing value.
        table = pd.read_csv(
            path, dtype=columns, keep_default_na=False, na_values=nullable, encoding="utf-8", on_bad_lines="error"
        )
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist", f"run `{made_by}` first") from None
    except (ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DamagedError(
            f"{path} is not a table of {','.join(columns)} ({reason})", f"run `{made_by}` again"
        ) from None
    if list(table.columns) != list(columns):
        raise DamagedError(
            f"{path} has the columns {','.join(table.columns)}, expected {','.join(columns)}", f"run `{made_by}` again"
        )
    return table


def catalog_table(catalog: Iterable[Synset]) -> pd.DataFrame:
    """The rows of ``classes.csv``."""
    import pandas as pd

    rows = [(synset.index, synset.wnid, synset.name) for synset in catalog]
    return pd.DataFrame(rows, columns=list(CLASSES_COLUMNS))


def read_catalog(path: Path, *, made_by: str = "imgprep catalog") -> Catalog:
    """Read ``classes.csv``; errors as in :func:`read_table`, and DamagedError when labels are not 0, 1, 2, ..."""
    table = read_table(path, CLASSES_COLUMNS, made_by=made_by)
    if list(table["label"]) != list(range(len(table))) or table["wnid"].duplicated().any():
        raise DamagedError(f"{path}: labels must be 0, 1, 2, ... and each wnid new", f"run `{made_by}` again")
    return Catalog(
        Synset(wnid, place, name) for place, (wnid, name) in enumerate(zip(table["wnid"], table["name"], strict=True))
    )


def manifest_table(records: Iterable[Record]) -> pd.DataFrame:
    """The rows of ``manifest.csv``."""
    import pandas as pd

    rows = [(r.key, r.split, r.path, r.wnid, r.label, r.num_bytes, r.crc32) for r in records]
    return pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS)).astype(MANIFEST_COLUMNS)


def read_manifest(path: Path, *, made_by: str) -> pd.DataFrame:
    """Read ``manifest.csv``; errors as in :func:`read_table`, and DamagedError for bad or repeated keys."""
    table = read_table(path, MANIFEST_COLUMNS, made_by=made_by)
    for name, is_good in (("key", is_key), ("split", SPLITS.__contains__)):
        bad = [value for value in table[name].unique() if not is_good(value)]
        if bad:
            raise DamagedError(f"{path}: {str(bad[0])[:100]!r} is no {name}", f"run `{made_by} --overwrite`")
    twice = table["key"][table["key"].duplicated()]
    if len(twice):
        raise DamagedError(f"{path}: the key {twice.iloc[0]} stands twice", f"run `{made_by}` again")
    return table


def manifest_records(table: pd.DataFrame) -> Iterator[Record]:
    """The rows of a manifest as records."""
    for key, split, path, wnid, label, num_bytes, crc32 in zip(
        *(table[name].tolist() for name in MANIFEST_COLUMNS), strict=True
    ):
        # A missing Int64 comes out as pandas.NA, which is no int.
        yield Record(key, split, path, wnid, label, num_bytes, crc32 if isinstance(crc32, int) else None)


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """Write ``rejected.csv``; also when nothing was rejected, so that its absence never means "none"."""
    import pandas as pd

    rows = [(r.key, r.split, r.path, r.reason) for r in rejected]
    write_table(path, pd.DataFrame(rows, columns=list(REJECTED_COLUMNS)))
