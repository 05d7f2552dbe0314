"""Stage ``repair``: make a damaged folder of shards what it was, to the byte, and touch nothing else.

What the folder held is known by hash, from its index or its receipt, and how it was made is known from the subset. So
whatever is wrong is made again from what is still right: names, tables and side files from the tars, and of a tar only
those pictures are read from the source that are damaged. A file takes its name only when it has the hash it had.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from imgprep.errors import (
    ContradictionError,
    DamagedError,
    ImageError,
    ImgprepError,
    MemberError,
    MissingInputError,
    SpecError,
    UsageError,
)
from imgprep.executors import Executor, SerialExecutor
from imgprep.files import remove, sha256_bytes, write_bytes
from imgprep.index import INDEX_FILENAME, ShardIndex, ShardInfo, SplitInfo
from imgprep.interop import CARD, SUMS, side_files, side_names, write_sums
from imgprep.layouts import open_dataset
from imgprep.packing import Read
from imgprep.receipts import read_receipt
from imgprep.records import Rejected
from imgprep.salvage import (
    MadeTar,
    Target,
    TarTask,
    find_whole,
    load_rows,
    make_tar,
    make_way,
    needs,
    owner_of,
    pictures,
    place_file,
    read_rows,
    rejection,
    sha256_of,
    size_of,
    staged_name,
)
from imgprep.shard import (
    REJECTED,
    SHARD_VERSION,
    ShardRequest,
    class_infos,
    count_out,
    libraries,
    make_prepare,
    provenance,
    read_request,
    reader_of,
    samples_bytes,
    written_names,
)
from imgprep.shard_check import open_plain
from imgprep.shard_plan import Cut, ShardPlan, ShardSpec
from imgprep.stats import SILENT, Progress, Stats
from imgprep.tables import REJECTED_COLUMNS, table_bytes
from imgprep.verify import RECEIPT, Verdict, VerifySpec, verify

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from imgprep.workspace import Workspace

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_TAKEN: Final = (".tar", ".npy", ".receipt.json")
"""Ends of names that are taken for a part of the shards."""
_FOREIGN: Final = "index.receipt.json"
"""What `imgprep index` leaves beside tars of others."""
_MAX_TEXT: Final = 1 << 26
"""Bytes of an index or a list of rejects that is read."""
_AGAIN: Final = "write the shards again with `imgprep shard --overwrite`"

Action = Literal["run", "skip", "plan"]


@dataclass(frozen=True, kw_only=True)
class RepairSpec:
    """How to repair.

    Attributes:
        delete_extra: Delete tars and tables that do not belong to the shards.
        dry_run: Write nothing, and say what would be done.
    """

    delete_extra: bool = False
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What was done, or would be.

    Attributes:
        action: ``skip`` where nothing is wrong, ``plan`` for a dry run.
        folder: The folder of shards.
        verdict: What ``verify`` says after it; for a dry run, before it.
        renamed: New name to old name of files that had the bytes of another.
        shards: Tars that were written anew.
        files: Other files that were.
        extra: Tars and tables that do not belong there.
        deleted: Whether these were deleted.
        num_read: Pictures that were read from the source.
        num_taken: Pictures that were taken over from damaged tars.
        failures: What could not be repaired, file to reason.
        warnings: What may be the reason for it.
    """

    action: Action
    folder: Path
    verdict: Verdict
    renamed: Mapping[str, str] = field(default_factory=dict)
    shards: Sequence[str] = ()
    files: Sequence[str] = ()
    extra: Sequence[str] = ()
    deleted: bool = False
    num_read: int = 0
    num_taken: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def whole(self) -> bool:
        """Whether the folder is what it was."""
        return not (self.failures or self.verdict.problems)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "action": self.action,
            "folder": str(self.folder),
            "whole": self.whole,
            "dataset_digest": self.verdict.dataset_digest,
            "renamed": dict(self.renamed),
            "shards": list(self.shards),
            "files": list(self.files),
            "extra": list(self.extra),
            "deleted": self.deleted,
            "pictures_read": self.num_read,
            "pictures_taken_over": self.num_taken,
            "failures": dict(self.failures),
            "warnings": list(self.warnings),
        }


