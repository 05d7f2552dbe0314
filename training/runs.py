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
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from imgprep.errors import DamagedError, LockedError, MissingInputError, OutputExistsError, SpecError
from imgprep.index import DEFAULT_WORKSPACE, INDEX_FILENAME
from training.atomic import publish
from training.config import TrainConfig, config_from, differences, require_shape

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LOCK: Final = ".lock"

_WRITTEN: Final = (
    *(_LOCK, "config.json", "metrics.jsonl*", "checkpoints", "finished.json", "report.md", ".*.tmp"),
    *("curves.png", "samples.png", "eval*.json", "eval*.png"),
)
"""Patterns of what a run writes into its folder."""

_MEASURED: Final = {"k": int, "correct": int, "total": int, "share": float, "low": float, "high": float}
_FINISHED: Final = {"epochs": int, "seconds": float, "checkpoint_sha256": str, "top1": _MEASURED, "top5": _MEASURED}
_EVALUATION: Final = {
    **dict.fromkeys(("checkpoint", "split", "views", "weights", "checkpoint_sha256"), str),
    "top1": _MEASURED,
    "top5": _MEASURED,
    "loss": float,
    "classes": [{"label": int, "wnid": str, "name": str, "correct": int, "num_samples": int}],
    "confusion": list,
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """The files of one run.

    Attributes:
        folder: ``WORKSPACE/runs/NAME``; need not exist.
    """

    folder: Path

    def __post_init__(self) -> None:
        require_name(self.folder.name)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def workspace(self) -> Path:
        """The workspace it lies in."""
        return self.folder.parent.parent

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
        """Whether all epochs are done and their outcome is there."""
        return self.finished.exists() and self.checkpoint("last").exists()


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What ``config.json`` of a run says.

    Attributes:
        config: What the run was asked to do.
        dataset_digest: Of the shards it learns from.
        index_path: Where their index lay: relative to the workspace when it lay inside, so that both move together,
            else absolute.
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


def require_name(name: str, what: str = "a run's name") -> None:
    """Refuse names that could leave their folder.

    Raises:
        SpecError: It has other characters, or is empty or too long.
    """
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"{what} must be letters, digits, '.', '_' and '-', starting with a letter or digit, got {name!r}"
        )


def find_run(workspace: Path, name: str) -> Run:
    """The run of that name; need not exist.

    Raises:
        SpecError: The name could leave the folder of runs, or is odd in another way.
    """
    require_name(name)
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


