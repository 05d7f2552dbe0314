"""Stage ``subset``: choose classes and pictures by keyed hash (:mod:`imgprep.selection`), or combine two choices.

Manifest in, manifest out: whatever one subset was made by, another can be chosen from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from imgprep.errors import ContradictionError, DamagedError, LockedError, MissingInputError, SpecError, UsageError
from imgprep.files import sha256_file, staged_folder
from imgprep.receipts import Action, Receipt, read_receipt, was_made_of
from imgprep.records import SPLITS, Catalog, Synset
from imgprep.selection import (
    SELECTION_VERSION,
    CombineSpec,
    Operation,
    SubsetSpec,
    choose_classes,
    choose_pictures,
    split_pin,
)
from imgprep.sources.adopted import check_adopted, read_source_record
from imgprep.sources.part import read_part_record
from imgprep.tables import (
    MANIFEST_COLUMNS,
    VAL_COLUMNS,
    catalog_table,
    read_catalog,
    read_manifest_pieces,
    read_pieces,
    read_table,
    table_bytes,
    write_table,
)
from imgprep.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

_PIN_DIGITS: Final = 16
"""Digits of a digest that a line cites: 64 bits tell more subsets apart than anybody makes."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a spec chooses from a manifest.

    Attributes:
        manifest: The chosen rows in catalog order, with labels 0 to K-1 in the order of ``catalog``.
        catalog: The chosen classes, renumbered.
        passed_over: Classes with too few training images to be eligible, with their counts.
        short: Named classes that have fewer training images than asked for, with their counts.
        unlabelled: Rows that have no label and so could not be chosen, by split.
        untrained: Rows of classes without training images, by split: there is nothing to learn them from.
        replaced: Rows of splits that the spec makes anew of the training images, by split.
        left_out: Rows that were dropped or excluded before the choice.
        line: What reproduces it in its workspace; empty for a choice from a manifest alone.
    """

    manifest: pd.DataFrame
    catalog: Catalog
    passed_over: Sequence[tuple[Synset, int]] = ()
    short: Sequence[tuple[Synset, int]] = ()
    unlabelled: Mapping[str, int] = field(default_factory=dict)
    untrained: Mapping[str, int] = field(default_factory=dict)
    replaced: Mapping[str, int] = field(default_factory=dict)
    left_out: int = 0
    line: str = ""

    @property
    def digest(self) -> str:
        """See :func:`manifest_digest`."""
        return manifest_digest(self.manifest)

    def num_rows(self, split: str) -> int:
        """Number of rows of one split."""
        return int((self.manifest["split"] == split).sum())


def manifest_digest(manifest: pd.DataFrame) -> str:
    """SHA-256 over split, wnid and key of every row, sorted: the same choice has the same digest anywhere."""
    return _digest(zip(manifest["split"], manifest["wnid"], manifest["key"], strict=True))


def _digest(rows: Iterable[tuple[str, str, str]]) -> str:
    return hashlib.sha256("".join(sorted(f"{s}\t{w}\t{k}\n" for s, w, k in rows)).encode()).hexdigest()


class Pictures:
    """The rows of a manifest of any length: the keys of each split and class are held, all else is read when needed.

    Args:
        pieces: The rows.
        read: Reads them once more, in pieces, from the beginning each time.
    """

    def __init__(self, pieces: Iterable[pd.DataFrame], read: Callable[[], Iterable[pd.DataFrame]]) -> None:
        self._read = read
        self._wnids: Mapping[str, str] = {}
        # Keys have no blanks. Those that follow each other take a quarter of the memory as one text.
        self._texts: dict[tuple[str, str], list[str]] = {}
        for piece in pieces:
            splits, wnids, keys = (piece[name].tolist() for name in ("split", "wnid", "key"))
            rows = zip(zip(splits, wnids, strict=True), keys, strict=True)
            for group, some in groupby(rows, key=itemgetter(0)):
                self._texts.setdefault(group, []).append(" ".join(map(itemgetter(1), some)))

    def label_val(self, wnids: Mapping[str, str]) -> None:
        """Give validation pictures the classes that they have by key; the others keep theirs."""
        self._wnids = wnids
        for split, wnid in list(self._texts):
            if split == "val":
                keys = self.keys(split, wnid)
                del self._texts[split, wnid]
                for key in keys:
                    self._texts.setdefault((split, wnids.get(key, wnid)), []).append(key)

    @property
    def groups(self) -> list[tuple[str, str]]:
        """Each split with each wnid that has a picture in it."""
        return list(self._texts)

    def keys(self, split: str, wnid: str, *, without: Collection[str] = frozenset()) -> list[str]:
        """The keys of one class in one split."""
        keys = " ".join(self._texts.get((split, wnid), ())).split()
        return [key for key in keys if key not in without] if without else keys

    def rows(self) -> Iterator[pd.DataFrame]:
        """All rows, in pieces, in the order of the manifest."""
        for piece in self._read():
            is_val = piece["split"] == "val"
            if self._wnids and is_val.any():
                pairs = zip(*(piece.loc[is_val, name].tolist() for name in ("key", "wnid")), strict=True)
                piece.loc[is_val, "wnid"] = [self._wnids.get(key, wnid) for key, wnid in pairs]
            yield piece

    def digest(self) -> str:
        """See :func:`manifest_digest`."""
        return _digest((*group, key) for group in self._texts for key in self.keys(*group))


def select(
    manifest: pd.DataFrame | Pictures, catalog: Catalog, spec: SubsetSpec, *, without: Collection[str] = frozenset()
) -> Selection:
    """Choose the rows of a manifest that a spec asks for; pure.

    Args:
        manifest: Rows with labels where they are known, as a table or to be read.
        catalog: The classes of the manifest.
        spec: The request; what it drops, excludes and chooses from is in the other arguments.
        without: Keys of rows to leave out.

    Raises:
        UnknownClassError: A named class is not in the catalog.
        UsageError: Too few classes are eligible, or named classes are short or have no image at all.
        LockedError: The manifest changed between its two readings.
    """
    import pandas as pd

    pictures = manifest if isinstance(manifest, Pictures) else Pictures([manifest], lambda: [manifest])
    sizes = {group: len(pictures.keys(*group, without=without)) for group in pictures.groups}
    counts = {wnid: size for (split, wnid), size in sizes.items() if split == "train" and size}
    if not counts and not spec.names_classes:
        raise _no_training_images(sizes, left_out=bool(without))
    choice = choose_classes(counts, catalog, spec)
    home = {wnid: synset.wnid for synset in choice.catalog for wnid in choice.members[synset.wnid]}
    made = spec.part_splits()
    kept: dict[str, str] = {}
    for members in choice.members.values():
        for split, limit in (("train", spec.per_class), ("val", spec.val_per_class), ("test", None)):
            keys = {wnid: pictures.keys(split, wnid, without=without) for wnid in members}
            if split == "train" and made:
                parts = choose_pictures(keys, limit, seed=spec.seed, shares=spec.shares)
                for part, name in zip(parts, made, strict=True):
                    kept |= dict.fromkeys(part, name)
            elif split not in made:
                # A split that is made of the training images takes the place of the given one.
                kept |= dict.fromkeys(choose_pictures(keys, limit, seed=spec.seed)[0], split)
    pieces = [
        piece[[key in kept for key in piece["key"].tolist()]]
        for piece in pictures.rows()
        if not home.keys().isdisjoint(piece["wnid"].tolist())
    ]
    if sum(map(len, pieces)) != len(kept):
        raise LockedError("another process changed the manifest while it was read", "run the same command again")
    rows = pd.concat(pieces)
    rows = rows.assign(split=rows["key"].map(kept), wnid=rows["wnid"].map(home))
    return Selection(
        manifest=_ordered(rows, choice.catalog),
        catalog=choice.catalog,
        passed_over=choice.passed_over,
        short=choice.short,
        unlabelled=_sums(sizes, lambda split, wnid: not wnid and split not in made),
        untrained={}
        if spec.names_classes
        else _sums(sizes, lambda split, wnid: bool(wnid) and wnid not in counts and split not in made),
        replaced=_sums(sizes, lambda split, wnid: wnid in home and split in made and split != "train"),
        left_out=sum(len(pictures.keys(*group)) - size for group, size in sizes.items()) if without else 0,
    )


def _sums(sizes: Mapping[tuple[str, str], int], counts: Callable[[str, str], bool]) -> dict[str, int]:
    """How many rows the groups that count have, by split."""
    sums: dict[str, int] = {}
    for (split, wnid), size in sizes.items():
        if size and counts(split, wnid):
            sums[split] = sums.get(split, 0) + size
    return dict(sorted(sums.items(), key=lambda item: SPLITS.index(item[0])))


def _no_training_images(sizes: Mapping[tuple[str, str], int], *, left_out: bool) -> UsageError:
    there = " and ".join(f"{number:,} {split}" for split, number in _sums(sizes, lambda *_: True).items())
    return UsageError(
        f"there is no training image to choose from, but {there or 'no'} images",
        "drop or exclude fewer"
        if left_out
        else "adopt a source that has them with `imgprep fetch --from PATH --overwrite`",
    )


def _ordered(rows: pd.DataFrame, catalog: Catalog) -> pd.DataFrame:
    """The rows with the labels of a catalog, in the order of a manifest."""
    labels = {synset.wnid: synset.index for synset in catalog}
    places = {split: place for place, split in enumerate(SPLITS)}
    rows = rows.assign(label=rows["wnid"].map(labels).astype("int64"), place=rows["split"].map(places))
    rows = rows.sort_values(["place", "label", "key"], kind="stable").drop(columns="place")
    return rows.reset_index(drop=True)


def combine(
    operation: Operation, first: tuple[pd.DataFrame, Catalog], second: tuple[pd.DataFrame, Catalog]
) -> Selection:
    """Combine two manifests, each with its classes, by their keys; pure.

    Where both have the same classes, or the result has only classes of the first, they stay in the order of the first;
    else they are sorted by wnid, so that the order of the two does not matter.

    Args:
        operation: ``union``, ``intersect`` or ``difference``.
        first: Where a class has a name in both, this one's counts.
        second: Of a difference, only its keys count.

    Raises:
        ContradictionError: A picture is in both with another split, class or CRC-32.
        UsageError: Nothing is left.
    """
    import pandas as pd

    one, other = first[0], second[0]
    if operation != "difference":
        _check_agreement(one, other)
    common = one["key"].isin(other["key"])
    if operation == "union":
        rows = pd.concat([one, other[~other["key"].isin(one["key"])]], ignore_index=True)
    else:
        rows = one[common] if operation == "intersect" else one[~common]
    if rows.empty:
        raise UsageError(f"the {operation} of these subsets is empty", "choose others")
    names = {synset.wnid: synset.name for synset in (*second[1], *first[1])}
    here = set(rows["wnid"])
    wnids = [synset.wnid for synset in first[1] if synset.wnid in here]
    if len(wnids) < len(here):
        wnids = sorted(here)
    catalog = Catalog(Synset(wnid, label, names[wnid]) for label, wnid in enumerate(wnids))
    return Selection(manifest=_ordered(rows, catalog), catalog=catalog)


def _check_agreement(one: pd.DataFrame, other: pd.DataFrame) -> None:
    both = one.merge(other, on="key", suffixes=("", "_other"))
    differs = (both["split"] != both["split_other"]) | (both["wnid"] != both["wnid_other"])
    known = both["crc32"].notna() & both["crc32_other"].notna()
    differs |= known & (both["crc32"] != both["crc32_other"]).fillna(value=False)
    if differs.any():
        row = both[differs].iloc[0]
        raise ContradictionError(
            f"{int(differs.sum()):,} pictures are not the same in both subsets, such as {row['key']}:"
            f" {row['split']} {row['wnid']} in the first, {row['split_other']} {row['wnid_other']} in the second",
            "take them out of one of the subsets with `imgprep subset difference`",
        )


@dataclass(frozen=True, kw_only=True)
class SubsetResult:
    """What ``subset`` did; ``selection`` is None when the subset was there before. ``line`` reproduces it."""

    action: Action
    folder: Path
    digest: str
    line: str
    selection: Selection | None


def load_manifest(
    workspace: Workspace, parent: str | None, *, of_any_source: bool = False
) -> tuple[pd.DataFrame, Catalog, dict[str, str]]:
    """Like :func:`open_manifest`, with the manifest as one table."""
    import pandas as pd

    pictures, catalog, inputs = open_manifest(workspace, parent, of_any_source=of_any_source)
    return pd.concat(list(pictures.rows())), catalog, inputs


def open_manifest(
    workspace: Workspace, parent: str | None, *, of_any_source: bool = False
) -> tuple[Pictures, Catalog, dict[str, str]]:
    """Read what a subset is chosen from: the whole catalog with its validation labels, or another subset.

    Args:
        workspace: Where they are.
        parent: Name of the other subset, None for the catalog.
        of_any_source: Whether that may have been chosen from another source than the one of now.

    Returns:
        The pictures, their classes, and digests of the files read and of the source behind them, by name.

    Raises:
        MissingInputError: The stage that writes it has not run.
        ContradictionError: The other subset was chosen from another source.
        DamagedError: A table is damaged.
    """
    if parent is not None:
        folder = workspace.subset(parent)
        made_by = f"imgprep subset --name {parent}"
        pictures = _read_pictures(folder / "manifest.csv", made_by=made_by)
        catalog = read_catalog(folder / "classes.csv", made_by=made_by)
        source = read_receipt(folder, "subset")["inputs"].get("source")
        if not of_any_source and source != read_source_record(workspace).fingerprint:
            raise ContradictionError(
                f"the subset {parent} was chosen from another source than the one of now",
                f"choose it again: `{made_by}` with its options, and --overwrite",
            )
        return pictures, catalog, {"source": source, "manifest": sha256_file(folder / "manifest.csv")}
    folder = workspace.catalog
    pictures = _read_pictures(folder / "manifest.csv", made_by="imgprep catalog")
    catalog = read_catalog(folder / "classes.csv")
    val = read_table(folder / "val.csv", VAL_COLUMNS, made_by="imgprep annotations")
    pictures.label_val(dict(zip(val["ImageId"], val["wnid"], strict=True)))
    inputs = {name: sha256_file(folder / f"{name}.csv") for name in ("manifest", "classes", "val")}
    return pictures, catalog, inputs | {"source": read_receipt(folder, "catalog")["inputs"]["source"]}


def _read_pictures(path: Path, *, made_by: str) -> Pictures:
    return Pictures(
        read_manifest_pieces(path, made_by=made_by), lambda: read_pieces(path, MANIFEST_COLUMNS, made_by=made_by)
    )


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
    if spec.shares or spec.drop or spec.exclude:
        advice = "only classes that were fetched whole are sure to give the same"
    else:
        advice = "`imgprep fetch` with the same options adds what is missing"
    return (
        f"chosen from the part of {part.archive.name} that was fetched; the whole archive might give another choice:"
        f" {advice}"
    )


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A request and what it is answered from."""

    line: str
    options: Mapping[str, Any]
    inputs: Mapping[str, str]
    choose: Callable[[], Selection]


