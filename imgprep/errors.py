"""What can go wrong, as one tree; each branch has one exit code.

    ImgprepError                 1   the stage failed
    ├── UsageError               2   the request cannot be met as it was put
    │   ├── SpecError                an option's value breaks a rule
    │   ├── UnknownClassError        no class of that name (near matches are named)
    │   ├── MissingInputError        the stage before has not run here
    │   ├── OutputExistsError        the output was made with other options or inputs
    │   └── MissingExtraError        an optional dependency is not installed
    ├── DamagedError             3   an input is damaged, incomplete or contradicts itself
    │   ├── SourceError              the archive or folder as a whole
    │   │   └── ChangedError             a remote archive was replaced meanwhile
    │   ├── MemberError              one member of it
    │   ├── AnnotationError          one XML file
    │   ├── ImageError               one picture
    │   ├── ContradictionError       two sources disagree
    │   └── TooManyRejectsError      more rejected samples than were allowed
    ├── AccessError              4   credentials or permission
    ├── NetworkError             5   the network, after every retry
    ├── NoSpaceError             6   the disk is full
    ├── LockedError              1   another imgprep holds the workspace or the run
    └── WorkerDiedError          1   a process that worked for this one was killed

Exit code 0 is success and 130 an interruption (Ctrl-C, SIGTERM). Messages say what happened and,
after a dash, what to do.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class ImgprepError(Exception):
    """The root: something a user can read and act on.

    Args:
        what: One sentence: what happened, with the expected and the found value where there are two.
        advice: What to do about it; the command or option where there is one.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice

    def __str__(self) -> str:
        # Names in a hostile archive may hold line breaks or control bytes: a message stays one line and printable.
        text = f"{self.what} - {self.advice}" if self.advice else self.what
        return "".join(c if c.isprintable() else " " for c in text)


class UsageError(ImgprepError):
    """The request cannot be met as it was put."""

    exit_code = 2


class SpecError(UsageError):
    """A value of a spec breaks its rule."""


class UnknownClassError(UsageError):
    """No class of that wnid or name."""


class MissingInputError(UsageError):
    """The stage before this one has not run in this workspace."""


class OutputExistsError(UsageError):
    """The output is there, made with other options or from other inputs."""


class MissingExtraError(UsageError):
    """A package of an optional extra is not installed."""


class DamagedError(ImgprepError):
    """An input is damaged, incomplete or contradicts itself."""

    exit_code = 3


class SourceError(DamagedError):
    """The archive or folder cannot be read as a whole."""


class ChangedError(SourceError):
    """A remote archive was replaced since a part of it was fetched."""


class MemberError(DamagedError):
    """One member of a source cannot be read or fails its checksum."""


class AnnotationError(DamagedError):
    """An XML annotation cannot be used."""


class ImageError(DamagedError):
    """A picture cannot be decoded, or is refused before it is."""


class ContradictionError(DamagedError):
    """Two sources say different things about one image."""


class TooManyRejectsError(DamagedError):
    """More samples were rejected than ``--max-rejects`` allows."""


class AccessError(ImgprepError):
    """Credentials or permission are missing."""

    exit_code = 4


class NetworkError(ImgprepError):
    """The network failed after every retry."""

    exit_code = 5


class NoSpaceError(ImgprepError):
    """The disk is full."""

    exit_code = 6


class LockedError(ImgprepError):
    """Another imgprep process holds the folder."""


class WorkerDiedError(ImgprepError):
    """A process that worked for this one was killed."""


INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells report SIGINT (128 + 2)."""


def as_imgprep_error(error: OSError) -> ImgprepError:
    """Give an operating-system error its place in the tree.

    Args:
        error: What a file operation raised.

    Returns:
        :class:`NoSpaceError` for a full disk or quota, :class:`AccessError` for permissions, else the root class.
    """
    place = f": {error.filename}" if error.filename else ""
    what = f"{error.strerror or error}{place}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(what, "free some space or choose another --workspace, then run the same command again")
    if error.errno == errno.EFBIG:
        return NoSpaceError(
            what, "the filesystem or a limit (ulimit -f) allows no larger file: choose another --workspace"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessError(what, "check the permissions, or choose another --workspace")
    return ImgprepError(what)
