"""Stage ``subset``: choose classes and pictures by keyed hash; manifest in, manifest out.

Every class and every picture has a rank: a hash of its name under the seed. The first N are taken. So a choice does
not depend on the order of files, the platform or the Python version, and 10 x 100 lies inside 10 x 200.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from imgprep.errors import SpecError, UsageError
from imgprep.files import sha256_file, staged_folder
from imgprep.receipts import Action, Receipt, read_receipt
from imgprep.records import SPLITS, Catalog, Synset
from imgprep.tables import VAL_COLUMNS, catalog_table, read_catalog, read_manifest, read_table, write_table
from imgprep.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

SELECTION_VERSION: Final = 1
"""Raised when the same spec would choose other rows."""

_MAX_SEED: Final = 1 << 63


@dataclass(frozen=True, kw_only=True)
class SubsetSpec:
    """A request for a subset.

    Attributes:
        classes: How many classes, or which: wnids or names. None takes all that have an image.
        per_class: Training images a class. None takes all.
        val_per_class: Validation images a class. None takes all.
        seed: Another seed makes another choice.
        allow_short: Take a named class also when it has fewer training images than asked for.
    """

    classes: int | tuple[str, ...] | None = None
    per_class: int | None = None
    val_per_class: int | None = None
    seed: int = 0
    allow_short: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.classes, int) and self.classes < 1:
            raise SpecError(f"classes must be 1 or more, got {self.classes}")
        if isinstance(self.classes, tuple) and not all(name.strip() for name in (self.classes or ("",))):
            raise SpecError("classes must name at least one class, and none may be empty")
        if self.per_class is not None and self.per_class < 1:
            raise SpecError(f"per_class must be 1 or more, got {self.per_class}")
        if self.val_per_class is not None and self.val_per_class < 0:
            raise SpecError(f"val_per_class must be 0 or more, got {self.val_per_class}")
        if not 0 <= self.seed < _MAX_SEED:
            raise SpecError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")

    def to_options(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {
            "classes": list(self.classes) if isinstance(self.classes, tuple) else self.classes,
            "per_class": self.per_class,
            "val_per_class": self.val_per_class,
            "seed": self.seed,
            "allow_short": self.allow_short,
        }

    @property
    def line(self) -> str:
        """The spec on one line, for citing."""
        classes = ",".join(self.classes) if isinstance(self.classes, tuple) else self.classes or "all"
        return (
            f"classes={classes} per-class={self.per_class or 'all'}"
            f" val-per-class={'all' if self.val_per_class is None else self.val_per_class} seed={self.seed}"
        )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a spec chooses from a manifest.

    Attributes:
        manifest: The chosen rows in catalog order, with labels 0 to K-1 in the order of ``catalog``.
        catalog: The chosen classes, renumbered.
        passed_over: Classes with too few training images to be eligible, with their counts.
        short: Named classes that have fewer training images than asked for, with their counts.
        unlabelled: Validation rows that had no label and so could not be chosen.
    """

    manifest: pd.DataFrame
    catalog: Catalog
    passed_over: Sequence[tuple[Synset, int]] = ()
    short: Sequence[tuple[Synset, int]] = ()
    unlabelled: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 over split, wnid and key of every row, sorted: the same choice has the same digest anywhere."""
        table = self.manifest
        lines = sorted(f"{s}\t{w}\t{k}\n" for s, w, k in zip(table["split"], table["wnid"], table["key"], strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def num_rows(self, split: str) -> int:
        """Number of rows of one split."""
        return int((self.manifest["split"] == split).sum())


def rank(seed: int, kind: str, name: str) -> bytes:
    """Rank of a class or picture under a seed: BLAKE2b of its name, keyed by the seed, 16 bytes.

    Args:
        seed: The spec's seed.
        kind: ``class`` or ``image``: their ranks are independent.
        name: The wnid or the key.
    """
    return hashlib.blake2b(name.encode(), digest_size=16, key=seed.to_bytes(8, "big"), person=kind.encode()).digest()


def select(manifest: pd.DataFrame, catalog: Catalog, spec: SubsetSpec) -> Selection:
    """Choose the rows of a manifest that a spec asks for; pure.

    Args:
        manifest: Rows with labels where they are known.
        catalog: The classes of the manifest.
        spec: The request.

    Raises:
        UnknownClassError: A named class is not in the catalog.
        UsageError: Too few classes are eligible, or named classes are short or have no image at all.
    """
    train = manifest[manifest["split"] == "train"]
    counts = {str(wnid): int(n) for wnid, n in train.groupby("wnid").size().items()}
    wanted = spec.per_class or 1
    passed_over: list[tuple[Synset, int]] = []
    short: list[tuple[Synset, int]] = []
    if isinstance(spec.classes, tuple):
        chosen = list({synset.wnid: synset for synset in map(catalog.resolve, spec.classes)}.values())
        short = [(synset, counts.get(synset.wnid, 0)) for synset in chosen if counts.get(synset.wnid, 0) < wanted]
        empty = [synset for synset, n in short if n == 0]
        if empty:
            raise UsageError(f"no training image of {_names(empty)} is in this source", "leave those classes out")
        if short and not spec.allow_short:
            listed = ", ".join(f"{synset.label} has {n}" for synset, n in short)
            raise UsageError(
                f"named classes with fewer than {wanted} training images: {listed}",
                "ask for fewer with --per-class, or take what there is with --allow-short",
            )
    else:
        eligible = [synset for synset in catalog if counts.get(synset.wnid, 0) >= wanted]
        passed_over = [(s, counts[s.wnid]) for s in catalog if 0 < counts.get(s.wnid, 0) < wanted]
        number = len(eligible) if spec.classes is None else spec.classes
        if not counts:
            raise UsageError("this manifest has no training image", "check the source with `imgprep catalog`")
        if spec.classes is None and not eligible:
            raise UsageError(
                f"no class has {wanted} or more training images; the largest has {max(counts.values())}",
                "ask for fewer with --per-class",
            )
        if number > len(eligible):
            more = f" ({len(passed_over)} more have fewer)" if passed_over else ""
            raise UsageError(
                f"{number} classes were asked for, but only {len(eligible)} have {wanted} or more training images"
                f"{more}",
                "ask for fewer with --classes or --per-class",
            )
        chosen = sorted(eligible, key=lambda synset: rank(spec.seed, "class", synset.wnid))[:number]
    chosen.sort(key=lambda synset: synset.index)
    labels = {synset.wnid: label for label, synset in enumerate(chosen)}
    rows = manifest[manifest["wnid"].isin(list(labels)) & manifest["split"].isin(["train", "val"])]
    rows = _first_of_each(rows, spec)
    rows = rows.assign(label=rows["wnid"].map(labels).astype("int64"))
    rows = rows.assign(place=rows["split"].map({split: place for place, split in enumerate(SPLITS)}))
    rows = rows.sort_values(["place", "label", "key"], kind="stable").drop(columns="place")
    return Selection(
        manifest=rows.reset_index(drop=True),
        catalog=Catalog(Synset(synset.wnid, label, synset.name) for label, synset in enumerate(chosen)),
        passed_over=passed_over,
        short=short,
        unlabelled=int(((manifest["split"] == "val") & (manifest["wnid"] == "")).sum()),
    )


def _first_of_each(rows: pd.DataFrame, spec: SubsetSpec) -> pd.DataFrame:
    """Keep, in each split and class, the rows of the lowest ranks."""
    ranked = rows.assign(rank=[rank(spec.seed, "image", key) for key in rows["key"]]).sort_values("rank", kind="stable")
    place = ranked.groupby(["split", "wnid"]).cumcount()
    limit = ranked["split"].map(
        {
            "train": len(rows) if spec.per_class is None else spec.per_class,
            "val": len(rows) if spec.val_per_class is None else spec.val_per_class,
        }
    )
    return ranked[place < limit].drop(columns="rank")


def _names(synsets: Sequence[Synset]) -> str:
    return ", ".join(synset.label for synset in synsets)


@dataclass(frozen=True, kw_only=True)
class SubsetResult:
    """What ``subset`` did; ``selection`` is None when the subset was there before."""

    action: Action
    folder: Path
    digest: str
    selection: Selection | None


def load_manifest(workspace: Workspace, parent: str | None) -> tuple[pd.DataFrame, Catalog, dict[str, str]]:
    """Read what a subset is chosen from: the whole catalog with its validation labels, or another subset.

    Returns:
        The manifest, its classes, and digests of the files read and of the source behind them, by name.

    Raises:
        MissingInputError: The stage that writes it has not run.
        DamagedError: A table is damaged.
    """
    if parent is not None:
        folder = workspace.subset(parent)
        made_by = f"imgprep subset --name {parent}"
        manifest = read_manifest(folder / "manifest.csv", made_by=made_by)
        catalog = read_catalog(folder / "classes.csv", made_by=made_by)
        source = read_receipt(folder, "subset")["inputs"]["source"]
        return manifest, catalog, {"source": source, "manifest": sha256_file(folder / "manifest.csv")}
    folder = workspace.catalog
    manifest = read_manifest(folder / "manifest.csv", made_by="imgprep catalog")
    catalog = read_catalog(folder / "classes.csv")
    val = read_table(folder / "val.csv", VAL_COLUMNS, made_by="imgprep annotations")
    wnids = manifest["key"].map(dict(zip(val["ImageId"], val["wnid"], strict=True)))
    known = (manifest["split"] == "val") & wnids.notna()
    manifest.loc[known, "wnid"] = wnids[known]
    inputs = {name: sha256_file(folder / f"{name}.csv") for name in ("manifest", "classes", "val")}
    return manifest, catalog, inputs | {"source": read_receipt(folder, "catalog")["inputs"]["source"]}


def plan_subset(workspace: Workspace, spec: SubsetSpec, *, parent: str | None = None) -> Selection:
    """Choose without writing anything. Errors are those of :func:`load_manifest` and :func:`select`."""
    manifest, catalog, _ = load_manifest(workspace, parent)
    return select(manifest, catalog, spec)


def subset(
    workspace: Workspace, spec: SubsetSpec, *, name: str, parent: str | None = None, overwrite: bool = False
) -> SubsetResult:
    """Write ``subsets/NAME/manifest.csv`` and ``classes.csv``.

    Args:
        workspace: A workspace with a catalog and annotations.
        spec: What to choose.
        name: Name of the new subset.
        parent: Name of the subset to choose from; None for the whole catalog.
        overwrite: Replace a subset of that name that was made with other options.

    Raises:
        OutputExistsError: There is one, and it may not be replaced.
        UsageError: The spec cannot be met; see :func:`select`.
    """
    folder = workspace.subset(name)
    if parent == name:
        raise SpecError(f"a subset cannot be chosen from itself: {name!r}")
    manifest, catalog, inputs = load_manifest(workspace, parent)
    options = {**spec.to_options(), "selection_version": SELECTION_VERSION, "from": parent}
    receipt = Receipt(stage="subset", inputs=inputs, options=options)
    action = receipt.decide(folder, overwrite=overwrite)
    if action == "skip":
        digest = str(read_receipt(folder, "subset")["counts"].get("digest", ""))
        return SubsetResult(action=action, folder=folder, digest=digest, selection=None)
    selection = select(manifest, catalog, spec)
    with staged_folder(folder) as staging:
        write_table(staging / "manifest.csv", selection.manifest)
        write_table(staging / "classes.csv", catalog_table(selection.catalog))
        counts = {"spec": spec.line, "digest": selection.digest} | {s: selection.num_rows(s) for s in ("train", "val")}
        receipt.write(staging, ["manifest.csv", "classes.csv"], counts)
    return SubsetResult(action=action, folder=folder, digest=selection.digest, selection=selection)
