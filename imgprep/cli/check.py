"""The commands for shards that are there: verify, repair, trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from imgprep.cli.options import (
    dry_run_option,
    json_option,
    print_result,
    size_text,
    workspace_option,
)
from imgprep.index import DEFAULT_NAME

if TYPE_CHECKING:
    from imgprep.repair import Repaired
    from imgprep.trace import Trace
    from imgprep.verify import Verdict

_SHOWN: Final = 20
"""Problems that are printed for people; ``--json`` has them all."""


@click.command()
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the shards.")
@click.option(
    "--shards",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder of shards, wherever it lies; needs no workspace.",
)
@click.option(
    "--level",
    type=click.Choice(["index", "bytes", "decode"]),
    default="bytes",
    show_default=True,
    help="index: all but the contents of the tars. bytes: every byte. decode: also decode every picture.",
)
@click.option(
    "-j", "--workers", type=click.IntRange(min=0), default=0, help="Threads; 0 is one a processor.  [default: 0]"
)
@workspace_option
@json_option
def verify(root: Path, name: str, folder: Path | None, level: str, workers: int, as_json: bool) -> None:
    """Check a folder of shards, byte by byte, against its index, sample tables, receipt and checksums.

    Says which shard, member and sample is damaged, missing, extra or another one. Writes nothing. The exit code is 3
    when anything is wrong.

    \b
    Examples:
      imgprep verify
      imgprep verify --level decode
      imgprep verify --shards imgprep-data/shards/main --json
    """
    from imgprep.cli.progress import make_progress
    from imgprep.errors import DamagedError
    from imgprep.executors import make_executor
    from imgprep.verify import VerifySpec
    from imgprep.verify import verify as check
    from imgprep.workspace import Workspace

    spec = VerifySpec(level=level)  # type: ignore[arg-type]  # one of the choices
    folder = _folder(Workspace(root), name, folder)
    verdict = check(folder, spec, executor=make_executor(workers), progress=make_progress())
    print_result(_verdict_lines(verdict), verdict.to_json(), as_json=as_json)
    if verdict.problems:
        files = len(verdict.damaged_files)
        imported = verdict.index is not None and "imported" in verdict.index.spec
        raise DamagedError(
            f"{folder} is damaged: {len(verdict.problems):,} problems in {files:,} files",
            "copy these files again; `imgprep index --overwrite` where the tars are right and the index is not"
            if imported
            else "`imgprep repair` makes them again where the source is at hand; else copy these files again",
        )


def _folder(workspace: Any, name: str, folder: Path | None) -> Path:
    from imgprep.errors import UsageError

    given = click.get_current_context().get_parameter_source("name")
    if folder is not None and given is not click.core.ParameterSource.DEFAULT:
        raise UsageError("--name and --shards both say which shards", "leave one of them out")
    path: Path = workspace.shards(name)
    return path if folder is None else folder


def _verdict_lines(verdict: Verdict) -> list[str]:
    what = f"{verdict.num_shards:,} shards, {verdict.num_samples:,} samples, {size_text(verdict.num_bytes)}"
    if not verdict.problems:
        speed = f", {size_text(verdict.num_read / verdict.seconds)}/s" if verdict.num_read else ""
        level = "" if verdict.level == "bytes" else f" ({verdict.level})"
        return [f"verified{level}: {what}{speed}, dataset digest {verdict.dataset_digest[:16]}"]
    lines = [f"damaged: {verdict.folder} ({what})", f"  {'problems':>8}  file"]
    damaged = list(verdict.damaged_files.items())
    lines += [f"  {count:>8,}  {file}" for file, count in damaged[:_SHOWN]]
    if len(damaged) > _SHOWN:
        lines.append(f"  and {len(damaged) - _SHOWN:,} more files")
    lines += [problem.line for problem in verdict.problems[:_SHOWN]]
    if len(verdict.problems) > _SHOWN:
        lines.append(f"and {len(verdict.problems) - _SHOWN:,} more; --json lists all")
    return lines


@click.command()
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the shards.")
@click.option("--delete-extra", is_flag=True, help="Delete tars and tables that do not belong to the shards.")
@click.option(
    "-j", "--workers", type=click.IntRange(min=0), default=0, help="Threads; 0 is one a processor.  [default: 0]"
)
@workspace_option
@dry_run_option
@json_option
def repair(root: Path, name: str, delete_extra: bool, workers: int, dry_run: bool, as_json: bool) -> None:
    """Make damaged shards what they were, to the byte: renamed, rebuilt from what is whole, or read from the source.

    Verifies, then mends only what is wrong. Of a damaged tar, only damaged pictures are read from the source. A file
    is replaced only by one that has the hash it had. When it is killed, the same command goes on.

    \b
    Examples:
      imgprep repair --dry-run
      imgprep repair
      imgprep repair --delete-extra
    """
    from imgprep.cli.progress import make_progress
    from imgprep.errors import DamagedError
    from imgprep.executors import make_executor
    from imgprep.repair import RepairSpec
    from imgprep.repair import repair as mend
    from imgprep.workspace import Workspace

    spec = RepairSpec(delete_extra=delete_extra, dry_run=dry_run)
    workspace = Workspace(root)
    workspace.require()
    with workspace.locked("imgprep repair"):
        repaired = mend(workspace, name, spec, executor=make_executor(workers), progress=make_progress())
    print_result(_repair_lines(repaired, delete_extra), repaired.to_json(), as_json=as_json)
    if not repaired.whole and not dry_run:
        left = set(repaired.failures) | set(repaired.verdict.damaged_files)
        only_extra = left <= set(repaired.extra)
        changed = f"other libraries may make other bytes: {'; '.join(repaired.warnings)}"
        raise DamagedError(
            f"{repaired.folder} is not whole: {len(left):,} files are not what they were",
            "move what does not belong there away, or use --delete-extra"
            if only_extra
            else changed
            if repaired.warnings
            else "see above what is missing; `imgprep shard --overwrite` writes the shards again",
        )


def _repair_lines(repaired: Repaired, delete_extra: bool) -> list[str]:
    digest = f"dataset digest {repaired.verdict.dataset_digest[:16]}"
    if repaired.action == "skip":
        verdict = repaired.verdict
        return [f"nothing to repair: {verdict.num_shards:,} shards, {verdict.num_samples:,} samples, {digest}"]
    parts = []
    if repaired.shards:
        source = f"{repaired.num_read:,} pictures read again from the source, {repaired.num_taken:,} taken over"
        parts.append(f"{len(repaired.shards):,} shards ({source})")
    if repaired.renamed:
        parts.append(f"{len(repaired.renamed):,} names")
    parts += repaired.files[:_SHOWN]
    if len(repaired.files) > _SHOWN:
        parts.append(f"{len(repaired.files) - _SHOWN:,} more files")
    is_plan = repaired.action == "plan"
    what = ", ".join(parts) or "nothing"
    before = "" if is_plan or not repaired.whole else f"; {digest} as before"
    lines = [f"{'would repair' if is_plan else 'repaired'}: {what}{before}"]
    lines += [f"{name}: found as {stray}" for name, stray in list(repaired.renamed.items())[:_SHOWN]]
    lines += [f"{name}: written anew" for name in repaired.shards[:_SHOWN]]
    deleted = (is_plan and delete_extra) or repaired.deleted
    fate = ("to be deleted" if is_plan else "deleted") if deleted else "left where it is"
    lines += [f"{name}: does not belong to the shards, {fate}" for name in repaired.extra[:_SHOWN]]
    lines += [f"not repaired: {name}: {reason}" for name, reason in list(repaired.failures.items())[:_SHOWN]]
    return lines + [f"note: {warning}" for warning in repaired.warnings]


@click.command()
@click.argument("key")
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the subset and its shards.")
@click.option(
    "--shards",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder of shards, wherever it lies; needs no workspace.",
)
@click.option("--run", "run_name", metavar="RUN", help="Also tell which steps of this run learned from it.")
@workspace_option
@json_option
def trace(root: Path, key: str, name: str, folder: Path | None, run_name: str | None, as_json: bool) -> None:
    """Tell where a picture came from, where it lies in the shards, and which training steps used it.

    KEY is a key, or the path or file name of a picture in the source. Writes nothing; what is missing is noted, and
    the rest is told.

    \b
    Examples:
      imgprep trace n01440764_10026
      imgprep trace ILSVRC2012_val_00000001.JPEG --json
      imgprep trace n01440764_10026 --run tiny-1
    """
    from imgprep.errors import ImgprepError
    from imgprep.trace import trace as follow
    from imgprep.workspace import Workspace

    workspace = Workspace(root)
    shards = _folder(workspace, name, folder)
    found = follow(workspace, key, name=name, folder=shards)
    usage: dict[str, Any] = {}
    failure: ImgprepError | None = None
    if run_name is not None:
        try:
            usage = _usage(root, run_name, found, shards)
        except ImgprepError as error:
            # A run that cannot be read takes nothing from what is known of the picture.
            failure = error
    document = found.to_json() | ({"usage": usage} if usage else {})
    lines = [*_trace_lines(found), *_usage_lines(usage), *(f"note: {note}" for note in found.notes)]
    print_result(lines, document, as_json=as_json)
    if failure is not None:
        raise failure


def _usage(root: Path, run_name: str, found: Trace, shards: Path) -> dict[str, Any]:
    """Which steps of a run learned from a sample, as JSON values."""
    from dataclasses import asdict

    from imgprep.index import read_index
    from training.runs import find_run, read_record
    from training.usage import reached, uses

    run = find_run(root, run_name)
    record = read_record(run)
    usage: dict[str, Any] = {"run": run.name, "finished": run.is_finished, "epochs": record.config.epochs, "steps": []}
    if found.sample is None:
        return usage | {"why": "it is not in the shards"}
    if record.dataset_digest != found.sample["dataset_digest"]:
        return usage | {"why": f"the run learned from other shards, of dataset digest {record.dataset_digest[:16]}"}
    splits = record.config.data
    num_samples = read_index(shards).splits[splits.train_split].num_samples
    until = reached(run, record, num_samples)
    usage |= {"reached": {"epochs": until.epochs, "steps": until.steps, "according_to": until.source}}
    if found.sample["split"] != splits.train_split:
        measured = found.sample["split"] == splits.val_split
        why = "the run was measured on it after every epoch" if measured else "the run does not use its split"
        return usage | {"why": why}
    steps = uses(record, found.sample["row"], num_samples, until)
    return usage | {"steps": [asdict(use) for use in steps]}


def _usage_lines(usage: dict[str, Any]) -> list[str]:
    if not usage:
        return []
    if "why" in usage:
        return [f"run:      {usage['run']}; {usage['why']}"]
    until = usage["reached"]
    far = f"{until['epochs']:,} of {usage['epochs']:,} epochs" + (
        f" and {until['steps']:,} steps" if until["steps"] else ""
    )
    # A run that was killed did more than it had written down.
    least = "" if usage["finished"] else "at least "
    learned = f"{least}{len(usage['steps']):,} steps learned from it"
    lines = [f"run:      {usage['run']}, {least}{far} by {until['according_to']}; {learned}"]
    steps = usage["steps"]
    shown = steps if len(steps) <= _SHOWN else [*steps[: _SHOWN // 2], None, *steps[-_SHOWN // 2 :]]
    lines += [
        "          ..."
        if use is None
        else f"          epoch {use['epoch']}, step {use['step']:,} ({use['global_step']:,} of the run),"
        f" place {use['position']} of the batch"
        for use in shown
    ]
    return lines


def _trace_lines(found: Trace) -> list[str]:
    lines = [f"key:      {found.key}"]
    if found.source is not None:
        lines.append(f"source:   {_source_text(found.source)}")
    if found.catalog is not None:
        row = found.catalog
        crc = f", CRC-32 {row['crc32']}" if row["crc32"] else ""
        name = row.get("class", "").split(",")[0]
        named = f" ({name})" if name and name != row["wnid"] else ""
        lines.append(
            f"catalog:  {row['split']}, class {row['wnid'] or 'unknown'}{named}, {row['num_bytes']:,} bytes{crc}"
        )
    if found.findings is not None:
        lines += [f"doctor:   {code}: {meaning}" for code, meaning in found.findings.items()] or [
            "doctor:   nothing odd"
        ]
    if found.twins:
        lines.append(f"          looks like {', '.join(found.twins)}")
    if found.subset is not None:
        lines += _subset_lines(found.subset)
    if found.rejected:
        lines.append(f"rejected: {found.rejected}")
    if found.sample is not None:
        lines += _sample_lines(found.sample)
    elif not found.rejected:
        lines.append("shards:   not there")
    return lines


def _source_text(source: dict[str, Any]) -> str:
    place = f"{source['path']} ({source['kind']}), " if "path" in source else ""
    member = f"member {source['member']}" if source.get("member") else "member unknown"
    offset = f", local header at {source['header_offset']:,}" if "header_offset" in source else ""
    crc = f", CRC-32 {source['crc32']}" if "crc32" in source else ""
    return f"{place}{member}{offset}{crc}"


def _subset_lines(subset: dict[str, Any]) -> list[str]:
    if subset["chosen"]:
        line = f"subset:   {subset['name']}, {subset['split']}, label {subset['label']}"
    elif "rank" in subset:
        limit = "all" if subset["limit"] is None else f"the first {subset['limit']:,}"
        line = (
            f"subset:   not in {subset['name']}: number {subset['rank']:,} of the {subset['of']:,} of its class by rank"
        )
        line += f"; {limit} are taken"
    else:
        line = f"subset:   not in {subset['name']}" + (f": {subset['why']}" if "why" in subset else "")
    return [line, f"          chosen by: {subset['spec']}"]


def _sample_lines(sample: dict[str, Any]) -> list[str]:
    also = f"; label at {sample['cls_offset']:,}, JSON at {sample['json_offset']:,}" if "cls_offset" in sample else ""
    size = f", {sample['width']} x {sample['height']} pixels" if "width" in sample else ""
    return [
        f"shards:   {sample['split']} sample {sample['row']:,}, label {sample['label']} ({sample['wnid']}){size}",
        f"          {sample['shard']}: {sample['num_bytes']:,} bytes at {sample['offset']:,}{also}",
        f"          CRC-32 {sample['crc32']}, SHA-256 {sample['sha256']}",
        f"          SHA-256 of the shard {sample['shard_sha256']}",
        f"          dataset digest {sample['dataset_digest']}",
    ]