def repair(
    workspace: Workspace,
    name: str,
    spec: RepairSpec,
    *,
    executor: Executor | None = None,
    progress: Progress = SILENT,
) -> Repaired:
    """Make a damaged folder of shards what it was.

    Args:
        workspace: Holds the shards, the subset they were packed from, and its source.
        name: Name of the shards.
        spec: What else to do.
        executor: How to read and write tars; one after another when None. Threads only: they share the source.
        progress: Told of bytes that are verified and of pictures that are packed.

    Returns:
        What was done. What could not be repaired is in it, too; everything else is repaired then.

    Raises:
        MissingInputError: There are no shards, or no subset.
        UsageError: Others made the tars.
        ContradictionError: The subset, its classes, boxes or source are others than those of the shards. Nothing was
            written.
        DamagedError: Too little is left to know what the folder was, or the source changed. Nothing was written.
    """
    workspace.require()
    folder = workspace.shards(name)
    executor = executor or SerialExecutor()
    verdict = verify(folder, VerifySpec(), executor=executor, progress=progress)
    lacks_sums = verdict.index is not None and verdict.index.spec.get("side_files") and not (folder / SUMS).exists()
    if not verdict.problems and not lacks_sums:
        return Repaired(action="skip", folder=folder, verdict=verdict)
    return _Repair(workspace, name, verdict, executor, progress).run(spec)


