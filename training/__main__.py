"""``python -m training``: the commands of training by themselves."""

from __future__ import annotations

import sys

import click

from imgprep.errors import INTERRUPTED, ImgprepError, as_imgprep_error
from training.cli import evaluate, report, train


@click.group()
def commands() -> None:
    """Train on shards, measure, report."""


for _command in (train, evaluate, report):
    commands.add_command(_command)


def main() -> int:
    """Run a command and turn errors into one line on stderr and an exit code."""
    try:
        commands.main(prog_name="python -m training", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except ImgprepError as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
    except OSError as error:
        wrapped = as_imgprep_error(error)
        click.echo(f"Error: {wrapped}", err=True)
        return wrapped.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
