"""Write ``cli.md`` and ``faults.md`` in ``docs/reference`` from the program itself, or check that they are up to date.

Run ``python docs/generate.py`` to write the pages; with ``--check`` it writes nothing and exits 1 when one differs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click

from imgprep.cli import main as imgprep
from imgprep.testing.faults import PLACES, ROWS, WAYS, Place, Row

FOLDER: Final = Path(__file__).resolve().parent / "reference"

_HEAD: Final = """# Command line

This page is written by `docs/generate.py` from the commands; do not edit it. `imgprep COMMAND --help` prints the
same, and every command has `-h`, `--help`. The task-shaped pages are in [how-to](../how-to/).
"""


def commands() -> dict[str, click.Command]:
    """All commands by the words that call them, ``imgprep`` itself first, in the order of ``imgprep --help``."""
    context = click.Context(imgprep, info_name="imgprep")
    found: dict[str, click.Command] = {"imgprep": imgprep}
    for name in imgprep.list_commands(context):
        command = imgprep.get_command(context, name)
        if command is not None:
            found[f"imgprep {name}"] = command
    return found


def examples(command: click.Command) -> list[str]:
    """The lines under ``Examples:`` in the help of a command."""
    lines = (command.help or "").splitlines()
    start = next((place for place, line in enumerate(lines, start=1) if line.strip() == "Examples:"), len(lines))
    found = []
    for line in lines[start:]:
        if not line.strip():
            break
        found.append(line.strip())
    return found


def reference() -> str:
    """The page of the commands."""
    parts = [_HEAD]
    for name, command in commands().items():
        parts.append(f"## {name}\n")
        parts += [f"{paragraph}\n" for paragraph in _paragraphs(command)]
        if lines := examples(command):
            parts.append("\n".join(["```sh", *lines, "```"]) + "\n")
        if isinstance(command, click.Group):
            parts.append("| command | what it does |\n| --- | --- |")
            for other, sub in list(commands().items())[1:]:
                parts.append(f"| [{other}](#{other.replace(' ', '-')}) | {_paragraphs(sub)[0]} |")
            parts.append("")
        parts += _parameters(name, command)
        if command.epilog:
            parts.append(f"{' '.join(command.epilog.split())}\n")
    return "\n".join(parts).rstrip("\n") + "\n"


def _paragraphs(command: click.Command) -> list[str]:
    """The text of the help without its examples, a string a paragraph."""
    blocks = (command.help or "").split("\n\n")
    return [" ".join(block.split()) for block in blocks if block.strip() and "Examples:" not in block.split()[:2]]


def _parameters(name: str, command: click.Command) -> Iterator[str]:
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    usage = " ".join([name, "[OPTIONS]", *(argument.metavar or str(argument.name).upper() for argument in arguments)])
    yield f"    {usage}{' COMMAND [ARGS]...' if isinstance(command, click.Group) else ''}\n"
    yield "| option | value | meaning |\n| --- | --- | --- |"
    for param in command.params:
        if isinstance(param, click.Option):
            yield "| " + " | ".join(text.replace("|", "\\|") for text in _row(param)) + " |"
    yield ""


def _row(option: click.Option) -> tuple[str, str, str]:
    notes = re.sub(r"\[default: (.*)\]$", r"Default: \1.", " ".join((option.help or "").split()))
    if option.required:
        notes += " Required."
    elif option.show_default and not option.is_flag:
        notes += f" Default: `{option.default}`"
        notes += f", or the variable `{option.envvar}`." if option.envvar else "."
    return ", ".join(f"`{text}`" for text in sorted(option.opts, key=len)), _value(option), notes


def _value(option: click.Option) -> str:
    """What may stand after an option."""
    kind = option.type
    if option.is_flag:
        return ""
    if isinstance(kind, click.Choice):
        return " or ".join(f"`{choice}`" for choice in kind.choices)
    if isinstance(kind, click.IntRange | click.FloatRange):
        word = "whole number" if isinstance(kind, click.IntRange) else "number"
        if kind.max is None:
            return f"{word} above {kind.min}" if kind.min_open else f"{word}, {kind.min} or more"
        return f"{word} from {kind.min} to {kind.max}"
    if isinstance(kind, click.Path):
        return "folder" if not kind.file_okay else "path"
    return option.metavar or kind.name


_FAULTS: Final = """# Faults and outcomes