def _plan(workspace: Workspace, spec: SubsetSpec | CombineSpec) -> _Job:
    return _plan_combination(workspace, spec) if isinstance(spec, CombineSpec) else _plan_choice(workspace, spec)


def _plan_choice(workspace: Workspace, spec: SubsetSpec) -> _Job:
    parent, pin = split_pin(spec.parent) if spec.parent is not None else (None, "")
    _check_division(workspace, spec, parent)
    pictures, catalog, inputs = open_manifest(workspace, parent)
    cited = _cite(parent, pictures.digest(), pin) if parent is not None else None
    without: set[str] = set()
    exclude, excluded = [], []
    for text in spec.exclude:
        name, pin = split_pin(text)
        path = Path(name) if "/" in name or name.endswith(".csv") else workspace.subset(name) / "manifest.csv"
        other = _read_pictures(path, made_by="imgprep subset")
        inputs[f"exclude {name}"] = sha256_file(path)
        without.update(*(other.keys(*group) for group in other.groups))
        exclude.append(name)
        excluded.append(_cite(name, other.digest(), pin))
    if spec.drop:
        dropped, inputs["doctor"] = _read_dropped(workspace, pictures, spec.drop, without)
        without |= dropped
    spec = replace(spec, parent=parent, exclude=tuple(exclude))
    return _Job(
        line=replace(spec, parent=cited, exclude=tuple(excluded)).line,
        options={**spec.to_options(), "selection_version": SELECTION_VERSION, "from": parent},
        inputs=inputs,
        choose=lambda: select(pictures, catalog, spec, without=without),
    )


