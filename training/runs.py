"""A run is a folder: what it was asked, what it measured, where it stands.

    WORKSPACE/runs/NAME/
    ├── config.json         what it was asked, of which shards, with which versions
    ├── metrics.jsonl       a line every N steps and every epoch
    ├── checkpoints/        last.pt (always resumable), best.pt (most correct on the validation split)
    ├── finished.json       written last: hash of the final checkpoint, and the final numbers
    ├── eval.json, *.png    written by evaluation
    └── report.md           written by the report

Nothing here needs torch.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from imgprep.errors import DamagedError, LockedError, MissingInputError, OutputExistsError, SpecError
from imgprep.index import DEFAULT_WORKSPACE
from training.atomic import publish
from training.config import TrainConfig, config_from, differences

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LOCK: Final = ".lock"


@dataclass(frozen=True, kw_only=True)
class Run:
    """The files of one run.

    Attributes:
        folder: ``WORKSPACE/runs/NAME``; need not exist.
    """

    folder: Path

    def __post_init__(self) -> None:
        _require_name(self.folder.name)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def config(self) -> Path:
        """What the run was asked; written first, never changed."""
        return self.folder / "config.json"

    @property
    def metrics(self) -> Path:
        """Its numbers over time."""
        return self.folder / "metrics.jsonl"

    @property
    def finished(self) -> Path:
        """Written last; a run without it can be resumed."""
        return self.folder / "finished.json"

    @property
    def curves(self) -> Path:
        """Picture of the numbers over time."""
        return self.folder / "curves.png"

    @property
    def report(self) -> Path:
        """The report."""
        return self.folder / "report.md"

    def checkpoint(self, which: str) -> Path:
        """Path of the checkpoint ``last`` or ``best``."""
        return self.folder / "checkpoints" / f"{which}.pt"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config.exists()

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done."""
        return self.finished.exists()


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What ``config.json`` of a run says.

    Attributes:
        config: What the run was asked to do.
        dataset_digest: Of the shards it learns from.
        index_path: Where their index lay, absolute.
        num_classes: Outputs of the network.
        device: Name of the device it was started on.
        versions: Of Python and the packages that decide the numbers.
    """

    config: TrainConfig
    dataset_digest: str
    index_path: str
    num_classes: int
    device: str
    versions: dict[str, str]


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"a run's name must be letters, digits, '.', '_' and '-', starting with a letter or digit, got {name!r}"
        )


def find_run(workspace: Path, name: str) -> Run:
    """The run of that name; need not exist.

    Raises:
        SpecError: The name could leave the folder of runs, or is odd in another way.
    """
    _require_name(name)
    return Run(folder=workspace / "runs" / name)


def list_runs(workspace: Path) -> list[Run]:
    """All runs of a workspace, the one started last at the end."""
    folders = [path.parent for path in (workspace / "runs").glob("*/config.json") if _NAME.fullmatch(path.parent.name)]
    return [Run(folder=folder) for folder in sorted(folders, key=lambda f: ((f / "config.json").stat().st_mtime_ns, f))]


def newest_run(workspace: Path, *, unfinished: bool = False) -> Run:
    """The run that was started last.

    Args:
        workspace: Where to look.
        unfinished: Look only among runs that can be resumed.

    Raises:
        MissingInputError: There is none.
    """
    runs = [run for run in list_runs(workspace) if not (unfinished and run.is_finished)]
    if not runs:
        if unfinished:
            raise MissingInputError(f"no unfinished run in {workspace / 'runs'}", "start one with `imgprep train`")
        raise MissingInputError(f"no runs in {workspace / 'runs'}", "run `imgprep train` first")
    return runs[-1]


def free_name(workspace: Path, recipe: str) -> str:
    """The first of ``RECIPE-1``, ``RECIPE-2``, ... whose folder does not exist."""
    number = 1
    while (workspace / "runs" / f"{recipe}-{number}").exists():
        number += 1
    return f"{recipe}-{number}"


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold a run for as long as the block lasts; the system lets go of it when the process dies.

    Raises:
        LockedError: Another process holds it.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(run.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"run {run.name} is in use by another process", "wait for it, or choose another --name"
            ) from None
        yield
    finally:
        os.close(handle)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file atomically, indented."""
    publish(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        MissingInputError: The file is not there.
        DamagedError: It holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist") from None
    except ValueError as error:
        raise DamagedError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(document, dict):
        raise DamagedError(f"{path} is not a JSON object")
    return document


def write_record(run: Run, record: RunRecord) -> None:
    """Write ``config.json`` of a run."""
    (run.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_json(run.config, {"format": "imgprep-run", "version": 1} | asdict(record))


def read_record(run: Run) -> RunRecord:
    """Read ``config.json`` of a run.

    Raises:
        MissingInputError: There is no such run.
        DamagedError: It is not what :func:`write_record` writes.
    """
    if not run.exists:
        known = ", ".join(other.name for other in list_runs(run.folder.parent.parent)) or "none"
        raise MissingInputError(f"there is no run {run.name} in {run.folder.parent}", f"runs here: {known}")
    document = read_json(run.config)
    try:
        return RunRecord(
            config=config_from(document["config"]),
            dataset_digest=str(document["dataset_digest"]),
            index_path=str(document["index_path"]),
            num_classes=int(document["num_classes"]),
            device=str(document["device"]),
            versions=dict(document["versions"]),
        )
    except (KeyError, TypeError, ValueError, SpecError) as error:
        raise DamagedError(
            f"{run.config} is incomplete or was edited ({error})", "train anew with --overwrite"
        ) from None


def clear(run: Run) -> None:
    """Remove what a run wrote, and nothing else; the lock stays.

    Raises:
        OutputExistsError: The folder holds files but no run.
    """
    if not run.exists and any(path.name != _LOCK for path in run.folder.iterdir()):
        raise OutputExistsError(f"{run.folder} holds files but no run", "choose another --name")
    # The record goes first: a folder without it is no run, whatever else a kill leaves there.
    run.config.unlink(missing_ok=True)
    run.finished.unlink(missing_ok=True)
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    for pattern in ("metrics.jsonl*", "eval*.json", "*.png", "report.md", ".*.tmp"):
        for path in run.folder.glob(pattern):
            path.unlink()


def claim(run: Run, wanted: RunRecord, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """Decide what an existing run of that name means, and write the record of a new one.

    Args:
        run: Locked by the caller.
        wanted: What is to be trained now.
        resume: There must be such a run to go on with.
        overwrite: Remove what an earlier run wrote.

    Returns:
        The content of ``finished.json`` when the same run is complete. Else None: the run is new, or it was made with
        the same options from the same shards and goes on where it stopped.

    Raises:
        OutputExistsError: The run was made with other options or from other shards.
        MissingInputError: ``resume`` was asked for and there is no such run.
    """
    if run.exists and not overwrite:
        record = read_record(run)
        found = differences(record.config, wanted.config)
        if record.dataset_digest != wanted.dataset_digest:
            found.append(f"dataset digest: {record.dataset_digest[:12]} is not {wanted.dataset_digest[:12]}")
        if found:
            raise OutputExistsError(
                f"run {run.name} was made otherwise ({'; '.join(found)})",
                "use the same options, choose another --name, or replace the run with --overwrite",
            )
        if run.is_finished:
            return read_json(run.finished)
        return None
    if resume:
        raise MissingInputError(f"there is no run {run.name} to resume", "start it without --resume")
    clear(run)
    write_record(run, wanted)
    return None


def resume_command(run: Run) -> str:
    """The command that goes on with a run."""
    workspace = str(run.folder.parent.parent)
    option = "" if workspace == DEFAULT_WORKSPACE else f" -w {shlex.quote(workspace)}"
    return f"imgprep train{option} --resume --name {run.name}"


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    versions = {"python": platform.python_version()}
    for package in ("imgprep", "torch", "numpy", "opencv-python-headless", "simplejpeg"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return versions
