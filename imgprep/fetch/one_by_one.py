"""Fetch chosen files one by one through Kaggle's own calls: the way that is left when storage ignores ranges.

There is no directory here, so the choice is made from the lists, and no CRC-32 to check against: an MD5 where the
server sends one, else the length. Kaggle shuts out those who ask often, so it is slow and bounded on purpose.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from imgprep.backoff import Backoff
from imgprep.errors import DamagedError, MemberError, NetworkError, UsageError
from imgprep.fetch.part import MemberWriter, is_whole
from imgprep.fetch.request import PartRequest, folder_of
from imgprep.files import sync_filesystem
from imgprep.layouts.ilsvrc import MAPPING, VAL_SOLUTION, parse_mapping, parse_solution
from imgprep.records import is_key, is_wnid
from imgprep.selection import choose_classes, choose_keys
from imgprep.sources import Member
from imgprep.sources.kaggle import KaggleCompetition
from imgprep.sources.part import ArchiveRecord, PartRecord, write_part_record
from imgprep.stats import SILENT, Progress
from imgprep.transfer import RemoteFile, TransferSpec, Wire

MAX_FILES: Final = 2000
"""Files that may be fetched this way; at a file a second that is half an hour."""

SECONDS_A_FILE: Final = 1.0
"""Least time between two files. Kaggle's limits are unpublished; loops without a pause were shut out after about 100
files (Kaggle/kaggle-cli issues 494 and 845)."""

_TRAIN_LIST: Final = "ILSVRC/ImageSets/CLS-LOC/train_cls.txt"
_DATA: Final = "ILSVRC/Data/CLS-LOC"
_MAX_BYTES: Final = 1 << 28
"""Bytes of the largest file that is fetched this way; the list of training pictures has about 43 MB."""

_MD5: Final = re.compile(r"(?:^|,)\s*md5=([A-Za-z0-9+/]{22}==)")


@dataclass(frozen=True, kw_only=True)
class FilesPlan:
    """What fetching one by one comes to: names of the files to hold, lists first."""

    names: tuple[str, ...]
    pictures: Mapping[str, int]
    contents: Mapping[str, bytes]


class FileFetcher:
    """Fetches single files of a competition, slowly.

    Args:
        kaggle: The competition.
        spec: How to treat the network.
        backoff: How long to wait after failures.
        wire: Counters to add to.
    """

    def __init__(self, kaggle: KaggleCompetition, spec: TransferSpec, backoff: Backoff, wire: Wire) -> None:
        self._kaggle = kaggle
        self._spec = spec
        self._backoff = backoff
        self._wire = wire
        self._fetched = 0

    def read(self, name: str) -> bytes:
        """The bytes of one file; one that is served as ``NAME.zip`` is taken out of its zip.

        Raises:
            DamagedError: It arrives damaged each time.
            NetworkError: The network failed after every retry.
        """
        if self._fetched and self._backoff.stop.wait(SECONDS_A_FILE):
            raise NetworkError(f"{name} was stopped")
        self._fetched += 1
        for last in (False, False, True):
            served = ""

            def resolve() -> str:
                nonlocal served
                signed = self._kaggle.file_url(name)
                served = signed.name
                return signed.url

            with RemoteFile(resolve, what=name, spec=self._spec, backoff=self._backoff, wire=self._wire) as remote:
                content = remote.read_whole(limit=_MAX_BYTES)
                try:
                    return _unwrapped(_checked(content, remote.hashes, name), name, served)
                except MemberError:
                    self._wire.count(retries=1)
                    if last:
                        raise
        raise AssertionError


def _checked(content: bytes, hashes: str, name: str) -> bytes:
    match = _MD5.search(hashes)
    # Not for security: it is the checksum that storage keeps of an object.
    if match and base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode() != match[1]:
        raise MemberError(f"{name} arrived altered: its MD5 is another one", "run the same command again")
    return content


def _unwrapped(content: bytes, name: str, served: str) -> bytes:
    basename = name.rsplit("/", 1)[-1]
    if served != f"{basename}.zip":
        return content
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            infos = [info for info in archive.infolist() if info.filename.rsplit("/", 1)[-1] == basename]
            if len(infos) != 1 or infos[0].file_size > _MAX_BYTES:
                raise MemberError(f"{served} does not hold one file {basename}")
            return archive.read(infos[0])
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise MemberError(f"{served} is damaged ({error})", "run the same command again") from None


def plan_files(request: PartRequest, read: Callable[[str], bytes], *, max_files: int = MAX_FILES) -> FilesPlan:
    """Choose files from the lists: the same that would be chosen from the directory of the archive.

    Args:
        request: What is asked for.
        read: Gives the bytes of a file of the competition.
        max_files: How many files may be fetched.

    Raises:
        UsageError: The request cannot be met, or only with too many files.
        DamagedError: A list is damaged.
    """
    if request.manifest is not None:
        names, pictures = _names_of_manifest(request.manifest)
        lists = {name: read(name) for name in (MAPPING, VAL_SOLUTION)}
        return FilesPlan(names=_bounded([*lists, *names], max_files), pictures=pictures, contents=lists)
    if request.subset is None:
        lists = {name: read(name) for name in (MAPPING, VAL_SOLUTION)}
        return FilesPlan(names=tuple(lists), pictures={}, contents=lists)
    lists = {name: read(name) for name in (MAPPING, VAL_SOLUTION, _TRAIN_LIST)}
    catalog = parse_mapping(lists[MAPPING], where=MAPPING)
    train = parse_train_list(lists[_TRAIN_LIST], where=_TRAIN_LIST)
    spec = request.subset
    counts = {wnid: len(keys) for wnid, keys in train.items()}
    classes = choose_classes(counts, catalog, spec)
    quotas = classes.quotas(counts, spec.per_class, seed=spec.seed)
    val: dict[str, list[str]] = {wnid: [] for wnid in quotas}
    for key, wnid in parse_solution(lists[VAL_SOLUTION], where=VAL_SOLUTION).items():
        if wnid in val and is_key(key):
            val[wnid].append(key)
    train_names = [
        f"{_DATA}/train/{wnid}/{key}.JPEG"
        for wnid, quota in quotas.items()
        for key in choose_keys(train.get(wnid, []), quota, seed=spec.seed)
    ]
    quotas = classes.quotas({wnid: len(keys) for wnid, keys in val.items()}, spec.val_per_class, seed=spec.seed)
    val_names = [
        f"{_DATA}/val/{key}.JPEG"
        for wnid, keys in val.items()
        for key in choose_keys(keys, quotas[wnid], seed=spec.seed)
    ]
    pictures = {"train": len(train_names), "val": len(val_names)}
    # The list of training pictures served the choice only.
    contents = {name: content for name, content in lists.items() if name != _TRAIN_LIST}
    return FilesPlan(
        names=_bounded([*contents, *train_names, *val_names], max_files), pictures=pictures, contents=contents
    )


def parse_train_list(content: bytes, *, where: str) -> dict[str, list[str]]:
    """Read ``train_cls.txt``: ``<wnid>/<key> <line number>``, one picture a line.

    Returns:
        Wnid to keys.

    Raises:
        MemberError: A line has another form.
    """
    keys: dict[str, list[str]] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        if not line.strip():
            continue
        wnid, _, key = line.split()[0].partition("/")
        if not is_wnid(wnid) or not is_key(key):
            raise MemberError(f"{where}, line {number}: expected `<wnid>/<key> <number>`, got {line[:60]!r}")
        keys.setdefault(wnid, []).append(key)
    return keys


def _names_of_manifest(manifest: Path) -> tuple[list[str], dict[str, int]]:
    from imgprep.tables import manifest_records, read_manifest

    names: list[str] = []
    pictures: dict[str, int] = {}
    for row in manifest_records(read_manifest(manifest, made_by="imgprep subset")):
        place = folder_of(row)
        folder = place if place in ("val", "test") else f"train/{place}"
        names.append(f"{_DATA}/{folder}/{row.key}.JPEG")
        pictures[row.split] = pictures.get(row.split, 0) + 1
    return names, pictures


def _bounded(names: list[str], max_files: int) -> tuple[str, ...]:
    if len(names) > max_files:
        raise UsageError(
            f"the server ignores ranges, and one by one no more than {max_files:,} files can be fetched;"
            f" this part has {len(names):,}",
            "ask for fewer, fetch the whole archive with a bare `imgprep fetch`, or try from another network",
        )
    return tuple(names)


def fetch_files(
    plan: FilesPlan,
    folder: Path,
    request: PartRequest,
    before: PartRecord | None,
    read: Callable[[str], bytes],
    *,
    archive: str,
    progress: Progress = SILENT,
) -> PartRecord:
    """Fetch the files of a plan that are not here yet, and record them with the CRC-32 they arrived with.

    Raises:
        DamagedError: A file arrives damaged each time.
        NetworkError: The network failed after every retry, or Kaggle asks to wait too long.
    """
    if before is not None and before.archive.num_bytes:
        raise UsageError(
            f"{folder} holds files taken out of {before.archive.name} by ranges, which the server now ignores",
            "fetch the rest from a network where ranges work, or into another --workspace",
        )
    folder.mkdir(parents=True, exist_ok=True)
    writer = MemberWriter(folder)
    members = dict(before.members) if before is not None else {}
    progress.begin("fetch one by one", len(plan.names), "files")
    try:
        for name, content in _contents(plan, folder, members, read):
            if content is not None:
                if not content:
                    raise DamagedError(f"{name} arrived empty", "run the same command again")
                writer.write(name, content)
                members[name] = Member(name, len(content), zlib.crc32(content))
                # Noted at once: without a directory a restart knows a file by nothing else.
                _record(folder, archive, request, before, members, met=False)
            progress.advance()
    finally:
        progress.finish()
    sync_filesystem(folder)
    return _record(folder, archive, request, before, members, met=True)


def _contents(
    plan: FilesPlan, folder: Path, members: Mapping[str, Member], read: Callable[[str], bytes]
) -> Iterator[tuple[str, bytes | None]]:
    """Name and content of each file of a plan; None for one that is here and whole."""
    for name in plan.names:
        if name in members and is_whole(folder / name, members[name]):
            yield name, None
        elif name in plan.contents:
            yield name, plan.contents[name]
        else:
            yield name, read(name)


def _record(
    folder: Path,
    archive: str,
    request: PartRequest,
    before: PartRecord | None,
    members: Mapping[str, Member],
    *,
    met: bool,
) -> PartRecord:
    earlier = before.requests if before is not None else ()
    options = request.to_options()
    record = PartRecord(
        archive=ArchiveRecord(name=archive),
        requests=(*earlier, options) if met and options not in earlier else earlier,
        members=dict(sorted(members.items())),
    )
    write_part_record(folder, record)
    return record
