"""Kaggle, for credentials and signed addresses alone; the bytes come straight from storage.

Kaggle's own client does the asking, in a process of its own: see :mod:`imgprep.sources.kaggle_child`.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Literal, Self, cast
from urllib.parse import unquote, urlsplit

from imgprep.backoff import RETRIED_STATUSES, Backoff
from imgprep.errors import AccessError, ImgprepError, MissingExtraError, MissingInputError, NetworkError, SpecError
from imgprep.sources import Member

COMPETITION: Final = "imagenet-object-localization-challenge"
"""The competition that hands out ImageNet (ILSVRC CLS-LOC)."""

SETTINGS_PAGE: Final = "https://www.kaggle.com/settings/api"
"""Where Kaggle makes tokens."""

_AGAIN: Final = "run the same command again"
_CHILD: Final = Path(__file__).with_name("kaggle_child.py")
_MAX_ANSWER: Final = 1 << 22
_MAX_CREDENTIAL_FILE: Final = 1 << 16
_SECRET: Final = re.compile(r"\S{20,}")
"""What could be a key, a token or a signed address in a text from elsewhere."""


@dataclass(frozen=True, slots=True)
class SignedUrl:
    """An address that is good without credentials, for some days.

    Attributes:
        url: The address. It is a secret as long as it lasts, so it does not show in ``repr``.
        name: Its last path component, decoded: tells ``x.csv`` from ``x.csv.zip``. Not to be used as a path.
    """

    url: str = field(repr=False)
    name: str


@dataclass(frozen=True, slots=True)
class Credential:
    """One place where a credential was found; never the credential.

    Attributes:
        kind: An API token, a legacy key with its user name, or a login by OAuth.
        where: The variable or the file.
        flaw: Why Kaggle's client passes over it; empty when it does not.
    """

    kind: Literal["token", "key", "login"]
    where: str
    flaw: str = ""

    def __str__(self) -> str:
        return f"the {self.kind} in {self.where}" + (f", which {self.flaw}" if self.flaw else "")


class KaggleCompetition:
    """One competition at Kaggle. Methods may be called from several threads; they take turns.

    Args:
        competition: Its name as in ``https://www.kaggle.com/competitions/NAME``.
        backoff: How long to go on when Kaggle does not answer, or not now.
        timeout: Seconds to wait for one answer.

    Raises:
        SpecError: That cannot be the name of a competition.
    """

    def __init__(
        self, competition: str = COMPETITION, *, backoff: Backoff | None = None, timeout: float = 60.0
    ) -> None:
        self._turn = threading.Lock()
        self._child: _Child | None = None
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}", competition):
            raise SpecError(f"a competition's name has letters, digits and hyphens only, got {competition!r}")
        if timeout <= 0:
            raise SpecError(f"timeout must be more than 0 seconds, got {timeout}")
        self.competition = competition
        self.retries = 0
        self._backoff = backoff or Backoff()
        self._timeout = timeout
        # Looked up before the client runs, which deletes a login that Kaggle refuses.
        self._credentials = find_credentials(os.environ)

    @property
    def rules_page(self) -> str:
        """Where the rules of the competition are accepted."""
        return f"https://www.kaggle.com/competitions/{self.competition}/rules"

    def archive_url(self) -> SignedUrl:
        """The address of the archive with all files.

        Raises:
            AccessError: No credentials, refused ones, or the rules are not accepted.
            MissingInputError: There is no such competition.
            MissingExtraError: Kaggle's client is not installed.
            NetworkError: No answer after every retry, or one that is not Kaggle's.
        """
        return _signed(self._ask(f"the competition {self.competition}", call="archive"))

    def file_url(self, name: str) -> SignedUrl:
        """The address of one file.

        Args:
            name: Its name in the competition, with ``/`` between folders.

        Raises:
            AccessError: No credentials, refused ones, or the rules are not accepted.
            MissingInputError: There is no such file or competition.
            MissingExtraError: Kaggle's client is not installed.
            NetworkError: No answer after every retry, or one that is not Kaggle's.
        """
        if not name:
            raise SpecError("the name of a file is empty")
        return _signed(self._ask(f"the file {name} of the competition {self.competition}", call="file", name=name))

    def list_files(self, page_token: str = "") -> tuple[list[Member], str]:
        """One page of the competition's files, 200 at most.

        Args:
            page_token: What the page before gave; empty for the first page.

        Returns:
            The files, and the token of the next page: empty after the last one. Names are as Kaggle sends them.

        Raises:
            AccessError: No credentials, refused ones, or the rules are not accepted.
            MissingInputError: There is no such competition.
            MissingExtraError: Kaggle's client is not installed.
            NetworkError: No answer after every retry, or one that is not Kaggle's.
        """
        answer = self._ask(f"the competition {self.competition}", call="list", page_token=page_token)
        files: list[Member] = []
        for name, num_bytes in answer["files"]:
            if not isinstance(name, str) or not isinstance(num_bytes, int) or num_bytes < 0:
                raise NetworkError("Kaggle lists a file without a name or a size", _AGAIN)
            files.append(Member(name, num_bytes))
        return files, str(answer["next_page_token"])

    def close(self) -> None:
        """End the process that asks; closing twice is fine, and the next question starts another."""
        if (child := self._child) is not None:
            # First of all, or a thread that waits for an answer would keep its turn.
            child.kill()
        with self._turn:
            self._drop_child()

    def _drop_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _ask(self, what: str, **request: str) -> dict[str, Any]:
        """Ask until there is an answer, or a reason not to ask again."""
        failures = 0
        while "problem" in (answer := self._exchange({"competition": self.competition, **request})):
            why = self._passing_trouble(answer, what)
            failures += 1
            self._backoff.pause(
                failures, what=f"asking Kaggle for {what}", why=why, retry_after=answer.get("retry_after")
            )
            with self._turn:
                self.retries += 1
        return answer

    def _exchange(self, request: dict[str, str]) -> dict[str, Any]:
        with self._turn:
            try:
                if self._child is None:
                    self._child = _Child()
                return self._child.ask(request, timeout=self._timeout, stop=self._backoff.stop)
            except _NoAnswerError as error:
                self._drop_child()
                return {"problem": "silence", "why": str(error)}
            except BaseException:
                # An answer that is still to come would be taken for that to the next question.
                self._drop_child()
                raise

    def _passing_trouble(self, answer: dict[str, Any], what: str) -> str:
        """Say what the trouble is, if it may pass.

        Raises:
            ImgprepError: It does not.
        """
        host, reason = answer.get("host", "Kaggle"), answer.get("reason", "")
        match answer["problem"]:
            case "silence":
                return str(answer["why"])
            case "connection":
                return f"{host} cannot be reached ({reason}); is a proxy setting (https_proxy) missing or wrong?"
            case "http":
                return self._passing_status(answer, what)
            case "certificate":
                raise NetworkError(
                    f"the certificate of {host} cannot be trusted ({reason})",
                    "behind a proxy that opens TLS, set REQUESTS_CA_BUNDLE to the file with its certificate",
                )
            case "address":
                raise NetworkError(
                    f"{host} cannot be asked ({reason})", "check the proxy settings (https_proxy, http_proxy)"
                )
            case "page":
                raise _page(what)
            case "import":
                raise MissingExtraError(
                    f"fetching from Kaggle needs the package {answer['package']}, which is missing or cannot be loaded",
                    "run `pip install kaggle six`",
                )
            case "credentials":
                raise self._refused(answer)
            case _:
                if not answer["authenticated"] and any(found.flaw for found in self._credentials):
                    raise self._nothing_usable()
                if not answer["authenticated"] and answer["kind"] == "ValueError":
                    # A token with characters that no header can hold.
                    raise self._refused(answer)
                raise NetworkError(
                    f"Kaggle's client cannot read the answer to the question for {what} ({answer['kind']})",
                    f"{_AGAIN}, or update the client with `pip install --upgrade kaggle six`",
                )

    def _passing_status(self, answer: dict[str, Any], what: str) -> str:
        status, words = answer["status"], self._quoted(answer["message"])
        if status in RETRIED_STATUSES:
            return f"HTTP {status}{words}"
        if status == 401 or (not answer["authenticated"] and status != 407):
            raise self._refused(answer)
        if status == 403:
            raise AccessError(
                f"Kaggle does not let this account have {what}{words}",
                f"accept the rules at {self.rules_page} with the account of your credentials, then {_AGAIN}",
            )
        if status == 404:
            raise MissingInputError(
                f"Kaggle does not have {what}{words}", "check its name on https://www.kaggle.com/competitions"
            )
        if status == 407:
            raise NetworkError(
                f"the proxy on the way to {what} wants a user name and a password (HTTP 407)",
                "set https_proxy to http://USER:PASSWORD@HOST:PORT",
            )
        raise NetworkError(f"Kaggle answered the question for {what} with HTTP {status}{words}", _AGAIN)

    def _quoted(self, message: str) -> str:
        """Kaggle's own words, ready to follow ours: one line, short, and with nothing in it that could be a secret."""
        line = (message.strip().splitlines() or [""])[0]
        safe = _SECRET.sub(lambda word: word[0] if word[0].strip("'\".,:;()") == self.competition else "***", line)
        return f": {safe[:200].rstrip('.')}" if safe else ""

    def _refused(self, answer: dict[str, Any]) -> AccessError:
        usable = [found for found in self._credentials if not found.flaw]
        if answer.get("method", "").upper().endswith("OAUTH"):
            usable = [found for found in usable if found.kind == "login"]
        if not usable:
            return self._nothing_usable()
        sent = usable[0]
        others = [str(found) for found in self._credentials if found is not sent]
        unused = f" (also there, not used as this one goes first: {'; '.join(others)})" if others else ""
        return AccessError(
            f"Kaggle does not accept {sent}{unused}",
            "remove it to use the other" if others else f"create a new one at {SETTINGS_PAGE} and put it in its place",
        )

    def _nothing_usable(self) -> AccessError:
        found = "; ".join(str(found) for found in self._credentials if found.flaw)
        return AccessError(
            f"there are no usable Kaggle credentials, only {found}" if found else "there are no Kaggle credentials",
            f"make an account at https://www.kaggle.com, create a token at {SETTINGS_PAGE} and save it as"
            " ~/.kaggle/access_token (or set KAGGLE_API_TOKEN to it, or save a legacy key as ~/.kaggle/kaggle.json),"
            f" then accept the rules at {self.rules_page}",
        )


