"""Options that several commands share, and how their results are printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from imgprep.index import DEFAULT_WORKSPACE, WORKSPACE_VARIABLE

F = TypeVar("F", bound=Callable[..., Any])

_MAX_LIST: Final = 1_000_000
"""Bytes of a list of classes: all of WordNet's nouns would fit."""


def workspace_option(function: F) -> F:
    """``--workspace``: the folder all stages share."""
    return click.option(
        "-w",
        "--workspace",
        "root",
        type=click.Path(file_okay=False, path_type=Path),
        default=DEFAULT_WORKSPACE,
        envvar=WORKSPACE_VARIABLE,
        show_default=True,
        show_envvar=True,
        help="Folder where every stage finds what the one before it left.",
    )(function)


def json_option(function: F) -> F:
    """``--json``: one object on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")(
        function
    )


def dry_run_option(function: F) -> F:
    """``--dry-run``: print the plan."""
    return click.option("-n", "--dry-run", is_flag=True, help="Print what would be done, write nothing.")(function)


def overwrite_option(function: F) -> F:
    """``--overwrite``: replace an output that answers another request."""
    return click.option("--overwrite", is_flag=True, help="Replace an output that was made with other options.")(
        function
    )


class CountOrAll(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic only from click 8.4 on
    """A whole number, or ``all``, which becomes None.

    Args:
        least: The smallest number that is allowed.
    """

    name = "N|all"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Turn the text into the number."""
        if value is None or str(value).strip().lower() == "all":
            return None
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor 'all'.", param, ctx)
        if number < self.least:
            self.fail(f"{number} is less than {self.least}.", param, ctx)
        return number


class Parsed(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic only from click 8.4 on
    """A value that a function reads.

    Args:
        name: What the help shows in its place.
        parse: Turns the text into the value; raises SpecError.
    """

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Turn the text into the value."""
        from imgprep.errors import SpecError

        try:
            return self._parse(value) if isinstance(value, str) else value
        except SpecError as error:
            self.fail(f"{error}.", param, ctx)


def _parse_classes(text: str) -> int | tuple[str, ...] | None:
    from imgprep.errors import SpecError
    from imgprep.presets import parse_class_list
    from imgprep.selection import parse_classes

    if text.startswith("@"):
        return parse_class_list(_read_list(text[1:]))
    classes = parse_classes(text)
    if isinstance(classes, int) and classes < 1:
        raise SpecError(f"{classes} is less than 1")
    return classes


def _read_superclasses(path: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    from imgprep.errors import SpecError
    from imgprep.presets import parse_superclasses

    try:
        return parse_superclasses(_read_list(path))
    except SpecError as error:
        raise SpecError(f"{path}: {error.what}", error.advice) from None


def _parse_shares(text: str) -> tuple[int, ...]:
    from imgprep.selection import parse_shares

    return parse_shares(text)


CLASSES: Final = Parsed("N|NAME,...|@FILE", _parse_classes)
"""A number of classes, names between commas, or ``@FILE`` with one name a line; ``all`` becomes None."""

SUPERCLASSES: Final = Parsed("FILE", _read_superclasses)
"""A file with ``label: class, class, ...`` a line."""

SHARES: Final = Parsed("A/B[/C]", _parse_shares)
"""Shares between slashes: ``70/20/10``."""


def _read_list(path: str) -> str:
    """The text of a short file that a person wrote."""
    from imgprep.errors import SpecError

    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_LIST + 1)
    except (OSError, ValueError) as error:
        raise SpecError(f"{path!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > _MAX_LIST:
        raise SpecError(f"{path!r} has more than {size_text(_MAX_LIST)}, which is no list of classes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise SpecError(f"{path!r} is not UTF-8") from None


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic only from click 8.4 on
    """A number of bytes, with a decimal unit if one likes: ``500k``, ``20MB``."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Turn the text into bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)b?(?:/s)?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no size such as 500k, 20MB or 1.5G.", param, ctx)
        number = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2]]
        if number < 1:
            self.fail(f"{value!r} is less than a byte.", param, ctx)
        return number


def selection_options(function: F) -> F:
    """``--classes`` and what goes with it; :func:`selection_fields` makes fields of a spec of them."""
    options = (
        click.option(
            "--classes",
            type=CLASSES,
            default="all",
            show_default=True,
            help="How many classes, or which: wnids or names between commas, or one a line of a file.",
        ),
        click.option("--preset", metavar="NAME", help="Classes of a list with a name, such as imagenette."),
        click.option(
            "--per-class", type=CountOrAll(1), default="all", show_default=True, help="Training images a class."
        ),
        click.option(
            "--val-per-class", type=CountOrAll(0), default="all", show_default=True, help="Validation images a class."
        ),
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, another choice."
        ),
        click.option(
            "--allow-short", is_flag=True, help="Take a named class also when it has fewer images than asked for."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def selection_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a :class:`imgprep.selection.SubsetSpec` from the options that choose.

    Raises:
        SpecError: There is no such preset, or other options choose the classes too.
    """
    from imgprep.selection import with_preset

    names = ("classes", "per_class", "val_per_class", "seed", "allow_short")
    fields = {name: options[name] for name in names} | {"superclasses": options.get("superclasses") or ()}
    return with_preset(fields, options["preset"]) if options["preset"] is not None else fields


def workers_option(function: F) -> F:
    """``--workers`` and ``--engine``: see :func:`imgprep.executors.make_executor`."""
    workers = click.option(
        "-j", "--workers", type=click.IntRange(min=0), default=0, help="How many at once; 0 is one a processor."
    )
    engine = click.option(
        "--engine",
        type=click.Choice(["auto", "threads", "processes"]),
        default="auto",
        show_default=True,
        help="What the workers are.",
    )
    return workers(engine(function))


def print_result(lines: list[str], document: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result for people, or for programs."""
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False))
    else:
        print_lines(lines)


def print_lines(lines: Iterable[str], *, err: bool = False) -> None:
    """Print lines that may have names from an archive in them."""
    for line in lines:
        click.echo(printable(line), err=err)


def printable(text: str) -> str:
    """The text without what could steer a terminal: names come from archives, reasons from servers."""
    return "".join(c if c.isprintable() else " " for c in text)


def size_text(num_bytes: float) -> str:
    """A size in decimal units, as disks and Kaggle count them: ``61.0 MB``."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:  # decimal units
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"