def _check_division(workspace: Workspace, spec: SubsetSpec, parent: str | None) -> None:
    """Refuse to divide by the very ranks that a subset was divided by: all would fall into one part.

    Raises:
        UsageError: The subset to choose from, or one it comes from, was divided with the same seed.
    """
    while parent is not None and spec.shares:
        options = read_receipt(workspace.subset(parent), "subset")["options"]
        if options.get("seed") == spec.seed and (options.get("split") or options.get("folds")):
            raise UsageError(
                f"the subset {parent} was divided with seed {spec.seed}, and the same ranks would not divide it again",
                "take another --seed",
            )
        parent = options.get("from")


def _plan_combination(workspace: Workspace, spec: CombineSpec) -> _Job:
    (one, one_pin), (other, other_pin) = map(split_pin, (spec.first, spec.second))
    first = load_manifest(workspace, one)
    # Of the second, only the keys count where nothing of it is taken over.
    second = load_manifest(workspace, other, of_any_source=spec.operation != "union")
    cited = replace(
        spec,
        first=_cite(one, manifest_digest(first[0]), one_pin),
        second=_cite(other, manifest_digest(second[0]), other_pin),
    )
    plain = replace(spec, first=one, second=other)
    return _Job(
        line=cited.line,
        options={**plain.to_options(), "selection_version": SELECTION_VERSION},
        inputs={**first[2], "second manifest": second[2]["manifest"]},
        choose=lambda: combine(spec.operation, first[:2], second[:2]),
    )


