"""What may go wrong between a computer and Kaggle, and how `imgprep fetch` ends: the table of tests and documentation.

A row is one fault at one place, once or for ever, with the outcome for each way of fetching. The tests play every cell
against :class:`imgprep.testing.kaggle.KaggleStandIn`; ``docs/generate.py`` prints the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias, get_args

from imgprep.testing.kaggle import Credentials, Fault

Way: TypeAlias = Literal["whole", "whole again", "part", "part again"]
"""What is fetched; ``again`` stands for a fetch that was interrupted and is now run once more."""

Place: TypeAlias = Literal["end", "directory", "files", "no ranges", "question", "new address", "login"]
"""Where it goes wrong: at one of the requests to storage, or when Kaggle is asked for an address."""

Outcome: TypeAlias = Literal["recovered", "fewer files", "exit 2", "exit 3", "exit 4", "exit 5"]

WAYS: Final[tuple[Way, ...]] = get_args(Way)

PLACES: Final[Mapping[Place, str]] = {
    "end": "first request",
    "directory": "directory",
    "files": "files",
    "no ranges": "a server that ignores ranges",
    "question": "asking Kaggle",
    "new address": "asking Kaggle again midway",
    "login": "credentials",
}
"""The places in words, in the order in which a fetch comes to them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault at one place.

    Attributes:
        words: The fault, as a reader would put it.
        place: Where it strikes.
        forever: Whether it strikes every request from there on, or one only.
        faults: The same for the stand-in; their ``after`` counts from the first request of the place.
        outcomes: How a fetch ends; a way that is left out is not played.
        credentials: What the account logs in with.
        zipped: Whether storage wraps the lists in zips of their own.
        other_content: Whether the archive is another one afterwards: to go over to it takes ``--overwrite``.
        wanted_entry: Whether the byte that is hit is one of the directory's, of the CRC-32 of a file that is wanted.
    """

    words: str
    place: Place
    forever: bool
    faults: tuple[Fault, ...]
    outcomes: Mapping[Way, Outcome]
    credentials: Credentials = "legacy"
    zipped: bool = False
    other_content: bool = False
    wanted_entry: bool = False

    @property
    def name(self) -> str:
        """A name for tests: ``cut-files-once``."""
        last = self.faults[-1] if self.faults else None
        details = [str(last.status)] if last and last.kind == "status" else []
        details += ["after", str(last.retry_after)] if last and last.retry_after else []
        details += ["other"] * self.other_content + ["zipped"] * self.zipped + ["entry"] * self.wanted_entry
        kind = last.kind if last else self.credentials
        return "-".join([kind, *details, self.place.replace(" ", "-"), "ever" if self.forever else "once"])


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A fault with its outcomes, once and for ever; None where one of them is not played."""

    words: str
    fault: Fault
    once: Outcome | Mapping[Way, Outcome] | None = "recovered"
    ever: Outcome | Mapping[Way, Outcome] | None = "exit 5"
    places: tuple[Place, ...] = ("end", "directory", "files")
    before: tuple[Fault, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> Iterable[Row]:
        for place in self.places:
            for outcome, times in ((self.once, 1), (self.ever, None)):
                if outcome is not None:
                    yield Row(
                        words=self.words,
                        place=place,
                        forever=times is None,
                        faults=(*self.before, replace(self.fault, times=times)),
                        outcomes=dict.fromkeys(WAYS, outcome) if isinstance(outcome, str) else outcome,
                        **self.settings,
                    )


def _status(status: int, words: str, **more: Any) -> _Kind:
    named = f"an answer with HTTP {status}, {words}"
    return _Kind(words=named, fault=Fault(kind="status", status=status), places=("end", "files"), **more)


_PATIENCE: Final = "to try again in an hour"
_NO_RANGES: Final = Fault(kind="no-range", times=None)
_WHOLE_ONLY: Final[tuple[Way, ...]] = ("whole", "whole again")

_STORAGE: Final = (
    _Kind(words="the connection ends in the middle of an answer", fault=Fault(kind="cut")),
    _Kind(words="the connection ends before an answer", fault=Fault(kind="close")),
    _Kind(words="nothing more comes, and the connection stays open", fault=Fault(kind="stall")),
    _Kind(
        words="bytes trickle, less than a kilobyte a second",
        fault=Fault(kind="slow", rate=500),
        places=("end", "files"),
    ),
    _status(429, "too many requests"),
    _status(500, "the server failed"),
    _status(503, "the server is busy"),
    _Kind(
        words="HTTP 429 that asks to wait a second",
        fault=Fault(kind="status", status=429, retry_after="1"),
        ever=None,
        places=("files",),
    ),
    _Kind(
        words=f"HTTP 503 that asks {_PATIENCE}",
        fault=Fault(kind="status", status=503, retry_after="3600"),
        once="exit 5",
    ),
    _status(404, "not found", ever="exit 2"),
    _status(403, "forbidden", ever="exit 4"),
    _status(400, "refused", ever="exit 4"),
    _Kind(words="the address has expired", fault=Fault(kind="expired"), ever="exit 4"),
    _Kind(
        words="the whole archive comes instead of a range", fault=Fault(kind="no-range"), places=("directory", "files")
    ),
    _Kind(words="the whole archive comes instead of a range", fault=Fault(kind="no-range"), ever=None, places=("end",)),
    _Kind(words="an answer without ETag", fault=Fault(kind="no-etag"), ever="recovered"),
    _Kind(words="an answer without Content-Length", fault=Fault(kind="no-length"), ever="recovered"),
    _Kind(words="a Content-Length that is too large", fault=Fault(kind="wrong-length")),
    _Kind(words="bytes from another place than was asked for", fault=Fault(kind="wrong-range")),
    _Kind(words="a few of the bytes that were asked for, and said so", fault=Fault(kind="short-range")),
    _Kind(words="a byte altered on the way", fault=Fault(kind="flip"), ever="exit 3"),
    _Kind(
        words="a byte altered in what the directory says of a wanted file",
        fault=Fault(kind="flip"),
        once={"whole": "recovered", "whole again": "recovered", "part": "exit 3", "part again": "recovered"},
        ever=None,
        places=("end",),
        settings={"wanted_entry": True},
    ),
    _Kind(words="a body compressed with gzip unasked", fault=Fault(kind="gzip")),
    _Kind(words="a web page instead of bytes", fault=Fault(kind="html")),
    _Kind(words="an error as JSON, sent with HTTP 200", fault=Fault(kind="json-error")),
    _Kind(
        words="the archive is uploaded again, with the same content",
        fault=Fault(kind="replaced"),
        once="exit 3",
        ever="exit 3",
    ),
    _Kind(
        words="the archive is replaced by another one",
        fault=Fault(kind="replaced"),
        once="exit 3",
        ever=None,
        settings={"other_content": True},
    ),
)

_ONE_BY_ONE: Final[Mapping[Way, Outcome]] = {"part": "fewer files", "part again": "exit 2"}
_SLOW_WAYS: Final[Mapping[Way, Outcome]] = {"whole": "recovered", **_ONE_BY_ONE}


def _without_ranges(words: str, fault: Fault, *, ever: Outcome = "exit 5") -> _Kind:
    # What came by ranges before is not given up for such a server, whatever else it does.
    lasting = dict.fromkeys(_SLOW_WAYS, ever)
    return _Kind(words=words, fault=fault, once=_SLOW_WAYS, ever=lasting, places=("no ranges",), before=(_NO_RANGES,))


_RANGELESS: Final = (
    _Kind(
        words="nothing else",
        fault=_NO_RANGES,
        once=None,
        ever={**_SLOW_WAYS, "whole again": "exit 5"},
        places=("no ranges",),
    ),
    _Kind(
        words="lists served as a zip each",
        fault=_NO_RANGES,
        once=None,
        ever=_ONE_BY_ONE,
        places=("no ranges",),
        settings={"zipped": True},
    ),
    _without_ranges("the connection ends in the middle of an answer", Fault(kind="cut")),
    _without_ranges("nothing more comes, and the connection stays open", Fault(kind="stall")),
    _without_ranges("an answer with HTTP 503, the server is busy", Fault(kind="status", status=503)),
    _without_ranges("a byte altered on the way", Fault(kind="flip"), ever="exit 3"),
    _without_ranges("a web page instead of bytes", Fault(kind="html")),
)


def _asking(words: str, fault: Fault, *, where: Place = "question", **more: Any) -> _Kind:
    return _Kind(words=words, fault=replace(fault, where="api"), places=(where,), **more)


_QUESTIONS: Final = (
    _asking("the connection ends before an answer", Fault(kind="close")),
    _asking(
        "no answer, and the connection stays open",
        Fault(kind="stall"),
        once={"part": "recovered"},
        ever={"part": "exit 5"},
    ),
    _asking("an answer with HTTP 429, too many requests", Fault(kind="status", status=429)),
    _asking("HTTP 429 that asks to wait a second", Fault(kind="status", status=429, retry_after="1"), ever=None),
    _asking(f"HTTP 429 that asks {_PATIENCE}", Fault(kind="status", status=429, retry_after="3600"), once="exit 5"),
    _asking("an answer with HTTP 500, the server failed", Fault(kind="status", status=500)),
    _asking("an answer with HTTP 503, the server is busy", Fault(kind="status", status=503)),
    _asking("an answer with HTTP 404, not found", Fault(kind="status", status=404), once="exit 2", ever="exit 2"),
    _asking("an answer with HTTP 403, forbidden", Fault(kind="status", status=403), once="exit 4", ever="exit 4"),
    _asking("an answer with HTTP 400, refused", Fault(kind="status", status=400), once="exit 5", ever="exit 5"),
    _asking("the rules are not accepted", Fault(kind="rules"), once=None, ever="exit 4"),
    _asking("a web page instead of an address", Fault(kind="html"), once="exit 5", ever="exit 5"),
    _asking("an error as JSON, sent with HTTP 200", Fault(kind="json-error")),
    _asking("a Content-Length that is too large", Fault(kind="wrong-length"), ever="recovered"),
    _asking("a body compressed with gzip unasked", Fault(kind="gzip"), ever="recovered"),
)

_EXPIRED: Final = Fault(kind="expired")
_MIDWAY: Final = (
    _asking("HTTP 429, too many requests", Fault(kind="status", status=429), where="new address", before=(_EXPIRED,)),
    _asking(
        "the rules are not accepted",
        Fault(kind="rules"),
        where="new address",
        before=(_EXPIRED,),
        once=None,
        ever="exit 4",
    ),
)


def _login(words: str, credentials: Credentials) -> Row:
    return Row(
        words=words,
        place="login",
        forever=True,
        faults=(),
        outcomes=dict.fromkeys(WAYS, "exit 4"),
        credentials=credentials,
    )


ROWS: Final[tuple[Row, ...]] = (
    *(row for kind in (*_STORAGE, *_RANGELESS, *_QUESTIONS, *_MIDWAY) for row in kind.rows()),
    _login("a key that Kaggle does not know", "wrong-key"),
    _login("a token that Kaggle does not know", "wrong-token"),
    _login("no credentials at all", "none"),
)
"""Every row of the table."""