This page is written by `docs/generate.py` from the table that the tests play; do not edit it.

Networks fail, addresses expire, servers are busy, proxies meddle. What `imgprep fetch` promises then:

- What is wrong never gets its final name. A file of a part appears when it is whole and its checksum is right, the
  archive when every file in it is.
- What is right stays. The same command goes on from there, and the record of an earlier fetch changes only when the new
  one is complete.
- It ends: by itself when the trouble passes, else with an [exit code](exit-codes.md) and one line that says what to do.

*Recovered* means exit 0 and the same files, byte for byte, as after an undisturbed fetch. *Fewer files* means exit 0
and a warning: pictures and lists are right, annotations are missing; with `--overwrite` the same command adds them
where ranges work again. After an exit code, the same command succeeds once the fault is gone, and again leaves the
files of an undisturbed fetch; where the archive was replaced by another one, it takes `--overwrite`.

*Whole* is `imgprep fetch --yes`, *part* is `imgprep fetch --classes 2 --per-class 6`. *Again* stands for one of them
that was interrupted and is run once more, in a workspace where a smaller part was fetched before. *Once* hits one
request, *for ever* every request from there on. The *first request* finds out what the archive is and reads its end;
the *directory* lists what is in it. An empty cell was not played.

A zip has no checksum of its directory. For a whole archive the directory is therefore read twice. For a part it is read
once: an altered byte that concerns a wanted file ends with exit 3, and the next run reads the directory anew; one that
concerns no wanted file may go unnoticed. Files that were taken out of the archive by ranges are not mixed with files
fetched one by one: where ranges stop working, a part that was begun with them ends with exit 2. Nor is a whole archive
that was begun with ranges given up for one without: it ends with exit 5, and `--overwrite` begins anew.
"""

_SECTIONS: Final[dict[str, tuple[Place, ...]]] = {
    "Downloading": ("end", "directory", "files"),
    "From a server that ignores ranges": ("no ranges",),
    "Asking Kaggle for an address": ("question", "new address"),
    "Logging in": ("login",),
}


def faults() -> str:
    """The page of the faults."""
    parts = [_FAULTS]
    for title, places in _SECTIONS.items():
        ways = " | ".join(WAYS)
        parts.append(f"## {title}\n\n| fault | where | how often | {ways} |\n|{' --- |' * (3 + len(WAYS))}")
        parts += [f"| {' | '.join(cells)} |" for cells in _merged([row for row in ROWS if row.place in places], places)]
        parts.append("")
    return "\n".join(parts).rstrip("\n") + "\n"


def _merged(rows: list[Row], places: tuple[Place, ...]) -> Iterator[list[str]]:
    """The rows as cells, with those that differ in place or frequency only made one."""
    by_outcome: dict[tuple[str, ...], dict[bool, list[Place]]] = {}
    for row in rows:
        key = row.words, *(row.outcomes.get(way, "") for way in WAYS)
        by_outcome.setdefault(key, {}).setdefault(row.forever, []).append(row.place)
    for (words, *outcomes), found in by_outcome.items():
        often = {False: "once", True: "for ever"}
        lots = [(often[forever], where) for forever, where in found.items()]
        if len(lots) == 2 and lots[0][1] == lots[1][1]:
            lots = [("once or for ever", lots[0][1])]
        for frequency, where in lots:
            anywhere = len(places) > 2 and len(where) == len(places)
            yield [words, "anywhere" if anywhere else ", ".join(PLACES[place] for place in where), frequency, *outcomes]


PAGES: Final[dict[str, Callable[[], str]]] = {"cli.md": reference, "faults.md": faults}
"""What is written, by name."""


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 when a page is out of date.")
def main(check: bool) -> None:
    """Write the pages of docs/reference that come from the program."""
    for name, page in PAGES.items():
        path, text = FOLDER / name, page()
        found = path.read_text(encoding="utf-8") if path.exists() else ""
        if found == text:
            click.echo(f"up to date: {name}")
        elif check:
            message = f"{name} is out of date: run `python docs/generate.py`"
            raise click.ClickException(message)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            click.echo(f"written: {name}")


if __name__ == "__main__":
    main()
