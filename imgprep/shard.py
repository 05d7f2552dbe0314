"""Stage ``shard``: write the pictures of a subset into WebDataset tars, with an index that makes them random-access.

The plan fixes which key goes into which tar, in a seeded order that mixes the classes, before any byte is written. Tars
that are finished stay finished: a run that was killed goes on where it was, and ends in the same bytes. The folder
appears under its name only when every tar, the sample tables and the index are whole.
"""

from __future__ import annotations

import contextlib
import functools
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
import PIL
import simplejpeg

from imgprep.errors import (
    AccessError,
    ContradictionError,
    DamagedError,
    ImageError,
    MemberError,
    MissingInputError,
    OutputExistsError,
    TooManyRejectsError,
)
from imgprep.executors import Executor, SerialExecutor, Tick
from imgprep.files import publish_folder, recover_folder, remove, sha256_bytes, sha256_file, write_bytes
from imgprep.images import prepare_image
from imgprep.index import INDEX_FILENAME, ClassInfo, ShardIndex, SplitInfo
from imgprep.interop import SUMS, write_side_files, write_sums
from imgprep.layouts import open_dataset
from imgprep.packing import PackedShard, Prepare, Read, finished, keep, pack
from imgprep.receipts import Action, Receipt, read_receipt
from imgprep.records import Catalog, Rejected
from imgprep.shard_plan import (
    BESIDE_PICTURE,
    Boxes,
    PlanInput,
    ShardPlan,
    ShardPlans,
    ShardSpec,
    plan_shards,
    read_plan_input,
)
from imgprep.sources import Source
from imgprep.sources.adopted import SourceRecord, check_adopted, read_source_record
from imgprep.stats import SILENT, Progress, Stats
from imgprep.tables import read_catalog, write_rejected
from imgprep.workspace import Workspace

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARD_VERSION: Final = 2
"""Raised when the same input and options would give other bytes."""

REJECTED: Final = "rejected.csv"

_WORTH_PROCESSES: Final = 20_000
"""Copies from which on starting processes pays: that takes a third of a second, in which a thread makes thousands."""

_MEASURED: Final = 64
"""Pictures that an estimate is measured on."""


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All that ``shard`` will do: the plans, the classes, and the receipt that tells whether it was done before.

    Attributes:
        action: Whether there is anything to do.
        folder: Where the shards will lie.
        plans: The tars; empty where there is nothing to do.
        catalog: Their classes.
        receipt: What the shards answer.
        source: Where the pictures are.
        subset: ``spec`` and ``digest`` of the subset.
        overwrite: Whether an unfinished job of another request is dropped.
    """

    action: Action
    folder: Path
    plans: ShardPlans | None
    catalog: Catalog
    receipt: Receipt
    source: SourceRecord
    subset: Mapping[str, Any]
    overwrite: bool = False

    @property
    def num_records(self) -> int:
        """Records over all plans."""
        return self.plans.num_records if self.plans is not None else 0


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What ``shard`` did. ``index`` is None when the shards were there before.

    Attributes:
        action: Whether shards were written.
        folder: Where they lie.
        stats: Counts: ``in``, ``out``, ``rejected``, ``unchanged``, ``shards``, ``num_bytes``, and by split.
        index: Their index.
        rejected: What was left out.
        seconds: How long it took.
    """

    action: Action
    folder: Path
    stats: Stats
    index: ShardIndex | None
    rejected: Sequence[Rejected] = ()
    seconds: float = 0.0


def plan_job(
    workspace: Workspace, spec: ShardSpec, *, subset: str, name: str | None = None, overwrite: bool = False
) -> ShardJob:
    """Decide everything about the shards of a subset; writes nothing.

    Args:
        workspace: A workspace with that subset.
        spec: Options.
        subset: Name of the subset to pack.
        name: Name of the shards; that of the subset when None.
        overwrite: Replace shards of that name that were made with other options.

    Raises:
        MissingInputError: There is no such subset or no source.
        OutputExistsError: There are other shards of that name, and they may not be replaced.
        DamagedError: A table of the subset is damaged, or the subset was chosen from another source.
    """
    request = read_request(workspace, spec, subset=subset)
    receipt, given = request.receipt, request.given
    # Whoever keeps shards on another disk behind a link wants them there.
    target = workspace.shards(subset if name is None else name)
    target = target.resolve() if target.is_symlink() else target
    # The subset says what every picture is, to the byte: it does not matter what else the source holds by now.
    same = not overwrite and given.checked and receipt.only_inputs_changed(target, "source")
    action: Action = "skip" if same else receipt.decide(target, overwrite=overwrite)
    # Shards that were allowed more rejects do not answer a stricter request.
    if action == "skip" and _num_rejected(target) > spec.max_rejects:
        action = "run"
    if action == "skip":
        check_adopted(workspace)
    elif not overwrite:
        receipt.refuse_strangers(target)
        _refuse_other_job(receipt, target)
    return ShardJob(
        action=action,
        folder=target,
        plans=request.plan(spec) if action == "run" else None,
        catalog=request.catalog,
        receipt=receipt,
        source=request.source,
        subset=request.subset,
        overwrite=overwrite,
    )


