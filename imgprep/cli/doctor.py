"""Command ``doctor``: what is odd about the pictures, and which of them are duplicates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from imgprep.cli.options import json_option, print_result, workspace_option
from imgprep.cli.prepare import catch_up, source_field

if TYPE_CHECKING:
    from imgprep.doctor import DoctorResult
    from imgprep.workspace import Workspace

_ANY: Final = "any"


class Findings(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic only from click 8.4 on
    """Codes of findings between commas, or ``any``."""

    name = "CODE,...|any"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Turn the text into codes."""
        from imgprep.findings import CODES

        codes = tuple(code.strip() for code in str(value).split(","))
        if codes == (_ANY,):
            return tuple(CODES)
        unknown = [code for code in codes if code not in CODES]
        if unknown:
            self.fail(f"{unknown[0]!r} is no finding; there are {', '.join(CODES)}, and any.", param, ctx)
        return codes


@click.command()
@click.option("--fail-on", type=Findings(), help="End with exit code 3 when one of these findings is there.")
@click.option(
    "--near-distance",
    type=click.IntRange(0, 8),
    default=4,
    show_default=True,
    help="Bits of 64 in which the hashes of two pictures that look alike may differ.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 150_000_000),
    default=100_000_000,
    show_default=True,
    help="Do not decode pictures whose header claims more.",
)
@click.option(
    "-j", "--workers", type=click.IntRange(min=0), default=0, help="Processes; 0 is one a processor.  [default: 0]"
)
@workspace_option
@json_option
def doctor(root: Path, fail_on: tuple[str, ...] | None, workers: int, as_json: bool, **options: int) -> None:
    """Look at every picture: what it truly is, whether it decodes, what is odd about it, what it is a duplicate of.

    Pairs of pictures are the same or look alike: within a split, across splits, or under two classes.

    Writes catalog/doctor.csv, one row a picture, and catalog/doctor.png, some pictures of each finding. Broken
    pictures are findings, not errors. Same pictures and options, same table, whatever the number of workers.

    \b
    Examples:
      imgprep doctor
      imgprep doctor --fail-on leak,label-conflict,undecodable
      imgprep doctor --fail-on any --json
    """
    from imgprep.cli.progress import make_progress
    from imgprep.doctor import DoctorSpec
    from imgprep.doctor import doctor as examine
    from imgprep.executors import make_executor
    from imgprep.sources.adopted import gone_note
    from imgprep.workspace import Workspace

    spec = DoctorSpec(**options)
    workspace = Workspace(root)
    workspace.require()
    with workspace.locked("imgprep doctor"):
        note = _catch_up(workspace)
        result = examine(workspace, spec, executor=make_executor(workers), progress=make_progress())
    document = _document(result, workspace, note)
    print_result(_lines(result, document, gone_note(workspace)), document, as_json=as_json)
    _fail(document["findings"], fail_on or ())


def _catch_up(workspace: Workspace) -> str:
    """Bring catalog and annotations up to date; returns what to note where the annotations cannot be used.

    That is no reason not to look at the pictures.
    """
    from imgprep.errors import DamagedError, MissingInputError
    from imgprep.tables import read_catalog

    try:
        catch_up(workspace)
    except DamagedError as error:
        # The catalog comes first: when it is there, what failed are the annotations.
        try:
            read_catalog(workspace.catalog / "classes.csv")
        except MissingInputError:
            raise error from None
        return f"sizes and boxes were not compared, as the annotations cannot be used: {error.what}"
    return ""


def _document(result: DoctorResult, workspace: Workspace, note: str) -> dict[str, Any]:
    from imgprep.doctor import SHEET
    from imgprep.findings import DOCTOR_FILE

    sheet = workspace.catalog / SHEET
    examples = result.examples()
    document = {
        "action": result.action,
        "pictures": result.stats["pictures"],
        "odd": result.stats["odd"],
        "in_pairs": result.stats["in_pairs"],
        "findings": {code: {"count": result.stats[code], "example": path} for code, path in examples.items()},
        "table": str(workspace.catalog / DOCTOR_FILE),
        "sheet": str(sheet) if sheet.is_file() else None,
        "crowded": result.stats["crowded"],
    }
    return document | ({"note": note} if note else {}) | source_field(workspace)


def _lines(result: DoctorResult, document: dict[str, Any], gone: str) -> list[str]:
    from imgprep.twins import WINDOW

    start = "up to date" if result.action == "skip" else "doctor"
    lines = [
        f"{start}: {document['pictures']:,} pictures, {document['odd']:,} odd, {document['in_pairs']:,} with a twin"
        f" -> {document['table']}{gone}"
    ]
    lines += [
        f"  {code:<16} {finding['count']:>9,}  {finding['example']}" for code, finding in document["findings"].items()
    ]
    if document["sheet"]:
        lines.append(f"some of each: {document['sheet']}")
    if document["crowded"]:
        lines.append(
            f"note: {document['crowded']:,} hashes have more than {WINDOW} neighbours; some look-alikes may be missed"
        )
    if "note" in document:
        lines.append(f"note: {document['note']}")
    return lines


def _fail(findings: dict[str, Any], fail_on: tuple[str, ...]) -> None:
    from imgprep.errors import DamagedError

    found = [f"{code} {findings[code]['count']:,}" for code in fail_on if code in findings]
    if found:
        raise DamagedError(f"found what --fail-on names: {', '.join(found)}", "catalog/doctor.csv lists the pictures")