class _NoAnswerError(Exception):
    """The child did not answer in time, or ended."""


class _Child:
    """A running :mod:`imgprep.sources.kaggle_child`."""

    def __init__(self) -> None:
        # A session of its own: Ctrl-C is for this process, whose end the child notices.
        self._running = subprocess.Popen(  # noqa: S603  # our own file
            [sys.executable, "-P", "-W", "ignore", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_child_environment(os.environ),
            bufsize=0,
            start_new_session=True,
        )
        self._requests = cast(IO[bytes], self._running.stdin)
        self._answers = cast(IO[bytes], self._running.stdout)

    def ask(self, request: dict[str, str], *, timeout: float, stop: threading.Event) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            _NoAnswerError: It did not come in time, or the child ended.
            NetworkError: ``stop`` was set.
        """
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise _NoAnswerError("Kaggle's client ended") from None
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        deadline = time.monotonic() + timeout
        line = bytearray()
        while not line.endswith(b"\n"):
            if stop.is_set():
                raise NetworkError("asking Kaggle was stopped", f"{_AGAIN} to go on from here")
            if time.monotonic() >= deadline:
                raise _NoAnswerError(f"no answer within {timeout:g} s")
            if not poll.poll(100):
                continue
            piece = self._answers.read(1 << 16)
            line += piece
            if not piece or len(line) > _MAX_ANSWER:
                raise _NoAnswerError("Kaggle's client ended" if not piece else "an answer without end")
        return cast(dict[str, Any], json.loads(line))

    def kill(self) -> None:
        """End it at once: it holds nothing that would be lost."""
        self._running.kill()

    def close(self) -> None:
        """End it, and let go of its pipes."""
        self.kill()
        self._running.wait()
        self._requests.close()
        self._answers.close()


def _child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    # Either makes the client print tokens and read whole downloads into memory.
    kept = {name: value for name, value in environ.items() if name not in ("VERBOSE", "VERBOSE_OUTPUT")}
    folder = _config_folder(environ)
    # The client makes this folder when it is missing, and fails where it cannot: any place that exists will do.
    return kept | {"KAGGLE_CONFIG_DIR": str(folder) if os.access(folder, os.X_OK) else os.devnull}


def _signed(answer: dict[str, Any]) -> SignedUrl:
    url = str(answer["url"])
    try:
        parts = urlsplit(url)
        storage = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        storage = False
    name = unquote(parts.path).rpartition("/")[2] if storage else ""
    # A redirect to a login page has no file's name at its end.
    if name in ("", ".", "..") or not (url.isascii() and url.isprintable() and " " not in url):
        raise _page("a file")
    return SignedUrl(url, name)


def _page(what: str) -> ImgprepError:
    return NetworkError(
        f"the question for {what} was answered with a web page instead of a file",
        "a proxy or a login page is in between: open https://www.kaggle.com in a browser on this network",
    )


def find_credentials(environ: Mapping[str, str]) -> list[Credential]:
    """Where credentials for Kaggle are, in the order in which Kaggle's client takes them.

    This is for messages: the client has the last word. The places are those of kaggle 2.2
    (https://github.com/Kaggle/kaggle-cli/blob/main/docs/README.md).

    Args:
        environ: The environment, e.g. ``os.environ``.
    """
    home = _home(environ) / ".kaggle"
    tokens = _token_in_environment(environ.get("KAGGLE_API_TOKEN", ""))
    if not tokens:
        files = [home / "access_token", home / "access_token.txt"]
        tokens = [Credential("token", str(file), _token_flaw(file)) for file in files if _exists(file)]
    return [*tokens, *_keys(environ), *_logins(home / "credentials.json")]


def _token_in_environment(value: str) -> list[Credential]:
    where = "the variable KAGGLE_API_TOKEN"
    if not value:
        return []
    try:
        if Path(value).exists():
            return [Credential("token", f"{value} (named by {where})", _token_flaw(Path(value)))]
    except (OSError, ValueError):
        return [Credential("token", where, "is too long or too odd for the client: save it as ~/.kaggle/access_token")]
    # Never shown: what looks like a path may be a token all the same.
    hint = " (it looks like a path, but there is no such file)" if value.startswith(("/", "~", ".")) else ""
    return [Credential("token", where + hint)]


def _keys(environ: Mapping[str, str]) -> list[Credential]:
    variables = [name for name in ("KAGGLE_USERNAME", "KAGGLE_KEY") if environ.get(name)]
    if len(variables) == 2:
        return [Credential("key", "the variables KAGGLE_USERNAME and KAGGLE_KEY")]
    file = _config_folder(environ) / "kaggle.json"
    if not _exists(file):
        return [Credential("key", f"the variable {variables[0]}", "needs the other variable too")] if variables else []
    document, flaw = _json_object(file)
    missing = [
        name for name in ("username", "key") if not document.get(name) and f"KAGGLE_{name.upper()}" not in variables
    ]
    if not flaw and missing:
        flaw = f"has no {' and no '.join(missing)}"
    return [Credential("key", " and ".join([*variables, str(file)]), flaw)]


def _logins(file: Path) -> list[Credential]:
    if not _exists(file):
        return []
    document, flaw = _json_object(file)
    return [Credential("login", str(file), flaw or ("" if document.get("refresh_token") else "has no refresh_token"))]


def _token_flaw(file: Path) -> str:
    text, flaw = _text(file)
    return flaw or ("" if text.strip() else "is empty")


def _json_object(file: Path) -> tuple[dict[str, Any], str]:
    text, flaw = _text(file)
    if flaw:
        return {}, flaw
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}, "is not valid JSON"
    return (document, "") if isinstance(document, dict) else ({}, "is not a JSON object")


def _text(file: Path) -> tuple[str, str]:
    """The beginning of a small file, and why it cannot be read."""
    try:
        if not file.is_file():
            return "", "is not a file"
        with file.open("rb") as opened:
            return opened.read(_MAX_CREDENTIAL_FILE).decode(), ""
    except OSError as error:
        return "", f"cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        return "", "is not text"


def _exists(path: Path) -> bool:
    """Whether something is there, or may be there behind a folder that cannot be entered."""
    try:
        return path.exists()
    except OSError:
        return True


def _config_folder(environ: Mapping[str, str]) -> Path:
    """Where Kaggle's client looks for ``kaggle.json``."""
    if named := environ.get("KAGGLE_CONFIG_DIR"):
        return Path(named)
    home = _home(environ)
    if _exists(home / ".kaggle"):
        return home / ".kaggle"
    return Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"


def _home(environ: Mapping[str, str]) -> Path:
    # Path.home() raises where an account has no home.
    return Path(environ.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111
