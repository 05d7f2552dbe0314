"""The command line: options become a spec, the spec goes to a function, errors become one line and an exit code.

Only click is imported here and in the command modules; everything else is imported when a command runs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final, NoReturn

import click

from imgprep import __version__
from imgprep.cli.check import repair, trace, verify
from imgprep.cli.demo import demo
from imgprep.cli.doctor import doctor
from imgprep.cli.fetch import fetch
from imgprep.cli.interop import index
from imgprep.cli.look import grid, stats
from imgprep.cli.prepare import catalog, read_annotations
from imgprep.cli.shard import shard
from imgprep.cli.subset import subset
from imgprep.errors import INTERRUPTED, ImgprepError, as_imgprep_error
from training.cli import evaluate, report, train

_TRACEBACK: Final = "IMGPREP_TRACEBACK"


class _Group(click.Group):
    """A group that turns the error tree into exit codes, and lists its commands in the order of the street."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order they were added."""
        del ctx
        return list(self.commands)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; see :meth:`click.Group.main`. Leaves with the exit codes of :mod:`imgprep.errors`."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            result = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)
        except ImgprepError as error:
            _leave(str(error), error.exit_code)
        except BrokenPipeError:
            # The reader of a pipe has seen enough, as in `imgprep ... | head`.
            sys.stderr.close()
            sys.exit(1)
        except OSError as error:
            known = as_imgprep_error(error)
            _leave(str(known), known.exit_code)
        except Exception as error:
            if os.environ.get(_TRACEBACK):
                raise
            text = " ".join(f"{type(error).__name__}: {error}".split())
            _leave(f"{text} - this is a bug in imgprep; with {_TRACEBACK}=1 it shows where", 1)
        sys.exit(result if isinstance(result, int) else 0)


def _leave(message: str, code: int) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    # SIGTERM unwinds like Ctrl-C, so that half-written files go away.
    del number, frame
    raise KeyboardInterrupt


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 input damaged or incomplete, 4 permission, 5 network, 6 no space,"
    " 130 interrupted.",
)
@click.version_option(__version__, "-V", "--version", prog_name="imgprep")
def main() -> None:
    """Prepare ImageNet and train on it, in four commands that also work one at a time.

    \b
    Examples:
      imgprep demo
      imgprep fetch --classes 10 --per-class 100
      imgprep subset --classes 10 --per-class 100
      imgprep shard
      imgprep train
    """
    signal.signal(signal.SIGTERM, _terminated)


_STREET: Final = (fetch, catalog, read_annotations, doctor, stats, grid, subset, shard, train, evaluate, report)
_BESIDE: Final = (verify, repair, trace, index, demo)
for _command in (*_STREET, *_BESIDE):
    main.add_command(_command)