def _num_rejected(folder: Path) -> int:
    number = read_receipt(folder, "shard")["counts"].get("rejected", 0)
    if not isinstance(number, int):
        raise DamagedError(f"the receipt in {folder} is damaged: {number!r} rejects", "run `imgprep repair`")
    return number


@dataclass(frozen=True, kw_only=True)
class ShardRequest:
    """What a subset and options come to, whatever lies in the folder of the shards.

    Attributes:
        manifest: The table of the subset.
        given: What is known of its rows.
        boxes: Bounding boxes of its samples.
        catalog: Its classes.
        source: Where the pictures are.
        subset: ``spec`` and ``digest`` of the subset.
        receipt: What the shards will answer.
    """

    manifest: Path
    given: PlanInput
    boxes: Boxes | None
    catalog: Catalog
    source: SourceRecord
    subset: Mapping[str, Any]
    receipt: Receipt

    def plan(self, spec: ShardSpec) -> ShardPlans:
        """The tars; see :func:`imgprep.shard_plan.plan_shards`."""
        return plan_shards(self.manifest, self.given, spec, self.boxes)


def read_request(workspace: Workspace, spec: ShardSpec, *, subset: str) -> ShardRequest:
    """Read a subset and what belongs to it, and check that they fit together; errors as in :func:`plan_job`.

    Args:
        workspace: A workspace with that subset.
        spec: Options.
        subset: Name of the subset.
    """
    record = read_source_record(workspace)
    folder = workspace.subset(subset)
    made_by = "imgprep subset" if subset == "main" else f"imgprep subset --name {subset}"
    path = folder / "manifest.csv"
    manifest_sha256 = _sha256(path, made_by)
    catalog = read_catalog(folder / "classes.csv", made_by=made_by)
    chosen = read_receipt(folder, "subset")
    if chosen["outputs"].get("manifest.csv", {}).get("sha256") != manifest_sha256:
        raise ContradictionError(f"{path} was changed since it was chosen", f"choose again: `{made_by} --overwrite`")
    if chosen["inputs"].get("source") != record.fingerprint:
        raise ContradictionError(
            f"the subset {folder} was chosen from another source than {record.path}",
            f"choose again from this one: `{made_by} --overwrite` with its options",
        )
    given = read_plan_input(path, catalog, spec.seed, made_by=made_by)
    boxes = _read_boxes(workspace, record, given.hashes)
    inputs = {
        "source": record.fingerprint,
        "subset": manifest_sha256,
        "classes": sha256_file(folder / "classes.csv"),
        **({"boxes": boxes.digest()} if boxes is not None else {}),
    }
    receipt = Receipt(stage="shard", inputs=inputs, options={**spec.to_options(), "shard_version": SHARD_VERSION})
    return ShardRequest(
        manifest=path,
        given=given,
        boxes=boxes,
        catalog=catalog,
        source=record,
        subset={name: chosen["counts"].get(name, "") for name in ("spec", "digest")},
        receipt=receipt,
    )


def _sha256(path: Path, made_by: str) -> str:
    try:
        return sha256_file(path)
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist", f"run `{made_by}` first") from None


def _read_boxes(workspace: Workspace, record: SourceRecord, keys: NDArray[np.uint64]) -> Boxes | None:
    """The boxes of these samples, where the annotations of this very source were read, and know any of them."""
    try:
        read = read_receipt(workspace.catalog, "annotations")["inputs"]
    except MissingInputError:
        return None
    path = workspace.catalog / "boxes.csv"
    if read.get("source") != record.fingerprint or not path.is_file():
        return None
    boxes = Boxes(path, keys)
    return boxes if len(boxes) else None


