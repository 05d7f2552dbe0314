"""Where each stage finds what the one before it left: the layout of a workspace folder, and nothing else."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imgprep.errors import MissingInputError, SpecError
from imgprep.files import locked
from imgprep.index import find_index

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str) -> str:
    """Return ``name`` if it can name a folder of a workspace.

    Raises:
        SpecError: It is empty, hidden, or would leave its folder.
    """
    if not _NAME.fullmatch(name):
        raise SpecError(f"a name is made of up to 100 letters, digits, '.', '_' and '-', got {name[:120]!r}")
    return name


@dataclass(frozen=True)
class Workspace:
    """One folder with everything imgprep made of one dataset.

    ``raw/`` says where the source lies, ``catalog/`` what is in it, ``subsets/NAME/`` what was chosen, ``shards/NAME/``
    holds the tars and ``runs/NAME/`` the trainings.
    """

    root: Path

    @property
    def source_record(self) -> Path:
        """``raw/source.json``: the adopted source."""
        return self.root / "raw" / "source.json"

    @property
    def catalog(self) -> Path:
        """Folder of ``classes.csv``, ``manifest.csv``, ``val.csv`` and ``boxes.csv``."""
        return self.root / "catalog"

    def subset(self, name: str) -> Path:
        """Folder of one subset: ``manifest.csv`` and ``classes.csv``."""
        return self.root / "subsets" / check_name(name)

    def shards(self, name: str) -> Path:
        """Folder of one set of shards."""
        return find_index(self.root, check_name(name)).parent

    def require(self) -> None:
        """Check that the workspace exists.

        Raises:
            MissingInputError: It does not.
        """
        if not self.root.is_dir():
            raise MissingInputError(
                f"no workspace yet: {self.root} does not exist",
                "start with `imgprep fetch`, or `imgprep fetch --from PATH` with a copy, or name one with --workspace",
            )

    @contextlib.contextmanager
    def locked(self, holder: str) -> Iterator[None]:
        """Hold the workspace against other stages that write to it; see :func:`imgprep.files.locked`."""
        with locked(self.root / ".lock", holder=holder):
            yield


def default_cache() -> Path:
    """Where directories of archives are kept: ``$IMGPREP_CACHE``, else ``imgprep`` in the user's cache folder (XDG).

    What lies there only saves time: it is checked when it is used, and may be deleted.
    """
    named = os.environ.get("IMGPREP_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgprep"