def same_run(workspace: Path, config: TrainConfig, dataset_digest: str) -> Run | None:
    """The run started last, of those with this configuration and these shards, if there is one."""
    for run in reversed(list_runs(workspace)):
        try:
            record = read_record(run)
        except DamagedError:
            # What cannot be read is another run; who names it is told.
            continue
        if record.config == config and record.dataset_digest == dataset_digest:
            return run
    return None


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
    publish(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_json(path: Path, *, advice: str, shape: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        advice: What to do when it cannot be used.
        shape: What it must hold; see :func:`training.config.require_shape`.

    Raises:
        MissingInputError: The file is not there.
        DamagedError: It holds something else.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        require_shape(document, {} if shape is None else shape)
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist", advice) from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is not valid JSON ({error})", advice) from None
    except SpecError as error:
        raise DamagedError(f"{path} is incomplete or was edited ({error})", advice) from None
    return document


def read_finished(run: Run) -> dict[str, Any]:
    """Read ``finished.json`` of a run; raises as :func:`read_json` does."""
    return read_json(run.finished, shape=_FINISHED, advice=f"remove it, and `{resume_command(run)}` writes it again")


def read_evaluation(run: Run, path: Path) -> dict[str, Any]:
    """Read one of the files ``eval*.json`` of a run; raises as :func:`read_json` does."""
    named = re.fullmatch(r"eval-(last|best)-(.+)\.json", path.name)
    options = f" --checkpoint {named[1]} --split {shlex.quote(named[2])}" if named else ""
    return read_json(path, shape=_EVALUATION, advice=f"run `imgprep evaluate {run.name}{options}`")


def stored_index_path(run: Run, index_path: Path) -> str:
    """How ``config.json`` names shards: see :attr:`RunRecord.index_path`."""
    # As named first: the workspace may hold a link to shards that lie elsewhere.
    for workspace, path in (
        (run.workspace.absolute(), index_path.absolute()),
        (run.workspace.resolve(), index_path.resolve()),
    ):
        if path.is_relative_to(workspace) and ".." not in path.parts:
            return path.relative_to(workspace).as_posix()
    return str(index_path.resolve())


def locate_index(given: Path) -> Path:
    """The ``index.json`` that an option means, which may name its folder."""
    return given / INDEX_FILENAME if given.is_dir() else given


def index_of(run: Run, record: RunRecord, given: Path | None = None) -> Path:
    """The ``index.json`` of a run's shards.

    Args:
        run: The run.
        record: Its record.
        given: What the user named instead, if anything.
    """
    return locate_index(run.workspace / record.index_path if given is None else given)


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
        known = ", ".join(other.name for other in list_runs(run.workspace)) or "none"
        raise MissingInputError(f"there is no run {run.name} in {run.folder.parent}", f"runs here: {known}")
    advice = f"train anew with --name {run.name} --overwrite"
    shape = {"dataset_digest": str, "index_path": str, "num_classes": int, "device": str, "versions": dict}
    document = read_json(run.config, shape={"config": dict, **shape}, advice=advice)
    try:
        if b"\0" in os.fsencode(document["index_path"]):
            raise SpecError("'index_path' is not a path")
        return RunRecord(config=config_from(document["config"]), **{key: document[key] for key in shape})
    except (OverflowError, UnicodeEncodeError, SpecError) as error:
        raise DamagedError(f"{run.config} is incomplete or was edited ({error})", advice) from None


def clear(run: Run) -> None:
    """Remove what a run wrote, and nothing else; the lock stays.

    Raises:
        OutputExistsError: The folder holds other files and no run.
    """
    written = {path for pattern in _WRITTEN for path in run.folder.glob(pattern)}
    if not run.exists and set(run.folder.iterdir()) - written:
        raise OutputExistsError(f"{run.folder} holds files but no run", "choose another --name")
    # The record goes first: a folder without it is no run, whatever else a kill leaves there.
    run.config.unlink(missing_ok=True)
    run.finished.unlink(missing_ok=True)
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    for path in written:
        if path.is_file() and path.name != _LOCK:
            path.unlink()


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def begin(run: Run, record: RunRecord) -> None:
    """Make a run new: remove what an earlier one of that name wrote, and write the record."""
    clear(run)
    write_record(run, record)


def claim(run: Run, wanted: RunRecord, *, resume: bool) -> dict[str, Any] | None:
    """Decide what an existing run of that name means, and write the record of a new one.

    Args:
        run: Locked by the caller.
        wanted: What is to be trained now.
        resume: There must be such a run to go on with.

    Returns:
        The content of ``finished.json`` when the same run is complete, its last checkpoint included. Else None: the run
        is new, or it was made with the same options from the same shards and goes on where its checkpoint is.

    Raises:
        OutputExistsError: The run was made with other options or from other shards.
        MissingInputError: ``resume`` was asked for and there is no such run.
        DamagedError: Its record or ``finished.json`` cannot be read.
    """
    if run.exists:
        record = read_record(run)
        found = differences(record.config, wanted.config)
        if record.dataset_digest != wanted.dataset_digest:
            found.append(f"dataset digest: {record.dataset_digest[:12]} is not {wanted.dataset_digest[:12]}")
        if found:
            raise OutputExistsError(
                f"run {run.name} was made otherwise ({'; '.join(found)})",
                "use the same options, choose another --name, or replace the run with --overwrite",
            )
        (run.folder / "checkpoints").mkdir(exist_ok=True)
        # Each kill while a checkpoint was being saved left its half behind.
        for partial in (run.folder / "checkpoints").glob(".*.tmp"):
            partial.unlink()
        if run.finished.exists():
            finished = read_finished(run)
            if _sha256(run.checkpoint("last")) == finished["checkpoint_sha256"]:
                return finished
            # It speaks of weights that are gone: what is left of the run is trained again.
            run.finished.unlink()
        return None
    if resume:
        raise MissingInputError(f"there is no run {run.name} to resume", "start it without --resume")
    begin(run, wanted)
    return None


def resume_command(run: Run) -> str:
    """The command that goes on with a run."""
    workspace = str(run.workspace)
    option = "" if workspace == DEFAULT_WORKSPACE else f" -w {shlex.quote(workspace)}"
    return f"imgprep train{option} --resume --name {run.name}"
