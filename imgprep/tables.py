"""CSV tables and the nouns in them. All are RFC 4180, UTF-8, with LF line ends."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import filterfalse, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from imgprep.errors import DamagedError, MissingInputError
from imgprep.files import atomic_write, write_bytes
from imgprep.records import KEY_PATTERN, SPLITS, Catalog, Record, Rejected, Synset

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

MANIFEST_COLUMNS: Final = {
    "key": "str",
    "split": "str",
    "path": "str",
    "wnid": "str",
    "label": "int64",
    "num_bytes": "int64",
    "crc32": "Int64",
}
ManifestRow: TypeAlias = tuple[str, str, str, str, int, int, int | None]
"""One row of a manifest, in the order of its columns."""

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

PIECE_ROWS: Final = 1 << 13
"""Rows of a table that are held at once where it is read in pieces: of a manifest, about 3 MB.

pandas looks each string up among those of its piece; as long as these fit into the cache of a processor, it takes half
the time.
"""

_BATCH_ROWS: Final = 1 << 13
"""Rows of a manifest that are written at once."""


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

    with _told(path, columns, made_by):
        table: pd.DataFrame = pd.read_csv(path, **_csv_options(columns))
    _check_columns(table, path, columns, made_by)
    return table


def read_pieces(
    path: Path, columns: dict[str, str], *, made_by: str, num_rows: int = PIECE_ROWS
) -> Iterator[pd.DataFrame]:
    """Read a table some rows at a time, so that its length does not matter; else as :func:`read_table`.

    Yields:
        At least one piece, empty where the table is; the index counts on.
    """
    import pandas as pd

    with _told(path, columns, made_by), pd.read_csv(path, chunksize=num_rows, **_csv_options(columns)) as reader:
        for piece in reader:
            _check_columns(piece, path, columns, made_by)
            yield piece


def _csv_options(columns: dict[str, str]) -> dict[str, Any]:
    return {
        "dtype": columns,
        # A class may well be called "null" or "nan": only the nullable columns know a missing value.
        "keep_default_na": False,
        "na_values": {name: [""] for name, dtype in columns.items() if dtype == "Int64"},
        "encoding": "utf-8",
        "on_bad_lines": "error",
    }


@contextlib.contextmanager
def _told(path: Path, columns: dict[str, str], made_by: str) -> Iterator[None]:
    """Turn what pandas objects to into errors that name the file and the command that writes it."""
    try:
        yield
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist", f"run `{made_by}` first") from None
    except (ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DamagedError(
            f"{path} is not a table of {','.join(columns)} ({reason})", f"run `{made_by}` again"
        ) from None


def _check_columns(table: pd.DataFrame, path: Path, columns: dict[str, str], made_by: str) -> None:
    if list(table.columns) != list(columns):
        raise DamagedError(
            f"{path} has the columns {','.join(table.columns)}, expected {','.join(columns)}", f"run `{made_by}` again"
        )


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


def write_manifest(path: Path, rows: Iterable[ManifestRow]) -> None:
    """Write ``manifest.csv`` atomically while its rows are made; byte for byte what :func:`write_table` would write.

    Args:
        path: The file; its folder must exist.
        rows: In catalog order. When they raise, nothing is written.
    """
    rows = iter(rows)
    with atomic_write(path) as file:
        file.write(f"{','.join(MANIFEST_COLUMNS)}\n".encode())
        while batch := list(islice(rows, _BATCH_ROWS)):
            file.write(_manifest_lines(batch).encode())


def _manifest_lines(rows: Sequence[ManifestRow]) -> str:
    text = "".join(
        f"{key},{split},{path},{wnid},{label},{num_bytes},{'' if crc32 is None else crc32}\n"
        for key, split, path, wnid, label, num_bytes, crc32 in rows
    )
    # The writer of the standard library takes five times as long. It is needed where a name has to be quoted.
    commas = (len(MANIFEST_COLUMNS) - 1) * len(rows)
    if text.count(",") == commas and text.count("\n") == len(rows) and '"' not in text and "\r" not in text:
        return text
    quoted = io.StringIO(newline="")
    csv.writer(quoted, lineterminator="\n").writerows(rows)
    return quoted.getvalue()


def read_manifest(path: Path, *, made_by: str) -> pd.DataFrame:
    """Read ``manifest.csv``; errors as in :func:`read_table`, and DamagedError for bad or repeated keys."""
    import pandas as pd

    return pd.concat(list(read_manifest_pieces(path, made_by=made_by)))


def read_manifest_pieces(path: Path, *, made_by: str, num_rows: int = PIECE_ROWS) -> Iterator[pd.DataFrame]:
    """Read ``manifest.csv`` some rows at a time, as :func:`read_pieces` does; errors as in :func:`read_manifest`.

    Bad and repeated keys are told of after the last piece: all that is wrong with the table itself comes first.
    """
    import numpy as np

    bad: dict[str, str] = {}
    hashes: list[NDArray[np.uint64]] = []
    for piece in read_pieces(path, MANIFEST_COLUMNS, made_by=made_by, num_rows=num_rows):
        for name, is_good in (("key", KEY_PATTERN.fullmatch), ("split", SPLITS.__contains__)):
            wrong = next(filterfalse(is_good, piece[name].tolist()), None)
            if wrong is not None:
                bad.setdefault(name, str(wrong))
        hashes.append(hash_keys(piece["key"]))
        yield piece
    for name in ("key", "split"):
        if name in bad:
            raise DamagedError(f"{path}: {bad[name][:100]!r} is no {name}", f"run `{made_by} --overwrite`")
    suspects = _repeated(hashes)
    seen: dict[str, str] = {}
    # Two keys may have one hash: only another look tells.
    for piece in read_pieces(path, MANIFEST_COLUMNS, made_by=made_by, num_rows=num_rows) if len(suspects) else ():
        some = piece[np.isin(hash_keys(piece["key"]), suspects)]
        for key, name in zip(some["key"].tolist(), some["path"].tolist(), strict=True):
            if key in seen:
                raise DamagedError(
                    f"{path}: the key {key} stands twice, for {seen[key]} and {name}", f"run `{made_by}` again"
                )
            seen[key] = name


def hash_keys(keys: pd.Series[Any]) -> NDArray[np.uint64]:
    """64 bits of each key: all that is held of those that were read, an eighth of what a string takes."""
    import pandas as pd

    return pd.util.hash_array(keys.to_numpy(dtype=object), categorize=False)


def _repeated(hashes: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """The values that occur more than once; takes the arrays out of the list, so that they are not held twice."""
    import numpy as np

    ordered = np.concatenate(hashes)
    hashes.clear()
    ordered.sort()
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def read_labelled(folder: Path, *, made_by: str, num_rows: int = PIECE_ROWS) -> Iterator[pd.DataFrame]:
    """Read ``manifest.csv`` in pieces; validation pictures have the class that a ``val.csv`` beside it gives them.

    Args:
        folder: That of the catalog, or of a subset.
        made_by: The command that writes the manifest, for advice.
        num_rows: Rows of a piece.

    Raises:
        MissingInputError: There is no manifest.
        DamagedError: A table is damaged.
    """
    wnids: dict[str, str] = {}
    if (folder / "val.csv").is_file():
        val = read_table(folder / "val.csv", VAL_COLUMNS, made_by="imgprep annotations")
        wnids = dict(zip(val["ImageId"], val["wnid"], strict=True))
    for piece in read_pieces(folder / "manifest.csv", MANIFEST_COLUMNS, made_by=made_by, num_rows=num_rows):
        unlabelled = (piece["split"] == "val") & (piece["wnid"] == "")
        if wnids and unlabelled.any():
            piece.loc[unlabelled, "wnid"] = piece.loc[unlabelled, "key"].map(wnids).fillna("")
        yield piece


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