class _Repair:
    """The repair of one folder: first all is decided, then it is done.

    Args:
        workspace: See :func:`repair`.
        name: Likewise.
        verdict: What is wrong.
        executor: See :func:`repair`.
        progress: Likewise.
    """

    def __init__(
        self, workspace: Workspace, name: str, verdict: Verdict, executor: Executor, progress: Progress
    ) -> None:
        self.workspace, self.name, self.verdict = workspace, name, verdict
        self.executor, self.progress = executor, progress
        self.folder = verdict.folder
        self.damaged = set(verdict.damaged_files)
        self.receipt = _read_receipt(self.folder)
        self.failures: dict[str, str] = {}
        self.files: list[str] = []
        self.notes: list[str] = []
        index = verdict.index
        is_lost = index is None and self.receipt is None
        if (index is not None and "imported" in index.spec) or (is_lost and (self.folder / _FOREIGN).is_file()):
            raise UsageError(
                f"{self.folder} holds tars of others: how they were made is not known", "copy the damaged files again"
            )
        if is_lost:
            raise DamagedError(
                f"neither {INDEX_FILENAME} nor {RECEIPT} of {self.folder} can be used: what the shards were is lost",
                _AGAIN,
            )
        index_sha256 = sha256_of(self.folder / INDEX_FILENAME)
        claimed = self._claimed(INDEX_FILENAME)
        is_outvoted = bool(claimed) and index_sha256 not in claimed
        told = self._claimed(RECEIPT)
        self.is_vouched = bool(told) and sha256_of(self.folder / RECEIPT) in told
        # An index that its receipt disowns cannot speak against it: to know whether it is forged, it is made again.
        disowns = is_outvoted and not told and index_sha256 not in self._claimed(INDEX_FILENAME, by=RECEIPT)
        self.is_sound = self.receipt is not None and (RECEIPT not in self.damaged or self.is_vouched or disowns)
        by_receipt = index is None or (is_outvoted and self.is_sound)
        options = self.receipt["options"] if by_receipt and self.receipt is not None else None
        self.spec = _parse_options(options or (index.spec if index is not None else {}))
        self.request = self._find_request(index)
        self.plans = self.request.plan(self.spec)
        if is_outvoted and index is not None:
            index = self._settle(index, by_receipt=by_receipt)
        self.index = index
        splits = index.splits.values() if index is not None else ()
        self.num_samples = {info.filename: info.num_samples for split in splits for info in split.shards}
        self.wanted = self._list_wanted()
        self.wrong = self._find_wrong()
        if is_outvoted or self.damaged & {INDEX_FILENAME, RECEIPT, SUMS}:
            self._refuse_other_plan()
        self.blocked = {name for name in self.wrong if self._is_blocked(name)}
        self.moves = self._find_moves()
        self.returns: dict[str, str] = {}
        self.rejected = self._read_rejected()
        self.tasks: list[TarTask] = []
        self.num_read = 0

    # What the folder must hold.

    def _claimed(self, name: str, by: str = "") -> list[str]:
        """The hashes that receipt and sums, or one of them, give of a file."""
        witnesses = (by,) if by else (RECEIPT, SUMS)
        return [claim.sha256 for claim in self.verdict.claims.get(name, ()) if claim.by in witnesses]

    def _settle(self, index: ShardIndex, *, by_receipt: bool) -> ShardIndex | None:
        """What the index was, where others say that it was not what it is.

        Returns:
            The one that they know; the one that is there, if the receipt's options and the subset give just that; None
            where it is not known yet.
        """
        infos = [info for split in index.splits.values() for info in split.shards]
        num_samples = {info.filename: info.num_samples for info in infos}
        try:
            if made := self._make_index(num_samples):
                return made
            is_same = by_receipt and not self.is_vouched and index in self._indices(num_samples)
        except DamagedError:
            return None
        return index if is_same else None

    def _refuse_other_plan(self) -> None:
        """Compare the plan with tars that are whole, the last of each split: options may be forged with all hashes.

        Raises:
            DamagedError: It is not the plan they were packed by. Nothing was written.
        """
        whole = {cut.split: place for place, cut in enumerate(self.plans.cuts) if cut.filename not in self.wrong}
        for plan in (self.plans[place] for place in whole.values()):
            keys = [key for key, _, _ in pictures(self.folder / plan.filename)]
            if keys != [record.key for record in plan.records if record.key in set(keys)]:
                raise DamagedError(
                    f"{self.folder / plan.filename} holds other samples than the options of the shards and the subset"
                    " give: the options were changed",
                    _AGAIN,
                )

    def _find_request(self, index: ShardIndex | None) -> ShardRequest:
        """The subset that the shards were packed from, with all that belongs to it.

        Raises:
            ContradictionError: Something is another one by now.
        """
        inputs = self.receipt["inputs"] if self.receipt is not None else {}
        is_sound = bool(inputs) and self.is_sound
        origin = index.provenance if index is not None else {}
        cited = _entry(origin, "subset", "digest")
        manifest = _entry({"inputs": inputs}, "inputs", "subset") if is_sound or index is None else None
        folder = self.workspace.root / "subsets"
        others = (
            sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
        )
        for name in (self.name, *others):
            try:
                found = read_receipt(self.workspace.subset(name), "subset")
            except (ImgprepError, OSError):
                continue
            its = _entry(found["outputs"], "manifest.csv", "sha256"), found["counts"].get("digest")
            if (manifest and manifest == its[0]) or (not manifest and cited and cited == its[1]):
                break
        else:
            if not others:
                raise MissingInputError(
                    f"{folder} has no subset, and {self.folder} was packed from one",
                    f"choose it again with `imgprep subset`: {_entry(origin, 'subset', 'spec') or 'the same options'}",
                )
            raise ContradictionError(
                f"{self.folder} was packed from another subset than {', '.join(others[:5])}",
                f"choose that one again: {_entry(origin, 'subset', 'spec') or 'with the same options'}",
            )
        request = read_request(self.workspace, self.spec, subset=name)
        self._refuse_others(request, inputs, index, is_sound=is_sound)
        return request

    def _refuse_others(
        self, request: ShardRequest, inputs: Mapping[str, Any], index: ShardIndex | None, *, is_sound: bool
    ) -> None:
        """Compare all inputs with those of the shards, as far as anything tells them."""
        now = request.receipt.inputs
        others = [name for name in sorted({*now, *inputs}) if now.get(name) != inputs.get(name)]
        if not is_sound:
            # Then the index has a say, too.
            listing = _entry(index.provenance, "source", "listing_sha256") if index is not None else None
            same = {
                "subset": True,
                "boxes": True,
                "classes": index is not None and class_infos(request.catalog) == index.classes,
                "source": listing == request.source.listing_sha256,
            }
            others = [name for name in others if not same.get(name, index is None)]
        # A manifest with checksums says what every picture is, whatever else the source holds by now.
        others = [name for name in others if name != "source" or not request.given.checked]
        if others:
            raise ContradictionError(
                f"{self.folder} was packed from other inputs than are here now; others are: {', '.join(others)}",
                f"bring them back, or {_AGAIN}",
            )

    def _make_index(self, num_samples: Mapping[str, int]) -> ShardIndex | None:
        """The index from the plan and the hashes that others have; None where it is not the one they know.

        Args:
            num_samples: Samples of each tar.
        """
        claimed = self._claimed(INDEX_FILENAME)
        indices = self._indices(num_samples)
        return next((one for one in indices if not claimed or sha256_bytes(one.to_json().encode()) in claimed), None)

    def _indices(self, num_samples: Mapping[str, int]) -> Iterator[ShardIndex]:
        """What the index may have been; where samples came from is told by the source, the old index or the card."""
        splits = {}
        for split, cuts in groupby(self.plans.cuts, key=lambda cut: cut.split):
            shards = []
            for cut in cuts:
                target = self._target(cut.filename)
                size = target.num_bytes if target.num_bytes is not None else size_of(self.folder / cut.filename)
                shards.append(
                    ShardInfo(
                        filename=cut.filename,
                        num_samples=num_samples.get(cut.filename, 0),
                        num_bytes=size,
                        sha256=target.sha256,
                    )
                )
            table = f"{split}.samples.npy"
            splits[split] = SplitInfo(
                num_samples=sum(shard.num_samples for shard in shards),
                samples_filename=table,
                samples_sha256=self._target(table).sha256,
                shards=tuple(shards),
            )
        now = provenance(self.request.source, self.request.subset)
        for origin in (now, _read_provenance(self.folder), _read_card(self.folder, now)):
            yield ShardIndex(
                classes=class_infos(self.request.catalog),
                splits=splits,
                spec=dict(self.request.receipt.options),
                provenance=origin,
            )

    def _target(self, name: str) -> Target:
        """What receipt or sums say of a file."""
        claims = self.verdict.claims.get(name, ())
        for by in (RECEIPT, SUMS):
            for claim in claims:
                if claim.by == by:
                    return Target(claim.sha256, claim.num_bytes)
        raise DamagedError(f"nothing says any more what {self.folder / name} was", _AGAIN)

    def _list_wanted(self) -> dict[str, Target]:
        """Hash and size of every tar and table."""
        if self.index is None:
            splits = dict.fromkeys(cut.split for cut in self.plans.cuts)
            names = [f"{split}.samples.npy" for split in splits] + [cut.filename for cut in self.plans.cuts]
            return {name: self._target(name) for name in names}
        wanted: dict[str, Target] = {}
        for split in self.index.splits.values():
            wanted[split.samples_filename] = Target(split.samples_sha256)
            for info in split.shards:
                wanted[info.filename] = Target(info.sha256, info.num_bytes)
        if {cut.filename for cut in self.plans.cuts} != {name for name in wanted if name.endswith(".tar")}:
            raise ContradictionError(
                f"{self.folder} has other tars than its subset gives with the same options", _AGAIN
            )
        return wanted

    def _find_wrong(self) -> set[str]:
        """Tars and tables that are not what they must be."""
        told = self.verdict.claims
        suspects = [
            name
            for name, target in self.wanted.items()
            if name in self.damaged or target.sha256 != next((claim.sha256 for claim in told.get(name, ())), "")
        ]
        return {name for name in suspects if not self.wanted[name].is_met(self.folder / name)}

    def _extra(self) -> list[str]:
        """Files that readers or ``verify`` would take for a part of the shards."""
        names = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
        return [n for n in names if n.endswith(_TAKEN) and n not in self.wanted and n != RECEIPT]

    def _find_moves(self) -> dict[str, str]:
        """Wrong files whose bytes lie under another name: in another wrong one, or in one that does not belong here."""
        moves = {
            name: staged_name(name)
            for name in sorted(self.wrong - self.blocked)
            if self.wanted[name].is_met(self.folder / staged_name(name))
        }
        pool: dict[str, list[str]] = {}
        sizes = {self.wanted[name].num_bytes for name in self.wrong}
        for stray in sorted(self.wrong) + self._extra():
            path = self.folder / stray
            if size_of(path) in sizes or (None in sizes and stray.endswith(".npy")):
                pool.setdefault(sha256_of(path), []).append(stray)
        pool.pop("", None)
        for name in sorted(self.wrong - moves.keys() - self.blocked):
            if strays := pool.get(self.wanted[name].sha256):
                moves[name] = strays.pop()
        return moves

    def _read_rejected(self) -> dict[str, Rejected] | None:
        """The rejected by key, where their list is what it was."""
        claimed = self._claimed(REJECTED)
        path = self.folder / REJECTED
        if sha256_of(path) not in claimed:
            return None
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
        if not rows or rows[0] != list(REJECTED_COLUMNS) or any(len(row) != len(REJECTED_COLUMNS) for row in rows):
            return None
        return {row[0]: Rejected(*row) for row in rows[1:]}

    def _rejected_in(self, plan: ShardPlan, num_samples: int | None) -> dict[str, Rejected] | None:
        """The rejected of one tar, as far as they are known without looking at its pictures."""
        if self.rejected is not None:
            return {record.key: self.rejected[record.key] for record in plan.records if record.key in self.rejected}
        return {} if num_samples == len(plan.records) else None

    # Doing it.

    def run(self, spec: RepairSpec) -> Repaired:
        """Do it, or only look at what is to be done."""
        tables = self._load_tables(self.moves)
        to_write = self.wrong - self.moves.keys()
        cuts = {cut.filename: place for place, cut in enumerate(self.plans.cuts)}
        names = sorted(to_write & cuts.keys() - self.blocked, key=cuts.__getitem__)
        plans = [self.plans[cuts[name]] for name in names]
        strayed = self._find_strayed(plans)
        self.tasks = [self._survey(plan, tables, strayed.get(plan.filename, ())) for plan in plans]
        strays = self._extra()
        extra = [name for name in strays if name not in self.moves.values()]
        # What is a folder was never written here.
        folders = [n for n in extra if (self.folder / n).is_dir() and not (self.folder / n).is_symlink()]
        refused = dict.fromkeys(folders if spec.delete_extra else (), "is a folder, and not of imgprep: move it away")
        extra = [name for name in extra if name not in refused]
        others = (self.damaged | to_write) - cuts.keys() - set(strays)
        if self.is_vouched:
            others -= {RECEIPT}
        with contextlib.ExitStack() as stack:
            read, gone = self._open_source(stack)
            if spec.dry_run:
                self.failures |= refused
                return self._forecast(others, extra, gone)
            made = self._write(others, read, gone)
        deleted = spec.delete_extra and not self.failures
        for name in extra if deleted else ():
            (self.folder / name).unlink(missing_ok=True)
        self.failures |= refused
        self._remove_staged()
        verdict = verify(
            self.folder, VerifySpec(), executor=self.executor, progress=self.progress, known=self._still_whole()
        )
        done = [one for one in made if not one.failure]
        return Repaired(
            action="run",
            folder=self.folder,
            verdict=verdict,
            renamed=self.moves,
            shards=[one.filename for one in done],
            files=sorted(self.files),
            extra=extra,
            deleted=deleted,
            num_read=self.num_read,
            num_taken=sum(one.num_taken for one in done),
            failures=self.failures,
            warnings=self._warnings(),
        )

    def _remove_staged(self) -> None:
        """Remove what a killed run left of the files of the shards; the files of others may have such names, too."""
        index = self.index
        names = {*self.wanted, INDEX_FILENAME, RECEIPT, REJECTED, SUMS}
        if index is not None:
            names.update(side_names(index))
        for name in names - self.failures.keys():
            path = self.folder / name
            # A tar is written beside its staged name.
            for left in (path.with_name(staged_name(path.name)), path.with_name(staged_name(staged_name(path.name)))):
                if left.is_file() and not any(parent.is_symlink() for parent in self._parents(name)):
                    left.unlink()

    def _forecast(self, others: Collection[str], extra: Sequence[str], gone: str) -> Repaired:
        """What would be done."""
        lost = {task.plan.filename: needs(task, gone) for task in self.tasks if task.num_read and gone}
        tasks = [task for task in self.tasks if task.plan.filename not in lost]
        return Repaired(
            action="plan",
            folder=self.folder,
            verdict=self.verdict,
            renamed=self.moves,
            shards=[task.plan.filename for task in tasks],
            files=sorted(set(others) - self.moves.keys() - self.blocked),
            extra=extra,
            num_read=sum(task.num_read for task in tasks),
            num_taken=sum(len(task.kept) for task in tasks),
            failures=self.failures | lost,
            warnings=self._warnings(),
        )

    def _open_source(self, stack: contextlib.ExitStack) -> tuple[Read | None, str]:
        """How to read from the source, where that may be needed; None where not, or where it is gone, and why."""
        # Boxes that are taken over may turn out to be damaged.
        if not self._short() and not any(task.num_read or task.kept_boxes for task in self.tasks):
            return None, ""
        try:
            return reader_of(stack.enter_context(open_dataset(self.workspace)[0])), ""
        except MissingInputError as error:
            return None, error.what

    def _short(self) -> list[Cut]:
        """Tars that are whole, but from which pictures were left out that are not known."""
        if self.rejected is not None:
            return []
        tasks = {task.plan.filename for task in self.tasks}
        cuts = [cut for cut in self.plans.cuts if cut.filename not in tasks]
        return [cut for cut in cuts if self.num_samples.get(cut.filename) != cut.num_samples]

    def _warnings(self) -> list[str]:
        """Libraries that make the pictures, where they are others than then, and what else is to be known."""
        origin = (
            self.index.provenance if self.index is not None else _read_card(self.folder, {"libraries": libraries()})
        )
        then = origin.get("libraries")
        then = then if isinstance(then, dict) else {}
        return self.notes + [
            f"{name} was {then[name]}, now {version}"
            for name, version in libraries().items()
            if then.get(name, version) != version
        ]

    def _still_whole(self) -> list[str]:
        """Tars that need not be read once more: nothing was wrong with them, nor with what they were compared with."""
        was_usable = self.verdict.index is not None and self.verdict.index == self.index
        if not was_usable or any(name.endswith(".npy") for name in self.wrong):
            return []
        return [n for n in self.wanted if n.endswith(".tar") and n not in self.wrong and n not in self.damaged]

    def _load_tables(self, places: Mapping[str, str]) -> dict[str, NDArray[np.void]]:
        """The rows of each split; of a damaged table, what can be read as rows.

        Args:
            places: Where tables lie that are under another name.
        """
        splits = dict.fromkeys(cut.split for cut in self.plans.cuts)
        names = {split: f"{split}.samples.npy" for split in splits}
        most = self.plans.num_records
        return {split: load_rows(self.folder / places.get(name, name), most) for split, name in names.items()}

    def _find_strayed(self, plans: Sequence[ShardPlan]) -> dict[str, list[str]]:
        """Damaged files that may have pictures of a tar under the name of another, by the name of that tar."""
        owners = {record.key: plan.filename for plan in plans for record in plan.records}
        strayed: dict[str, list[str]] = {}
        for name in sorted(self.wrong - set(self.moves.values())) if plans else ():
            if name.endswith(".tar"):
                owner = owner_of(self.folder / name, owners)
                strayed.setdefault(owner, []).append(name)
        return strayed

    def _survey(self, plan: ShardPlan, tables: Mapping[str, NDArray[np.void]], strayed: Sequence[str]) -> TarTask:
        """Look for what is whole in a damaged tar, also under names that are not its own.

        Args:
            plan: What the tar held.
            tables: The rows of each split.
            strayed: Where else its pictures may lie.
        """
        table, rows = f"{plan.split}.samples.npy", tables[plan.split]
        is_trusted = table not in self.wrong or table in self.moves
        rows = rows[rows["shard"] == plan.number]
        name = plan.filename
        num_samples = self.num_samples.get(name)
        rejected = self._rejected_in(plan, len(rows) if num_samples is None and is_trusted else num_samples)
        target = self.wanted[name]
        # What lies there may be another tar that is about to get its name back.
        own = [] if name in self.moves.values() else [name]
        places = [*own, *(one for one in strayed if one != name), staged_name(name)]
        found = [
            (place, find_whole(self.folder / place, plan, rows, target, rejected, is_trusted=is_trusted))
            for place in places
        ]
        place, kept = max(found, key=lambda one: len(one[1]))
        if kept and place != name:
            self.returns[name] = place
        return TarTask(plan=plan, target=target, kept=kept, rejected=rejected)

    def _write(self, others: Collection[str], read: Read | None, gone: str) -> list[MadeTar]:
        """Write everything that is wrong, in the order in which one follows from the other."""
        self._rename()
        made = self._write_tars(read, gone)
        self.num_read = sum(one.num_read for one in made)
        self.failures |= {one.filename: one.failure for one in made if one.failure}
        if self.rejected is None:
            self.num_read += self._write_rejected(made, read, gone)
        self._write_tables({one.filename: one.rows for one in made if not one.failure})
        self._write_index()
        if self.index is not None and not self.failures:
            self._write_beside(self.index)
        for name in others:
            if self.failures and name not in (*self.files, *self.moves):
                self.failures.setdefault(name, "can be made when the others are whole")
        return made

    def _rename(self) -> None:
        """Give files their names back, damaged tars too; the bytes are always there under one name or the other."""
        moves = self.moves | self.returns
        for name, stray in moves.items():
            (self.folder / stray).rename(self.folder / staged_name(name))
        for name in moves:
            place_file(self.folder / staged_name(name), self.folder / name)

    def _write_tars(self, read: Read | None, gone: str) -> list[MadeTar]:
        if not self.tasks:
            return []
        function = partial(make_tar, folder=self.folder, read=read, gone=gone, prepare=make_prepare(self.spec))
        self.progress.begin("repair", sum(len(task.plan.records) for task in self.tasks), "images")
        try:
            with contextlib.closing(self.executor.map(function, self.tasks, tick=self.progress.advance)) as results:
                return list(results)
        finally:
            self.progress.finish()

    def _write_rejected(self, made: Sequence[MadeTar], read: Read | None, gone: str) -> int:
        """Find out again what cannot be used, and why: what is planned and not in its tar.

        Returns:
            How many pictures were read from the source for that.
        """
        if self.failures:
            return 0
        found = {one.filename: list(one.rejected) for one in made}
        lacking = {cut.filename for cut in self._short()}
        prepare, num_read = make_prepare(self.spec), 0
        for plan in self.plans if lacking else ():
            keys = {key for key, _, _ in pictures(self.folder / plan.filename)} if plan.filename in lacking else None
            for record in plan.records if keys is not None else ():
                if keys is None or record.key in keys:
                    continue
                if read is None:
                    self.failures[REJECTED] = f"why {record.path} was rejected is to be seen in the source, but {gone}"
                    return num_read
                num_read += 1
                try:
                    prepare(read(record.path))
                except (ImageError, MemberError) as error:
                    found.setdefault(plan.filename, []).append(rejection(record, error))
        rejected = [one for cut in self.plans.cuts for one in found.get(cut.filename, ())]
        self._put(REJECTED, _rejected_bytes(rejected), self._claimed(REJECTED))
        self.rejected = {one.key: one for one in rejected}
        return num_read

    def _parents(self, name: str) -> list[Path]:
        """Folders inside that of the shards in which a file lies, the innermost first."""
        return [self.folder / parent for parent in Path(name).parents if parent != Path()]

    def _sha256(self, name: str) -> str:
        """SHA-256 of a file; empty where there is none, also where only a link leads to it."""
        is_linked = any(parent.is_symlink() for parent in self._parents(name))
        return "" if is_linked else sha256_of(self.folder / name)

    def _is_blocked(self, name: str) -> bool:
        """Whether a folder with something in it lies where a file must be, which is then said."""
        path = self.folder / name
        is_blocked = path.is_dir() and not path.is_symlink() and any(path.iterdir())
        if is_blocked:
            self.failures[name] = "a folder with files of others lies in its place: move it away"
        return is_blocked

    def _put(self, name: str, content: bytes, hashes: Collection[str]) -> None:
        """Write a file if it is not there with these bytes, and these bytes are those that others know."""
        path, sha256 = self.folder / name, sha256_bytes(content)
        if self._sha256(name) == sha256:
            return
        if hashes and sha256 not in hashes:
            self.failures[name] = "comes out with other bytes than it had"
            return
        for parent in reversed(self._parents(name)):
            if parent.is_symlink() or not parent.is_dir():
                remove(parent)
                parent.mkdir()
        if self._is_blocked(name):
            return
        make_way(path)
        write_bytes(path, content)
        self.files.append(name)

    def _write_tables(self, made: Mapping[str, NDArray[np.void]]) -> None:
        """Write the sample tables anew from the tars, which have the right bytes by now."""
        for split, cuts in groupby(self.plans.cuts, key=lambda cut: cut.split):
            name = f"{split}.samples.npy"
            if name not in self.wrong or name in self.moves or name in self.blocked:
                continue
            numbers = list(cuts)
            if any(cut.filename in self.failures for cut in numbers):
                self.failures[name] = "can be made when its tars are whole"
                continue
            plans = {plan.filename: plan for plan in self.plans if plan.split == split and plan.filename not in made}
            rows = [
                made[cut.filename] if cut.filename in made else read_rows(self.folder, plans[cut.filename])
                for cut in numbers
            ]
            self._put(name, samples_bytes(rows), [self.wanted[name].sha256])

    def _write_index(self) -> None:
        if self.index is None:
            tables = self._load_tables({})
            if not self.failures:
                counts = {
                    cut.filename: int(np.count_nonzero(tables[cut.split]["shard"] == cut.number))
                    for cut in self.plans.cuts
                }
                self.index = self._make_index(counts)
            if self.index is None:
                self.failures[INDEX_FILENAME] = (
                    "can be made when the others are whole"
                    if self.failures
                    else "comes out with other bytes than it had: it names the source and the libraries of then"
                )
                return
        self._put(INDEX_FILENAME, self.index.to_json().encode(), ())

    def _write_beside(self, index: ShardIndex) -> None:
        """Side files, receipt and sums, which follow from the rest."""
        names = written_names(index)
        if self.spec.side_files:
            if self.damaged & {*side_names(index), RECEIPT, SUMS}:
                for name, content in side_files(self.folder, index):
                    hashes = self._claimed(name)
                    if (found := self._sha256(name)) not in hashes:
                        self._put(name, content, [*hashes, found] if hashes else ())
            names += side_names(index)
        known = {name: target.sha256 for name, target in self.wanted.items()}
        if not self.failures:
            self._write_receipt(index, names, known)
        if self.spec.side_files and not self.failures:
            before = sha256_of(self.folder / SUMS)
            if self._is_blocked(SUMS):
                return
            if not before or self.files or self.damaged & {SUMS, RECEIPT}:
                make_way(self.folder / SUMS)
                write_sums(self.folder, [*names, RECEIPT], hashes=known)
            if sha256_of(self.folder / SUMS) != before:
                self.files.append(SUMS)

    def _write_receipt(self, index: ShardIndex, names: list[str], hashes: Mapping[str, str]) -> None:
        """Write the receipt anew, unless it is what it must be."""
        if self.is_vouched:
            return
        is_sound = RECEIPT not in self.damaged
        claimed = self._claimed(RECEIPT) or ([sha256_of(self.folder / RECEIPT)] if is_sound else [])
        contents = []
        try:
            for content in self._receipts(index, names, hashes):
                if sha256_bytes(content) in claimed:
                    self._put(RECEIPT, content, ())
                    return
                contents.append(content)
        except DamagedError as error:
            self.failures[RECEIPT] = error.what
            return
        # Nothing vouches for it, or what did is itself wrong: then what can be counted is counted.
        content = contents[len(contents) // 2]
        if claimed and not is_sound and sha256_of(self.folder / RECEIPT) != sha256_bytes(content):
            self.notes.append(f"{RECEIPT} is not, byte for byte, what it was: it names the source as it is now")
        self._put(RECEIPT, content, ())

    def _receipts(self, index: ShardIndex, names: list[str], hashes: Mapping[str, str]) -> Iterator[bytes]:
        """What the receipt may have said, the likeliest first: two things in it are known to it alone.

        These are the fingerprint of the source, which may have grown since, and how many pictures kept their bytes.
        """
        receipt, said = self.request.receipt, self.receipt or {"inputs": {}, "counts": {}}
        told = _entry(said, "inputs", "source") or ""
        now = receipt.inputs["source"]
        for count in (lambda: said["counts"].get("unchanged", 0), self._count_unchanged):
            unchanged = count()
            for source in (told if _HASH.fullmatch(told) else now, now):
                stats = Stats({"in": self.plans.num_records})
                count_out(stats, index, list((self.rejected or {}).values()))
                stats.count("unchanged", unchanged if type(unchanged) is int else 0)
                inputs = {**receipt.inputs, "source": source}
                document = replace(receipt, inputs=inputs).document(self.folder, names, stats.to_dict(), hashes=hashes)
                yield (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()

    def _count_unchanged(self) -> int:
        """How many pictures have the size of their file, and its CRC-32 where that is known."""
        count = 0
        tables = self._load_tables({})
        for plan in self.plans:
            rows = tables[plan.split]
            kept = [record for record in plan.records if record.key not in (self.rejected or ())]
            rows = rows[rows["shard"] == plan.number]
            if len(rows) != len(kept):
                raise DamagedError(f"the options give {len(kept):,} samples of {plan.filename}, it has {len(rows):,}")
            for record, row in zip(kept, rows.tolist(), strict=True):
                count += row[2] == record.num_bytes and record.crc32 in (None, row[4])
        return count


def _rejected_bytes(rejected: Iterable[Rejected]) -> bytes:
    import pandas as pd

    rows = [(one.key, one.split, one.path, one.reason) for one in rejected]
    return table_bytes(pd.DataFrame(rows, columns=list(REJECTED_COLUMNS)))


# What others wrote, maybe damaged.


def _read_receipt(folder: Path) -> dict[str, Any] | None:
    document = _read_json(folder / RECEIPT)
    parts = {name: document.get(name) for name in ("inputs", "options", "outputs", "counts")}
    return parts if all(isinstance(part, dict) for part in parts.values()) else None


def _read_provenance(folder: Path) -> dict[str, Any]:
    """What a damaged index says of where the samples came from."""
    origin = _read_json(folder / INDEX_FILENAME).get("provenance")
    return origin if isinstance(origin, dict) else {}


def _read_card(folder: Path, now: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the dataset card says of where the samples came from; ``now`` has the names of what it may tell."""
    rows = re.findall(rb"^\| (\w+): (\w+) \| (.*) \|$", _read_bytes(folder / CARD), re.MULTILINE)
    told = {
        (part.decode(), name.decode()): re.sub(r"\\(.)", r"\1", value.decode("utf-8", "replace"))
        for part, name, value in rows
    }
    return {part: {name: told.get((part, name), value) for name, value in now[part].items()} for part in now}


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a regular file; an empty one where there is none."""
    try:
        document = json.loads(_read_bytes(path))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _read_bytes(path: Path) -> bytes:
    """A text in a regular file; nothing where there is none."""
    try:
        handle, _ = open_plain(path)
        with open(handle, "rb") as file:  # noqa: PTH123  # a handle, not a path
            return file.read(_MAX_TEXT)
    except (OSError, ValueError):
        return b""


def _entry(document: Mapping[str, Any], part: str, name: str) -> str | None:
    """A text in a part of a document."""
    values = document.get(part)
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, str) else None


def _parse_options(options: Mapping[str, Any]) -> ShardSpec:
    """The options that shards were made with.

    Raises:
        DamagedError: These are none, or of another version of imgprep.
    """
    given = dict(options)
    version = given.pop("shard_version", None)
    if version != SHARD_VERSION:
        raise DamagedError(
            f"the shards were made by another version of imgprep: shard_version {version}, now {SHARD_VERSION}",
            f"repair them with that one, or {_AGAIN}",
        )
    try:
        spec = ShardSpec(**given)
    except (TypeError, SpecError) as error:
        raise DamagedError(f"the options of the shards are damaged ({error})", _AGAIN) from None
    if any(isinstance(value, float) for value in given.values()):
        raise DamagedError("the options of the shards are damaged: all numbers must be whole", _AGAIN)
    return spec