@dataclass(frozen=True)
class Packer:
    """Packs one plan after another, in whatever process it is called.

    Attributes:
        workspace: Where the source is adopted.
        folder: Folder of the tars.
        records: Folder of the job, where finished tars are noted.
        spec: Options.
        source: The source where it is open in this process; opened when it is needed where it is not.
    """

    workspace: Path
    folder: Path
    records: Path
    spec: ShardSpec
    source: Source | None = field(default=None, compare=False)

    def __call__(self, plan: ShardPlan, tick: Tick) -> PackedShard:
        """Pack a plan, or take what an earlier run has packed of it."""
        before = finished(plan, self.folder, self.records)
        if before is not None:
            for _ in plan.records:
                tick()
            return before
        path, prepare = self.folder / plan.filename, make_prepare(self.spec)
        if plan.source is not None:
            with plan.source as source:
                packed = pack(plan, path, read=reader_of(source), prepare=prepare, tick=tick)
        else:
            source = self.source or _open_source(self.workspace)
            packed = pack(plan, path, read=reader_of(source), prepare=prepare, tick=tick)
        keep(packed, self.records)
        return packed

    def __getstate__(self) -> dict[str, Any]:
        """Files that are open here are not elsewhere."""
        return {**self.__dict__, "source": None}


def reader_of(source: Source) -> Read:
    """How to read members of a source without a copy that is not needed."""
    read: Read = getattr(source, "view", source.read)
    return read


@functools.cache
def _open_source(workspace: Path) -> Source:
    """The source in a process that got its plan from another one; it stays open until the process ends."""
    return open_dataset(Workspace(workspace))[0]


def libraries() -> dict[str, str]:
    """Versions of what decides the bytes of pictures that are written anew."""
    return {"opencv": cv2.__version__, "pillow": PIL.__version__, "simplejpeg": simplejpeg.__version__}


def make_prepare(spec: ShardSpec) -> Prepare:
    """What makes the picture of a sample."""
    return functools.partial(prepare_image, spec=spec.image)


def shard(
    workspace: Workspace,
    job: ShardJob,
    spec: ShardSpec,
    *,
    executor: Executor | None = None,
    progress: Progress = SILENT,
) -> ShardResult:
    """Write the shards of a job, or what an earlier run left to be written of them.

    Args:
        workspace: The workspace of the job.
        job: From :func:`plan_job`, with the same spec.
        spec: Options.
        executor: How to run the plans; one after another when None. The bytes do not depend on it.
        progress: Told of each picture.

    Raises:
        OutputExistsError: An unfinished job of another request lies there.
        TooManyRejectsError: More pictures than allowed cannot be used. Nothing is published; the rejected are listed in
            ``NAME.rejected.csv`` beside the folder.
        DamagedError: The source changed or is damaged.
    """
    start = time.monotonic()
    folder = job.folder
    recover_folder(folder)
    if job.plans is None:
        if not _differences(job.receipt, folder):
            discard_unfinished(folder)
        return ShardResult(action="skip", folder=folder, stats=Stats(), index=None)
    source, _ = open_dataset(workspace)
    with source:
        staging, records = _begin(job)
        stats = Stats({"in": job.num_records})
        packer = Packer(workspace.root, staging, records, spec, source)
        packed = _pack_all(job.plans, packer, spec, stats, folder, executor or SerialExecutor(), progress)
        index = _build_index(job, spec, packed, staging)
        rejected = [one for result in packed for one in result.rejected]
        count_out(stats, index, rejected)
        write_rejected(staging / REJECTED, rejected)
        write_bytes(staging / INDEX_FILENAME, index.to_json().encode())
        names = written_names(index)
        if spec.side_files:
            names += write_side_files(staging, index)
        hashes = {info.filename: info.sha256 for split in index.splits.values() for info in split.shards}
        job.receipt.write(staging, names, stats.to_dict(), hashes=hashes)
        # The sums vouch for the receipt as well.
        names.append(job.receipt.path(staging).name)
        if spec.side_files:
            write_sums(staging, names, hashes=hashes)
            names.append(SUMS)
        _discard_strangers(staging, names)
        # What changed while it was read is not published.
        check_adopted(workspace)
        publish_folder(staging, folder)
    stats.count("resumed", sum(result.resumed for result in packed))
    discard_unfinished(folder)
    return ShardResult(
        action="run",
        folder=folder,
        stats=stats,
        index=index,
        rejected=rejected,
        seconds=time.monotonic() - start,
    )


def _unfinished(folder: Path) -> tuple[Path, Path]:
    """Where the tars of an unfinished job lie, and its records."""
    return folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.job")


