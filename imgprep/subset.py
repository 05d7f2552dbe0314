"""Stage ``subset``: choose classes and pictures by keyed hash (:mod:`imgprep.selection`); manifest in, manifest out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgprep.errors import DamagedError, MissingInputError, SpecError, UsageError
from imgprep.files import sha256_file, staged_folder
from imgprep.receipts import Action, Receipt, read_receipt
from imgprep.records import SPLITS, Catalog, Synset
from imgprep.selection import SELECTION_VERSION, SubsetSpec, choose_classes, choose_keys
from imgprep.sources.adopted import read_source_record
from imgprep.sources.part import read_part_record
from imgprep.tables import VAL_COLUMNS, catalog_table, read_catalog, read_manifest, read_table, table_bytes, write_table
from imgprep.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd


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
    choice = choose_classes(counts, catalog, spec)
    labels = {synset.wnid: synset.index for synset in choice.catalog}
    rows = manifest[manifest["wnid"].isin(list(labels)) & manifest["split"].isin(["train", "val"])]
    kept: set[tuple[str, str]] = set()
    for split, limit in (("train", spec.per_class), ("val", spec.val_per_class)):
        for wnid, keys in rows[rows["split"] == split].groupby("wnid")["key"]:
            kept.update((str(wnid), key) for key in choose_keys(keys, limit, seed=spec.seed))
    # A key is in one split only.
    rows = rows[[pair in kept for pair in zip(rows["wnid"], rows["key"], strict=True)]]
    rows = rows.assign(label=rows["wnid"].map(labels).astype("int64"))
    rows = rows.assign(place=rows["split"].map({split: place for place, split in enumerate(SPLITS)}))
    rows = rows.sort_values(["place", "label", "key"], kind="stable").drop(columns="place")
    return Selection(
        manifest=rows.reset_index(drop=True),
        catalog=choice.catalog,
        passed_over=choice.passed_over,
        short=choice.short,
        unlabelled=int(((manifest["split"] == "val") & (manifest["wnid"] == "")).sum()),
    )


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


def note_on_part(workspace: Workspace, spec: SubsetSpec) -> str:
    """What to tell of a choice from a part of an archive, where the whole might give another; else nothing."""
    try:
        record = read_source_record(workspace)
        if record.kind != "part":
            return ""
        part = read_part_record(workspace.root / record.path)
    except (MissingInputError, DamagedError, FileNotFoundError):
        return ""
    if part.answers(spec.to_options()):
        return ""
    return (
        f"chosen from the part of {part.archive.name} that was fetched; the whole archive might give another choice:"
        " `imgprep fetch` with the same options adds what is missing"
    )


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
    if not overwrite and receipt.only_inputs_changed(folder) and _still_chosen(folder, manifest, catalog, spec):
        # The source grew by what was not asked for here.
        receipt.renew(folder)
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


def _still_chosen(folder: Path, manifest: pd.DataFrame, catalog: Catalog, spec: SubsetSpec) -> bool:
    """Whether a spec chooses now what lies in ``folder``, to the byte."""
    try:
        selection = select(manifest, catalog, spec)
    except UsageError:
        return False
    return (folder / "manifest.csv").read_bytes() == table_bytes(selection.manifest) and (
        folder / "classes.csv"
    ).read_bytes() == table_bytes(catalog_table(selection.catalog))
