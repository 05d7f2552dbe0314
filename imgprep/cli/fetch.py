"""Command ``fetch``: from Kaggle, whole or in part, or from a copy that is there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from imgprep.cli.options import (
    Size,
    dry_run_option,
    json_option,
    overwrite_option,
    print_result,
    printable,
    selection_fields,
    selection_options,
    size_text,
    workspace_option,
)

if TYPE_CHECKING:
    from imgprep.fetch.online import OnlinePlan, OnlineReport, OnlineSpec
    from imgprep.fetch.request import PartRequest
    from imgprep.sources.directory import Links
    from imgprep.workspace import Workspace

_SELECTION: Final = ("classes", "preset", "per_class", "val_per_class", "seed", "allow_short")


@click.command()
@selection_options
@click.option(
    "--subset",
    "manifest",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Fetch the pictures of this manifest.csv.",
)
@click.option("--metadata-only", is_flag=True, help="Fetch all lists and annotations, and no picture.")
@click.option(
    "--from",
    "path",
    type=click.Path(path_type=Path),
    help="Adopt a copy that is there: a zip, tar, tar.gz or directory. Nothing is copied.",
)
@click.option("--layout", metavar="NAME", help="With --from: how the copy lies in its files.  [default: find out]")
@click.option("--follow-links", is_flag=True, help="With --from: follow the symbolic links in a folder.")
@click.option("-y", "--yes", is_flag=True, help="Fetch the whole archive without asking.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 64), default=8, show_default=True, help="Connections at the same time."
)
@click.option(
    "--rate", type=Size(), help="Most bytes a second over all connections, such as 20MB.  [default: no limit]"
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=86_400),
    default=60.0,
    show_default=True,
    help="Seconds without a byte after which a connection is given up and another one tried.",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    help="Failures in a row after which to stop. What is here by then is kept.",
)
@workspace_option
@overwrite_option
@dry_run_option
@json_option
@click.pass_context
def fetch(ctx: click.Context, /, **options: Any) -> None:
    """Download ImageNet from Kaggle: all of it, or only the part that is wanted; or adopt a copy that is there.

    A part is taken out of the archive by byte ranges: its directory is read once, then the chosen members. The choice
    is the one that `imgprep subset` makes from the whole archive. Asking for more later fetches only what is missing.
    Every member is checked by its CRC-32. Whatever interrupts it, the same command goes on.

    \b
    Examples:
      imgprep fetch --classes 10 --per-class 100
      imgprep fetch --classes "tench,English springer" --per-class 50 --val-per-class 10
      imgprep fetch --metadata-only
      imgprep fetch --yes
      imgprep fetch --from imagenet-object-localization-challenge.zip
      imgprep fetch --from /data/imagenet --workspace my-imagenet
      imgprep fetch --from /data/imagenet --follow-links --workspace links
    """
    from imgprep.workspace import Workspace

    selected = [name for name in _SELECTION if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]
    request = _request(options, selected)
    workspace = Workspace(options["root"])
    if options["path"] is not None:
        _adopt(workspace, options)
    else:
        _fetch_online(workspace, request, options)


def _request(options: Mapping[str, Any], selected: list[str]) -> PartRequest | None:
    """The part that is asked for, or None for the whole archive.

    Raises:
        UsageError: Options that exclude each other.
    """
    from imgprep.errors import UsageError
    from imgprep.fetch.request import PartRequest
    from imgprep.selection import SubsetSpec

    ways = {
        "--" + selected[0].replace("_", "-") if selected else "": bool(selected),
        "--subset": options["manifest"] is not None,
        "--metadata-only": options["metadata_only"],
        "--from": options["path"] is not None,
    }
    given = [name for name, is_given in ways.items() if is_given]
    if options["layout"] is not None and options["path"] is None:
        raise UsageError("--layout goes with --from: Kaggle has one layout", "leave it out, or name a copy with --from")
    if options["follow_links"] and options["path"] is None:
        raise UsageError(
            "--follow-links goes with --from: Kaggle has no links", "leave it out, or name a copy with --from"
        )
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} ask for different things", "give one of them")
    if options["manifest"] is not None:
        return PartRequest(manifest=options["manifest"])
    if options["metadata_only"]:
        return PartRequest()
    return PartRequest(subset=SubsetSpec(**selection_fields(options))) if selected else None


def _adopt(workspace: Workspace, options: Mapping[str, Any]) -> None:
    from dataclasses import asdict

    from imgprep.cli.progress import make_progress
    from imgprep.fetch import adopt, plan_fetch

    # Looked at before the workspace is made: a wrong path leaves nothing behind.
    result = plan_fetch(
        workspace,
        options["path"],
        layout=options["layout"],
        follow_links=options["follow_links"],
        overwrite=options["overwrite"],
        progress=make_progress(),
    )
    if not options["dry_run"]:
        workspace.root.mkdir(parents=True, exist_ok=True)
        with workspace.locked("imgprep fetch"):
            adopt(workspace, result)
    record = result.record
    verb = {"run": "would adopt" if options["dry_run"] else "adopted", "skip": "up to date: adopted before,"}
    lines = [
        f"{verb[result.action]} {record.kind} {record.path}",
        f"{record.num_members:,} files, {size_text(record.num_bytes)}, layout {record.layout},"
        f" listing {record.listing_sha256[:16]}",
    ]
    for line in _link_lines(result.links):
        click.echo(f"Warning: {printable(line)}", err=True)
    links = {
        kind: {"count": len(names), "first": printable(min(names))}
        for kind, names in asdict(result.links).items()
        if names
    }
    document = {"action": result.action, "source": asdict(record), "links": links}
    print_result(lines, document, as_json=options["as_json"])


_LINKS: Final = {
    "not_followed": ("were not followed", "; --follow-links follows them"),
    "broken": ("lead nowhere", ""),
    "circular": ("lead back to a folder they lie in", ""),
}


def _link_lines(links: Links) -> list[str]:
    return [
        f"{len(names):,} symbolic links {what} (first: {min(names)}){advice}"
        for kind, (what, advice) in _LINKS.items()
        if (names := getattr(links, kind))
    ]


def _fetch_online(workspace: Workspace, request: PartRequest | None, options: Mapping[str, Any]) -> None:
    from imgprep.backoff import Backoff
    from imgprep.cli.progress import make_progress
    from imgprep.fetch.online import Online, OnlineSpec, report_document
    from imgprep.fetch.space import free_bytes
    from imgprep.transfer import TransferSpec

    spec = OnlineSpec(
        request=request,
        transfer=TransferSpec(jobs=options["jobs"], rate=options["rate"], timeout=options["timeout"]),
        retries=options["retries"],
        overwrite=options["overwrite"],
    )
    backoff = Backoff(retries=spec.retries, tell=lambda text: click.echo(printable(text), err=True))
    with Online(workspace, spec, progress=make_progress(), backoff=backoff) as online:
        plan = online.plan()
        for warning in online.warnings:
            click.echo(f"Warning: {warning}", err=True)
        if options["dry_run"]:
            free = free_bytes(workspace.root)
            lines = _plan_lines(plan, spec)
            lines += [f"free: {size_text(free)} at {workspace.root}"] if plan.action == "run" else []
            print_result(lines, _plan_document(plan) | {"free_bytes": free}, as_json=options["as_json"])
            return
        if plan.action == "run":
            for line in _plan_lines(plan, spec):
                click.echo(line, err=True)
            if request is None:
                _confirm(workspace, plan, speed=online.bytes_per_second, yes=options["yes"])
        workspace.root.mkdir(parents=True, exist_ok=True)
        with workspace.locked("imgprep fetch"):
            report = online.run(plan)
    print_result(_report_lines(report), report_document(report), as_json=options["as_json"])


def _confirm(workspace: Workspace, plan: OnlinePlan, *, speed: float | None, yes: bool) -> None:
    """Ask before the whole archive is fetched.

    Raises:
        UsageError: There is nobody to ask.
        NoSpaceError: There is not room for it.
    """
    from imgprep.errors import UsageError
    from imgprep.fetch.space import check_space, free_bytes

    check_space(workspace.root, plan.read_bytes, what=f"the missing part of {plan.path.name}")
    hours = f", about {_duration(plan.read_bytes / speed)} at the {size_text(speed)}/s seen so far" if speed else ""
    click.echo(
        f"the whole archive: {size_text(plan.archive_bytes)}, {size_text(plan.read_bytes)} of it to fetch{hours};"
        f" {size_text(free_bytes(workspace.root))} are free at {workspace.root}",
        err=True,
    )
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            f"this fetches {size_text(plan.read_bytes)}, and there is no terminal to ask on",
            "add --yes to fetch it, or --classes and --per-class to fetch a part",
        )
    click.confirm("fetch it?", abort=True, err=True)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _plan_lines(plan: OnlinePlan, spec: OnlineSpec) -> list[str]:
    if plan.action == "skip":
        return [f"up to date: {plan.path}"]
    asked = spec.request.line if spec.request is not None else "the whole archive"
    pictures = ", ".join(f"{n:,} {split}" for split, n in plan.pictures.items())
    share = f" of {size_text(plan.archive_bytes)}" if plan.archive_bytes else ""
    # Without ranges, either the files or the bytes are not known before.
    what = [f"{plan.num_files:,} files"] if plan.num_files or plan.way != "sequential" else []
    what += [size_text(plan.read_bytes)] if plan.read_bytes or plan.way != "one by one" else []
    return [
        f"{asked}{f': {pictures} pictures' if pictures else ''}",
        f"to fetch: {', '.join(what)}{share} in {plan.num_requests:,} requests -> {plan.path}",
    ]


def _plan_document(plan: OnlinePlan) -> dict[str, Any]:
    return {
        "action": plan.action,
        "way": plan.way,
        "path": str(plan.path),
        "archive_bytes": plan.archive_bytes,
        "files_to_fetch": plan.num_files,
        "files_held": plan.num_held,
        "bytes_to_fetch": plan.read_bytes,
        "requests": plan.num_requests,
        "pictures": dict(plan.pictures),
    }


def _report_lines(report: OnlineReport) -> list[str]:
    plan = report.plan
    wire = (
        f"{size_text(report.wire_bytes)} on the wire, {report.requests:,} requests, {report.retries:,} retries,"
        f" {report.checked:,} members checked, {report.seconds:.1f} s"
    )
    if plan.action == "skip":
        return [f"up to date: {plan.path} ({plan.num_held:,} files)", wire]
    more = [f"the part in {report.unneeded} is no longer needed and can be deleted"] if report.unneeded else []
    share = f" ({report.wire_bytes / plan.archive_bytes:.2%} of the archive)" if plan.archive_bytes else ""
    return [
        f"fetched {plan.num_files:,} files; {plan.num_held:,} are here now -> {plan.path}",
        wire.replace(" on the wire", f" on the wire{share}", 1),
        *more,
    ]