def discard_unfinished(folder: Path) -> None:
    """Remove what a job that did not come to its end left beside ``folder``."""
    for path in _unfinished(folder):
        remove(path)
    if _rejected_beside(folder).is_file():
        _rejected_beside(folder).unlink()


def _begin(job: ShardJob) -> tuple[Path, Path]:
    """The folders to work in, with what an earlier run of the same request has finished.

    Raises:
        OutputExistsError: They hold an unfinished job of another request.
    """
    staging, records = _unfinished(job.folder)
    if not job.overwrite:
        _refuse_other_job(job.receipt, job.folder)
    if _differences(job.receipt, job.folder) != []:
        for path in (records, staging):
            remove(path)
            if path.exists():
                raise AccessError(f"{path} cannot be removed", "remove it, or choose another --name")
            path.mkdir(parents=True)
        _with_libraries(job.receipt).write(records, [], {})
    return staging, records


def _with_libraries(receipt: Receipt) -> Receipt:
    """A request with what makes the pictures: half of them made by another version would be neither."""
    versions = {f"version of {name}": version for name, version in libraries().items()}
    return Receipt(stage=receipt.stage, inputs=receipt.inputs, options={**receipt.options, **versions})


def _differences(receipt: Receipt, folder: Path) -> list[str] | None:
    """How an unfinished job beside ``folder`` differs from a request; None when there is none that can be used."""
    staging, records = _unfinished(folder)
    return _with_libraries(receipt).differences(records) if staging.is_dir() else None


def _refuse_other_job(receipt: Receipt, folder: Path) -> None:
    differences = _differences(receipt, folder)
    if differences:
        raise OutputExistsError(
            f"an unfinished job of another request lies in {_unfinished(folder)[1]}: {'; '.join(differences)}",
            "finish it with the options it was begun with, or drop it with --overwrite",
        )


def _pack_all(
    plans: ShardPlans,
    packer: Packer,
    spec: ShardSpec,
    stats: Stats,
    folder: Path,
    executor: Executor,
    progress: Progress,
) -> list[PackedShard]:
    packed: list[PackedShard] = []
    rejected: list[Rejected] = []
    num_bytes, start = 0, time.monotonic()
    progress.begin("shard", plans.num_records, "images")
    try:
        results = executor.map(packer, _with_sources(plans, packer.source), tick=progress.advance)
        # Closed before the source is: no thread may still read from it then.
        with contextlib.closing(results):
            for result in results:
                packed.append(result)
                rejected += result.rejected
                _check_rejects(rejected, spec, folder)
                stats.count("unchanged", result.unchanged)
                num_bytes += result.info.num_bytes
                progress.note(f"{num_bytes / 1e6 / (time.monotonic() - start):,.0f} MB/s")
    finally:
        progress.finish()
    return packed


def _with_sources(plans: ShardPlans, source: Source | None) -> Iterator[ShardPlan]:
    """The plans, each with an excerpt of the source where that has some: no worker need list all of it again."""
    excerpt = getattr(source, "excerpt", None)
    for plan in plans:
        yield replace(plan, source=excerpt(record.path for record in plan.records)) if excerpt is not None else plan


def _discard_strangers(staging: Path, names: Sequence[str]) -> None:
    """Remove what does not belong there, such as half a file of a run that was killed."""
    known = {staging / name for name in names}
    known |= {path.parent for path in known}
    for path in sorted(staging.rglob("*"), reverse=True):
        if path not in known:
            remove(path)


def _rejected_beside(folder: Path) -> Path:
    """Where the rejects of a job that failed are listed."""
    return folder.with_name(f"{folder.name}.rejected.csv")


def _check_rejects(rejected: Sequence[Rejected], spec: ShardSpec, folder: Path) -> None:
    if len(rejected) <= spec.max_rejects:
        return
    listing = _rejected_beside(folder)
    write_rejected(listing, rejected)
    raise TooManyRejectsError(
        f"unusable pictures: {len(rejected)} so far, allowed: {spec.max_rejects};"
        f" first {rejected[0].path}: {rejected[0].reason}",
        f"those found so far are listed in {listing}; allow more with --max-rejects",
    )


def written_names(index: ShardIndex) -> list[str]:
    """What the stage writes, side files aside, in the order of its receipt."""
    names = [INDEX_FILENAME, REJECTED]
    for split in index.splits.values():
        names += [split.samples_filename, *(info.filename for info in split.shards)]
    return names


