"""Write ``docs/reference/cli.md`` from the commands themselves, or check that it is up to date.

Run ``python docs/generate.py`` to write the page; with ``--check`` it writes nothing and exits 1 when the page differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from imgprep.cli import main as imgprep

PAGE: Final = Path(__file__).resolve().parent / "reference" / "cli.md"

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
    """The whole page."""
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


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 when the page is out of date.")
def main(check: bool) -> None:
    """Write docs/reference/cli.md."""
    text = reference()
    found = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if found == text:
        click.echo(f"up to date: {PAGE.name}")
    elif check:
        message = f"{PAGE.name} is out of date: run `python docs/generate.py`"
        raise click.ClickException(message)
    else:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
        click.echo(f"written: {PAGE.name}")


if __name__ == "__main__":
    main()
