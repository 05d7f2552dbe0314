"""Stage ``shard``: write the pictures of a subset into WebDataset tars, with an index that makes them random-access.

The plan fixes which key goes into which tar, in a seeded order that mixes the classes, before any byte is written. The
folder appears under its name only when every shard, the sample tables and the index are whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, get_args

import numpy as np

from imgprep.errors import ContradictionError, ImageError, MemberError, SpecError, TooManyRejectsError, UsageError
from imgprep.executors import Executor, SerialExecutor, Tick
from imgprep.files import sha256_file, staged_folder, write_bytes
from imgprep.images import prepare_image
from imgprep.index import INDEX_FILENAME, SAMPLE_FIELDS, ClassInfo, ShardIndex, ShardInfo, SplitInfo
from imgprep.layouts import open_dataset
from imgprep.receipts import Action, Receipt, read_receipt
from imgprep.records import Catalog, Record, Rejected
from imgprep.sources import Source
from imgprep.sources.adopted import SourceRecord, check_adopted, read_source_record
from imgprep.stats import SILENT, Progress, Stats
from imgprep.tables import manifest_records, read_catalog, read_manifest, write_rejected
from imgprep.workspace import Workspace

SHARD_VERSION: Final = 1
"""Raised when the same input and options would give other bytes."""

REJECTED: Final = "rejected.csv"

ImageMode = Literal["resize", "original"]

_TARGET_BYTES: Final = 256 << 20
_MIN_SHARDS: Final = 8
"""Shards a split has at least when it has enough samples, so that eight readers can share them out."""
_ENOUGH: Final = 8
"""Samples a shard should hold before a split is cut into more of them."""
_BYTES_PER_PIXEL: Final = 0.40
"""Estimated size of a photograph as JPEG of quality 90, 4:2:0, in bytes a pixel; for the number of shards only."""


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """A request for shards.

    Attributes:
        images: ``resize`` shrinks pictures to ``size``; ``original`` keeps their bytes where they are plain JPEG.
        size: Pixels of the short side; smaller pictures are never enlarged.
        quality: JPEG quality of pictures that are written anew.
        samples_per_shard: None chooses it so that a shard has about 256 MiB and a split at least 8 of them.
        seed: Seed of the order of samples.
        max_rejects: How many pictures may be unusable before the stage fails.
    """

    images: ImageMode = "resize"
    size: int = 256
    quality: int = 90
    samples_per_shard: int | None = None
    seed: int = 0
    max_rejects: int = 100

    def __post_init__(self) -> None:
        if self.images not in get_args(ImageMode):
            raise SpecError(f"images must be one of {', '.join(get_args(ImageMode))}, got {self.images!r}")
        if not 8 <= self.size <= 1 << 14:  # from one DCT block to more than any photograph
            raise SpecError(f"size must be from 8 to 16384 pixels, got {self.size}")
        if not 1 <= self.quality <= 100:  # the scale of libjpeg
            raise SpecError(f"quality must be from 1 to 100, got {self.quality}")
        if self.samples_per_shard is not None and self.samples_per_shard < 1:
            raise SpecError(f"samples_per_shard must be 1 or more, got {self.samples_per_shard}")
        if not 0 <= self.seed < 1 << 63:
            raise SpecError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")
        if self.max_rejects < 0:
            raise SpecError(f"max_rejects must be 0 or more, got {self.max_rejects}")

    @property
    def short_side(self) -> int | None:
        """Pixels the short side may have, None for no limit."""
        return self.size if self.images == "resize" else None

    def to_options(self) -> dict[str, Any]:
        """What decides the bytes, as JSON values."""
        options = asdict(self)
        del options["max_rejects"]
        if self.images == "original":
            del options["size"]
        return options


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One tar to be written: its split, its file name, and the records that go into it, in order."""

    split: str
    filename: str
    records: tuple[Record, ...]


def plan_shards(records: Sequence[Record], spec: ShardSpec) -> list[ShardPlan]:
    """Decide which record goes into which tar; pure.

    The order within a split is that of a hash of the key, keyed by the seed, so classes are mixed and the order of the
    manifest does not matter.

    Args:
        records: What to pack, of any splits.
        spec: Options.
    """
    plans = []
    key = spec.seed.to_bytes(8, "big")
    for split in sorted({record.split for record in records}):
        chosen = [record for record in records if record.split == split]
        chosen.sort(key=lambda record: hashlib.blake2b(record.key.encode(), digest_size=16, key=key).digest())
        for number, (start, stop) in enumerate(_cut(chosen, spec)):
            plans.append(ShardPlan(split, f"imgprep-{split}-{number:06d}.tar", tuple(chosen[start:stop])))
    return plans