def count_out(stats: Stats, index: ShardIndex, rejected: Sequence[Rejected]) -> None:
    """Count what came out. Nothing vanishes: what went in is in the shards or in rejected.csv.

    Args:
        stats: Holds how many went ``in``.
        index: What was packed.
        rejected: What was not.

    Raises:
        ContradictionError: Something is in neither.
        ImageError: A split is empty.
    """
    for name, split in index.splits.items():
        stats.count(name, split.num_samples)
        stats.count("out", split.num_samples)
        stats.count("shards", len(split.shards))
        stats.count("num_bytes", split.num_bytes)
    stats.count("rejected", len(rejected))
    if stats["in"] != stats["out"] + stats["rejected"]:
        raise ContradictionError(f"{stats['in']} images went in, {stats['out']} are packed, {len(rejected)} rejected")
    for name, split in index.splits.items():
        if not split.num_samples:
            first = next(entry for entry in rejected if entry.split == name)
            raise ImageError(f"not one picture of the split {name} can be used, first {first.path}: {first.reason}")


def samples_bytes(rows: Sequence[NDArray[np.void]]) -> bytes:
    """A sample table as a file."""
    file = io.BytesIO()
    np.save(file, np.concatenate(rows), allow_pickle=False)
    return file.getvalue()


def _build_index(job: ShardJob, spec: ShardSpec, packed: Sequence[PackedShard], folder: Path) -> ShardIndex:
    """The index over tars that are written, with the sample tables, which are written here."""
    assert job.plans is not None
    splits = {}
    by_split: dict[str, list[PackedShard]] = {}
    for one, result in zip(job.plans.cuts, packed, strict=True):
        by_split.setdefault(one.split, []).append(result)
    for split, results in by_split.items():
        filename = f"{split}.samples.npy"
        content = samples_bytes([result.rows for result in results])
        write_bytes(folder / filename, content)
        splits[split] = SplitInfo(
            num_samples=sum(len(result.rows) for result in results),
            samples_filename=filename,
            samples_sha256=sha256_bytes(content),
            shards=tuple(result.info for result in results),
        )
    return ShardIndex(
        classes=class_infos(job.catalog),
        splits=splits,
        spec={**spec.to_options(), "shard_version": SHARD_VERSION},
        provenance=provenance(job.source, job.subset),
    )


def class_infos(catalog: Catalog) -> tuple[ClassInfo, ...]:
    """The classes as an index has them."""
    return tuple(ClassInfo(label=s.index, wnid=s.wnid, name=s.name) for s in catalog)


def provenance(source: SourceRecord, subset: Mapping[str, Any]) -> dict[str, Any]:
    """Where samples that are packed now come from."""
    return {
        "source": {
            "name": source.name,
            "kind": source.kind,
            "layout": source.layout,
            "listing_sha256": source.listing_sha256,
        },
        "subset": dict(subset),
        "libraries": libraries(),
    }


def best_engine(job: ShardJob, spec: ShardSpec) -> str:
    """What workers are quickest: threads, which start at once, but where little is done without the interpreter lock.

    Copies spend a fifth of their time under that lock and more the smaller they are; see ADR 0004 and
    ``tests/benchmarks/shard.py``.
    """
    return "processes" if spec.images == "original" and job.num_records >= _WORTH_PROCESSES else "threads"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job will take, from some of its pictures.

    Attributes:
        num_bytes: Of all tars.
        seconds: With one worker; reading included.
        measured: Pictures it was measured on.
    """

    num_bytes: int
    seconds: float
    measured: int


def estimate(workspace: Workspace, job: ShardJob, spec: ShardSpec) -> Estimate:
    """Prepare some pictures from all over a job, and take the others to be like them; writes nothing.

    Raises:
        DamagedError: The source changed or is damaged.
    """
    if job.plans is None:
        return Estimate(num_bytes=0, seconds=0.0, measured=0)
    source, _ = open_dataset(workspace)
    prepare = make_prepare(spec)
    sizes = []
    with source:
        some = job.plans.spread(_MEASURED)
        start = time.perf_counter()
        for record in some:
            with contextlib.suppress(ImageError, MemberError):
                sizes.append(len(prepare(source.read(record.path)).jpeg))
        seconds = time.perf_counter() - start
    scale = job.num_records / max(len(some), 1)
    blocks = sum(BESIDE_PICTURE + size for size in sizes)
    return Estimate(num_bytes=round(blocks * scale), seconds=seconds * scale, measured=len(some))