def _cite(name: str, digest: str, pin: str) -> str:
    """The name of a manifest with its digest, so that a line says which one it was.

    Raises:
        ContradictionError: A line says that it was another one.
    """
    digest = digest[:_PIN_DIGITS]
    if pin and pin != digest:
        raise ContradictionError(
            f"{name} has digest {digest}, the spec was made with {pin}", "choose it again from its own spec"
        )
    return f"{name}#{digest}"


def _read_dropped(
    workspace: Workspace, pictures: Pictures, drop: Sequence[str], without: Collection[str]
) -> tuple[set[str], str]:
    """The keys that are dropped for what ``imgprep doctor`` found, and the hash of its table.

    One of a pair is dropped only where the other one is here: among ``pictures`` and not among ``without``.

    Raises:
        MissingInputError: It has not run, or not looked at all of these pictures as they are now.
        DamagedError: The table is damaged.
    """
    from imgprep.findings import DOCTOR_FILE, PAIR_CODES, codes_of, drop_word, other_column, read_doctor

    path = workspace.catalog / DOCTOR_FILE
    table = read_doctor(path)
    now = {
        "source": read_source_record(workspace).fingerprint,
        "manifest": sha256_file(workspace.catalog / "manifest.csv"),
    }
    if not was_made_of(workspace.catalog, "doctor", now):
        raise MissingInputError(f"{path} is not about the source and catalog of now", "run `imgprep doctor` again")
    seen = set(table["key"])
    here = {key for piece in pictures.rows() for key in piece["key"].tolist()}
    unseen = sorted(here - seen)
    if unseen:
        raise MissingInputError(
            f"`imgprep doctor` has not seen {len(unseen):,} of the pictures, such as {unseen[0]}",
            "run `imgprep doctor` again",
        )
    here.difference_update(without)
    found = table[table["findings"] != ""]
    keys = {
        row["key"]
        for row in found.to_dict("records")
        if any(
            drop_word(code) in drop and (code not in PAIR_CODES or row[other_column(code)] in here)
            for code in codes_of(row["findings"])
        )
    }
    return keys, sha256_file(path)


