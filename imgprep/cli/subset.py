"""Command ``subset``: choose classes and pictures, or combine two choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import click

from imgprep.cli.options import (
    SHARES,
    SUPERCLASSES,
    dry_run_option,
    json_option,
    overwrite_option,
    print_result,
    selection_fields,
    selection_options,
    workspace_option,
)
from imgprep.cli.prepare import catch_up, source_field
from imgprep.index import DEFAULT_NAME

if TYPE_CHECKING:
    from imgprep.selection import CombineSpec, SubsetSpec
    from imgprep.subset import Selection, SubsetResult
    from imgprep.workspace import Workspace

_WITH_ANY_SPEC: Final = ("root", "name", "overwrite", "dry_run", "as_json")
"""Options that say nothing about what is chosen."""

_SHOWN_NAMES: Final = 12
"""Names of classes that fit two lines."""


@click.command()
@click.argument("operands", nargs=-1, metavar="[union|intersect|difference A B]")
@selection_options
@click.option(
    "--superclasses",
    type=SUPERCLASSES,
    help="A file that makes several classes one: `label: class, class, ...` a line.",
)
@click.option(
    "--split", type=SHARES, help="Divide the training images into train and val, or train, val and test, by shares."
)
@click.option(
    "--folds", type=click.IntRange(2, 100), help="Divide them into so many folds: as many subsets, NAME-foldI."
)
@click.option("--fold", type=click.IntRange(min=0), help="With --folds: write only the subset with this fold as val.")
@click.option("--drop", help="Leave out what `imgprep doctor` found: some of odd,duplicates,leaks,conflicts.")
@click.option("--exclude", multiple=True, help="Leave out the images of this subset or manifest.csv; may be repeated.")
@click.option("--from", "parent", help="Choose from this subset instead of the whole catalog.")
@click.option("--spec", metavar="LINE", help="Choose what a line after `cite as:` says, and check its digest.")
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the subset.")
@workspace_option
@overwrite_option
@dry_run_option
@json_option
@click.pass_context
def subset(ctx: click.Context, /, **options: Any) -> None:
    """Choose classes and images; the same request gives the same rows on any machine.

    Runs catalog and annotations first where they are missing or out of date. With a number of classes, only those with
    enough images are eligible. Choices nest: 10 x 100 is inside 10 x 200.

    `imgprep subset union A B --name NAME` writes what the subsets A and B have together, `intersect` what they have in
    common, `difference` what only A has.

    \b
    Examples:
      imgprep subset --classes 10 --per-class 100
      imgprep subset --classes n01440764,n02102040 --per-class 50 --name two
      imgprep subset --classes "tench,English springer" --val-per-class 10 --name named
      imgprep subset --classes 10 --split 70/20/10 --name divided
      imgprep subset --classes 10 --folds 5 --name folds
      imgprep subset --spec "classes=2 per-class=5 val-per-class=all seed=0" --name again
    """
    from imgprep.sources.adopted import gone_note
    from imgprep.subset import note_on_part
    from imgprep.workspace import Workspace

    given = {
        name
        for name in options
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT and name not in _WITH_ANY_SPEC
    }
    spec, digest = _read_request(options, given)
    workspace = Workspace(options["root"])
    workspace.require()
    results = _choose(workspace, spec, options, digest)
    gone = gone_note(workspace)
    lines: list[str] = []
    documents: list[dict[str, Any]] = []
    for name, result in results.items():
        lines += _result_lines(result, gone, dry_run=options["dry_run"], is_first=not documents)
        documents.append({"name": name, **_result_document(result)})
    document = documents[0]
    if len(documents) > 1:
        has_run = any(each["action"] == "run" for each in documents)
        document = {"action": "run" if has_run else "skip", "folds": documents}
    if _is_from_catalog(spec) and (note := note_on_part(workspace, spec)):
        lines.append(f"note: {note}")
        document["note"] = note
    print_result(lines, document | source_field(workspace), as_json=options["as_json"])


def _read_request(options: Mapping[str, Any], given: set[str]) -> tuple[SubsetSpec | CombineSpec, str]:
    """The spec that is asked for, and the digest it was cited with.

    Raises:
        UsageError: Options that exclude each other, or values that cannot be.
    """
    from imgprep.errors import UsageError
    from imgprep.presets import parse_names
    from imgprep.selection import CombineSpec, SubsetSpec, parse_line, split_citation

    for whole in ("operands", "spec"):
        if options[whole] and given != {whole}:
            other = next(name for name in sorted(given) if name != whole)
            shown = "--spec" if whole == "spec" else f"`{options[whole][0]}`"
            raise UsageError(
                f"{shown} says all about the subset, and there is {_flag(other)} too",
                "leave one of them out; what a combination gave can be chosen from with --from",
            )
    if options["operands"]:
        operation, *names = options["operands"]
        if len(names) != 2:
            raise UsageError(
                f"{operation!r} with {len(names)} names: expected union, intersect or difference and two subsets",
                "as in `imgprep subset union A B --name C`",
            )
        return CombineSpec(operation=operation, first=names[0], second=names[1]), ""
    if options["spec"]:
        line, digest = split_citation(options["spec"])
        return parse_line(line), digest
    fields = selection_fields(options) | {name: options[name] for name in ("folds", "fold", "exclude", "parent")}
    fields["split"] = options["split"] or ()
    fields["drop"] = parse_names(options["drop"]) if options["drop"] is not None else ()
    return SubsetSpec(**fields), ""


def _flag(name: str) -> str:
    return {"parent": "--from", "operands": "a combination"}.get(name, "--" + name.replace("_", "-"))


def _is_from_catalog(spec: SubsetSpec | CombineSpec) -> TypeGuard[SubsetSpec]:
    from imgprep.selection import SubsetSpec

    return isinstance(spec, SubsetSpec) and spec.parent is None


def _choose(
    workspace: Workspace, spec: SubsetSpec | CombineSpec, options: Mapping[str, Any], digest: str
) -> dict[str, SubsetResult]:
    """Choose what a spec stands for, several subsets where it has folds: results by name."""
    from imgprep.errors import SpecError
    from imgprep.selection import SubsetSpec
    from imgprep.subset import SubsetResult, plan_subset, subset

    wanted = {options["name"]: spec}
    if isinstance(spec, SubsetSpec) and spec.folds is not None and spec.fold is None:
        if digest:
            raise SpecError("each fold has a digest of its own", "name one in the spec, as in folds=5 fold=0")
        wanted = {f"{options['name']}-fold{each.fold}": each for each in spec.each_fold()}
    results = {}
    if options["dry_run"]:
        if _is_from_catalog(spec):
            _require_current(workspace)
        for name, each in wanted.items():
            selection = plan_subset(workspace, each)
            results[name] = SubsetResult(
                action="run",
                folder=workspace.subset(name),
                digest=selection.digest,
                line=selection.line,
                selection=selection,
            )
        return results
    with workspace.locked("imgprep subset"):
        if _is_from_catalog(spec):
            catch_up(workspace)
        for name, each in wanted.items():
            results[name] = subset(workspace, each, name=name, overwrite=options["overwrite"], digest=digest)
    return results


def _result_document(result: SubsetResult) -> dict[str, Any]:
    document: dict[str, Any] = {
        "action": result.action,
        "spec": result.line,
        "digest": result.digest,
        "folder": str(result.folder),
    }
    selection = result.selection
    if selection is not None:
        document |= {split: selection.num_rows(split) for split in ("train", "val", "test")}
        document["classes"] = [synset.wnid for synset in selection.catalog]
        document["passed_over"] = {synset.wnid: n for synset, n in selection.passed_over}
        document["left_out"] = selection.left_out
        document["unlabelled"] = dict(selection.unlabelled)
        document["untrained"] = dict(selection.untrained)
        document["replaced"] = dict(selection.replaced)
    return document


def _require_current(workspace: Workspace) -> None:
    """A dry run writes nothing, so it cannot bring catalog and annotations up to date itself."""
    from imgprep.annotations import plan_annotations
    from imgprep.catalog import plan_catalog
    from imgprep.errors import MissingInputError

    for name, plan in (("catalog", plan_catalog), ("annotations", plan_annotations)):
        if plan(workspace)[0] == "run":
            raise MissingInputError(f"a dry run needs an up-to-date {name}", f"run `imgprep {name}` first")


def _result_lines(result: SubsetResult, gone: str, *, dry_run: bool, is_first: bool) -> list[str]:
    path, selection = result.folder / "manifest.csv", result.selection
    if selection is None:
        return [f"up to date: {path} ({result.line}, digest {result.digest[:16]}){gone}"]
    counts = [f"{selection.num_rows(split):,} {split}" for split in ("train", "val")]
    if selection.num_rows("test"):
        counts = [", ".join(counts), f"{selection.num_rows('test'):,} test"]
    names = ", ".join(synset.synonyms[0] for synset in list(selection.catalog)[:_SHOWN_NAMES])
    more = ", ..." if len(selection.catalog) > _SHOWN_NAMES else ""
    chosen = (
        f"{'would choose' if dry_run else 'subset:'} {len(selection.catalog)} classes, {' and '.join(counts)} images"
    )
    # The classes, and what there is to say of them, are the same for all folds.
    return [
        *(_remarks(selection) if is_first else ()),
        f"{chosen} -> {path}",
        *([f"classes: {names}{more}"] if is_first else ()),
        f"cite as: {result.line} (digest {result.digest[:16]})",
    ]


def _counts_text(pictures: Mapping[str, int]) -> str:
    return " and ".join(f"{number:,} {split}" for split, number in pictures.items())


def _remarks(selection: Selection) -> list[str]:
    lines = []
    if selection.left_out:
        lines.append(f"left out before the choice: {selection.left_out:,} pictures")
    if selection.passed_over:
        listed = ", ".join(f"{synset.label} {n}" for synset, n in selection.passed_over[:10])
        more = f" and {len(selection.passed_over) - 10} more" if len(selection.passed_over) > 10 else ""
        lines.append(f"passed over, too few training images: {listed}{more}")
    if selection.short:
        lines.append(f"short: {', '.join(f'{synset.label} {n}' for synset, n in selection.short)}")
    seen = set(selection.manifest.loc[selection.manifest["split"] == "val", "wnid"])
    without = [synset.label for synset in selection.catalog if synset.wnid not in seen]
    if without:
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        lines.append(f"without validation images: {', '.join(without[:5])}{more}")
    for pictures, why in (
        (selection.unlabelled, "they have no label"),
        (selection.untrained, "their classes have no training images"),
        (selection.replaced, "others were made of the training images"),
    ):
        if pictures:
            lines.append(f"left out: {_counts_text(pictures)} images, as {why}")
    return lines