def _cut(records: Sequence[Record], spec: ShardSpec) -> Iterator[tuple[int, int]]:
    if spec.samples_per_shard is not None:
        number = math.ceil(len(records) / spec.samples_per_shard)
        yield from ((i * spec.samples_per_shard, (i + 1) * spec.samples_per_shard) for i in range(number))
        return
    pixels = spec.short_side and spec.short_side * spec.short_side * 4 / 3
    size = sum(min(r.num_bytes, pixels * _BYTES_PER_PIXEL) if pixels else r.num_bytes for r in records)
    number = max(math.ceil(size / _TARGET_BYTES), min(_MIN_SHARDS, len(records) // _ENOUGH), 1)
    # Sizes differ by one sample at most.
    yield from ((len(records) * i // number, len(records) * (i + 1) // number) for i in range(number))


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """One tar that was written: what the index says of it, its rows of the sample table, and what was left out."""

    info: ShardInfo
    rows: list[tuple[int, int, int, int]]
    rejected: list[Rejected]
    unchanged: int


def tar_header(name: str, num_bytes: int) -> bytes:
    """A USTAR header of 512 bytes with fixed time, owner and mode, so that equal content makes equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    info.mode = 0o444
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _write_member(file: IO[bytes], name: str, content: bytes) -> int:
    """Append one member; returns where its content starts."""
    file.write(tar_header(name, len(content)))
    offset = file.tell()
    file.write(content)
    file.write(b"\0" * (-len(content) % tarfile.BLOCKSIZE))
    return offset


def write_shard(plan: ShardPlan, folder: Path, source: Source, spec: ShardSpec, tick: Tick) -> WrittenShard:
    """Read, prepare and pack the records of one plan.

    Args:
        plan: What goes into the tar.
        folder: Where to write it, under the plan's file name.
        source: Where the pictures are; read by several threads at once.
        spec: Options.
        tick: Called after each record.
    """
    rows: list[tuple[int, int, int, int]] = []
    rejected: list[Rejected] = []
    unchanged = 0
    path = folder / plan.filename
    with path.open("wb") as file:
        for record in plan.records:
            try:
                content = source.read(record.path)
                image = prepare_image(content, short_side=spec.short_side, quality=spec.quality)
            except (ImageError, MemberError) as error:
                rejected.append(Rejected(record.key, record.split, record.path, error.what))
                tick()
                continue
            unchanged += image.unchanged
            offset = _write_member(file, f"{record.key}.jpg", image.jpeg)
            _write_member(file, f"{record.key}.cls", str(record.label).encode())
            _write_member(file, f"{record.key}.json", _sample_json(record, image.width, image.height))
            rows.append((offset, len(image.jpeg), record.label, zlib.crc32(image.jpeg)))
            tick()
        # POSIX 1003.1, ustar: the archive ends with two blocks of zeros.
        file.write(b"\0" * (2 * tarfile.BLOCKSIZE))
        file.flush()
        os.fsync(file.fileno())
        num_bytes = file.tell()
    info = ShardInfo(filename=plan.filename, num_samples=len(rows), num_bytes=num_bytes, sha256=sha256_file(path))
    return WrittenShard(info, rows, rejected, unchanged)


def _sample_json(record: Record, width: int, height: int) -> bytes:
    document = {
        "key": record.key,
        "split": record.split,
        "wnid": record.wnid,
        "label": record.label,
        "path": record.path,
        "width": width,
        "height": height,
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All that ``shard`` will do: the plans, the classes, and the receipt that tells whether it was done before."""

    action: Action
    folder: Path
    plans: Sequence[ShardPlan]
    catalog: Catalog
    receipt: Receipt
    source: SourceRecord
    subset: dict[str, Any]

    @property
    def num_records(self) -> int:
        """Records over all plans."""
        return sum(len(plan.records) for plan in self.plans)


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What ``shard`` did. ``index`` is None when the shards were there before."""

    action: Action
    folder: Path
    stats: Stats
    index: ShardIndex | None
    rejected: Sequence[Rejected] = ()


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
    record = read_source_record(workspace)
    folder = workspace.subset(subset)
    made_by = "imgprep subset" if subset == "main" else f"imgprep subset --name {subset}"
    manifest = read_manifest(folder / "manifest.csv", made_by=made_by)
    catalog = read_catalog(folder / "classes.csv", made_by=made_by)
    chosen = read_receipt(folder, "subset")
    if chosen["outputs"].get("manifest.csv", {}).get("sha256") != sha256_file(folder / "manifest.csv"):
        raise ContradictionError(
            f"{folder / 'manifest.csv'} was changed since it was chosen", f"choose again: `{made_by} --overwrite`"
        )
    if chosen["inputs"].get("source") != record.fingerprint:
        raise ContradictionError(
            f"the subset {folder} was chosen from another source than {record.path}",
            f"choose again from this one: `{made_by} --overwrite` with its options",
        )
    inputs = {
        "source": record.fingerprint,
        "subset": sha256_file(folder / "manifest.csv"),
        "classes": sha256_file(folder / "classes.csv"),
    }
    options = {**spec.to_options(), "shard_version": SHARD_VERSION}
    receipt = Receipt(stage="shard", inputs=inputs, options=options)
    target = workspace.shards(name or subset)
    # The subset says what every picture is, to the byte: it does not matter what else the source holds by now.
    same = not overwrite and manifest["crc32"].notna().all() and receipt.only_inputs_changed(target, "source")
    action: Action = "skip" if same else receipt.decide(target, overwrite=overwrite)
    # Shards that were allowed more rejects do not answer a stricter request.
    if action == "skip" and int(read_receipt(target, "shard")["counts"].get("rejected", 0)) > spec.max_rejects:
        action = "run"
    if action == "skip":
        check_adopted(workspace)
    records = [] if action == "skip" else list(manifest_records(manifest))
    if action == "run":
        _check_records(records, catalog, folder)
    return ShardJob(
        action=action,
        folder=target,
        plans=plan_shards(records, spec),
        catalog=catalog,
        receipt=receipt,
        source=record,
        subset={name: chosen["counts"].get(name, "") for name in ("spec", "digest")},
    )


def _check_records(records: Sequence[Record], catalog: Catalog, folder: Path) -> None:
    if not records:
        raise UsageError(f"the subset {folder} is empty", "choose another one with `imgprep subset`")
    for record in records:
        if not 0 <= record.label < len(catalog) or catalog[record.label].wnid != record.wnid:
            raise ContradictionError(
                f"{folder / 'manifest.csv'}: {record.key} has class {record.wnid} and label {record.label},"
                " which classes.csv does not have",
                "run `imgprep subset --overwrite`",
            )


def shard(
    workspace: Workspace,
    job: ShardJob,
    spec: ShardSpec,
    *,
    executor: Executor | None = None,
    progress: Progress = SILENT,
) -> ShardResult:
    """Write the shards of a job.

    Args:
        workspace: The workspace of the job.
        job: From :func:`plan_job`, with the same spec.
        spec: Options.
        executor: How to run the plans; one after another when None. The bytes do not depend on it.
        progress: Told of each picture.

    Raises:
        TooManyRejectsError: More pictures than allowed cannot be used. Nothing is published; the rejected are listed in
            ``NAME.rejected.csv`` beside the folder.
        DamagedError: The source changed or is damaged.
    """
    if job.action == "skip":
        return ShardResult(action="skip", folder=job.folder, stats=Stats(), index=None)
    source, _ = open_dataset(workspace)
    stats = Stats({"in": job.num_records})
    rejected: list[Rejected] = []
    written: list[tuple[ShardPlan, WrittenShard]] = []
    progress.begin("shard", job.num_records, "images")
    try:
        with source, staged_folder(job.folder) as staging:

            def write(plan: ShardPlan, tick: Tick) -> WrittenShard:
                return write_shard(plan, staging, source, spec, tick)

            results = (executor or SerialExecutor()).map(write, job.plans, tick=progress.advance)
            # Closed before the staging folder goes away: no thread may still write to it then.
            with contextlib.closing(results):
                for plan, result in zip(job.plans, results, strict=True):
                    rejected += result.rejected
                    _check_rejects(rejected, spec, job.folder)
                    written.append((plan, result))
                    stats.count("unchanged", result.unchanged)
            index = _build_index(job, spec, written, staging)
            _count_out(stats, index, rejected)
            write_rejected(staging / REJECTED, rejected)
            write_bytes(staging / INDEX_FILENAME, index.to_json().encode())
            names = [INDEX_FILENAME, REJECTED]
            for split in index.splits.values():
                names += [split.samples_filename, *(info.filename for info in split.shards)]
            job.receipt.write(staging, names, stats.to_dict())
    finally:
        progress.finish()
    _rejected_beside(job.folder).unlink(missing_ok=True)
    return ShardResult(action="run", folder=job.folder, stats=stats, index=index, rejected=rejected)


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


def _count_out(stats: Stats, index: ShardIndex, rejected: Sequence[Rejected]) -> None:
    """Nothing vanishes: what went in is in the shards or in rejected.csv."""
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


def _build_index(
    job: ShardJob, spec: ShardSpec, written: Sequence[tuple[ShardPlan, WrittenShard]], folder: Path
) -> ShardIndex:
    splits = {}
    for split in sorted({plan.split for plan, _ in written}):
        shards = [result for plan, result in written if plan.split == split]
        rows = [(number, *row) for number, result in enumerate(shards) for row in result.rows]
        filename = f"{split}.samples.npy"
        with (folder / filename).open("wb") as file:
            np.save(file, np.array(rows, dtype=list(SAMPLE_FIELDS)), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        splits[split] = SplitInfo(
            num_samples=len(rows),
            samples_filename=filename,
            samples_sha256=sha256_file(folder / filename),
            shards=tuple(result.info for result in shards),
        )
    return ShardIndex(
        classes=tuple(ClassInfo(label=s.index, wnid=s.wnid, name=s.name) for s in job.catalog),
        splits=splits,
        spec={**spec.to_options(), "shard_version": SHARD_VERSION},
        provenance={
            "source": {
                "name": job.source.name,
                "kind": job.source.kind,
                "layout": job.source.layout,
                "listing_sha256": job.source.listing_sha256,
            },
            "subset": job.subset,
        },
    )