def plan_subset(workspace: Workspace, spec: SubsetSpec | CombineSpec) -> Selection:
    """Choose without writing anything. Errors are those of :func:`subset`."""
    job = _plan(workspace, spec)
    return replace(job.choose(), line=job.line)


def subset(
    workspace: Workspace,
    spec: SubsetSpec | CombineSpec,
    *,
    name: str,
    overwrite: bool = False,
    digest: str = "",
) -> SubsetResult:
    """Write ``subsets/NAME/manifest.csv`` and ``classes.csv``.

    Args:
        workspace: A workspace with a catalog and annotations.
        spec: What to choose, or what to combine.
        name: Name of the new subset.
        overwrite: Replace a subset of that name that was made with other options.
        digest: The digest it must have, or how that begins; nothing is written when it has another.

    Raises:
        OutputExistsError: There is one, and it may not be replaced.
        UsageError: The spec cannot be met; see :func:`select` and :func:`combine`.
        MissingInputError: What it is chosen from is not there.
        ContradictionError: The digest is another one, here or of a subset that the spec names.
        DamagedError: A table is damaged.
    """
    folder = workspace.subset(name)
    if name in _read_subsets(spec):
        raise SpecError(f"a subset cannot be chosen from itself: {name!r}")
    job = _plan(workspace, spec)
    receipt = Receipt(stage="subset", inputs=job.inputs, options=job.options)
    if not overwrite and receipt.only_inputs_changed(folder) and _still_chosen(folder, job):
        # The source grew by what was not asked for here.
        receipt.renew(folder)
    action = receipt.decide(folder, overwrite=overwrite)
    if action == "run" and not overwrite:
        receipt.refuse_strangers(folder)
    if action == "skip":
        check_adopted(workspace)
        found = str(read_receipt(folder, "subset")["counts"].get("digest", ""))
        _check_digest(found, digest)
        return SubsetResult(action=action, folder=folder, digest=found, line=job.line, selection=None)
    selection = job.choose()
    _check_digest(selection.digest, digest)
    with staged_folder(folder) as staging:
        write_table(staging / "manifest.csv", selection.manifest)
        write_table(staging / "classes.csv", catalog_table(selection.catalog))
        counts = {"spec": job.line, "digest": selection.digest} | {s: selection.num_rows(s) for s in SPLITS}
        receipt.write(staging, ["manifest.csv", "classes.csv"], counts)
    return SubsetResult(action=action, folder=folder, digest=selection.digest, line=job.line, selection=selection)


def _read_subsets(spec: SubsetSpec | CombineSpec) -> set[str]:
    """Names that a spec reads from."""
    if isinstance(spec, CombineSpec):
        names = [spec.first, spec.second]
    else:
        names = [*spec.exclude, *([spec.parent] if spec.parent is not None else [])]
    return {split_pin(name)[0] for name in names}


def _check_digest(found: str, expected: str) -> None:
    if not found.startswith(expected):
        raise ContradictionError(
            f"this choice has digest {found[: len(expected)]}, the spec was cited with {expected}",
            "the source, or the part of it that was fetched, is not the one it was made from",
        )


def _still_chosen(folder: Path, job: _Job) -> bool:
    """Whether a job chooses now what lies in ``folder``, to the byte."""
    try:
        selection = job.choose()
    except (UsageError, ContradictionError):
        return False
    return (folder / "manifest.csv").read_bytes() == table_bytes(selection.manifest) and (
        folder / "classes.csv"
    ).read_bytes() == table_bytes(catalog_table(selection.catalog))
