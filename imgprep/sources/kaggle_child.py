"""The process in which Kaggle's own client runs: a request a line on stdin, an answer a line on stdout, both JSON.

The client authenticates while it is imported, prints to stdout, ends the process when it finds no credentials, and has
no timeouts. Here it may: what it prints goes nowhere, every end becomes an answer, and whoever asked ends this process
when it is silent for too long. When stdin ends, this process ends too, whatever it is doing.

It is started as a script by its path and with ``-P``: beside this file lies another ``kaggle.py``, and in the current
folder there may be one more. So it imports nothing of imgprep.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, TextIO
from urllib.parse import urljoin, urlsplit

Message = dict[str, Any]

PAGE_SIZE: Final = 200
"""Files a page of the listing: the most that Kaggle documents."""

_SHOWN_TO_IMPORT: Final = frozenset({"KAGGLE_CONFIG_DIR", "KAGGLE_API_ENVIRONMENT"})


class NotARedirectError(Exception):
    """The answer is a page or a document where a redirect to the file was due."""


class Client:
    """Kaggle's client, loaded and authenticated when it is first needed."""

    def __init__(self) -> None:
        self._api: Any = None
        self._authenticated = False

    def answer(self, request: Message) -> Message:
        """Do what is asked.

        Args:
            request: ``call`` is ``archive``, ``file`` or ``list``; ``competition`` and, where needed, ``name`` or
                ``page_token`` go with it.

        Returns:
            ``url``, or ``files`` and ``next_page_token``, or ``problem`` and what is known of it.
        """
        known = self._authenticated
        try:
            return self._call(request)
        # SystemExit is how the client says that it has no credentials.
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, it is told
            problem = self._describe(error)
        if problem.get("status") == 401:
            # Tokens of OAuth live for hours, a download may take days: what was good once is asked for anew.
            self._authenticated = False
            return self.answer(request) if known else problem
        return problem

    def _call(self, request: Message) -> Message:
        if self._api is None:
            self._api = _import_api()
        if not self._authenticated:
            self._api.authenticate()
            self._authenticated = True
        types = importlib.import_module("kagglesdk.competitions.types.competition_api_service")
        with self._api.build_kaggle_client() as client:
            competitions = client.competitions.competition_api_client
            if request["call"] == "list":
                query = types.ApiListDataFilesRequest()
                query.competition_name = request["competition"]
                query.page_size = PAGE_SIZE
                query.page_token = request["page_token"]
                page = competitions.list_data_files(query)
                files = [[file.name, file.total_bytes] for file in page.files or ()]
                return {"files": files, "next_page_token": page.next_page_token or ""}
            if request["call"] == "archive":
                query, method = types.ApiDownloadDataFilesRequest(), competitions.download_data_files
            else:
                query, method = types.ApiDownloadDataFileRequest(), competitions.download_data_file
                query.file_name = request["name"]
            query.competition_name = request["competition"]
            # Without a session to tell, redirects are followed, which costs a request and gives the same address.
            if (session := getattr(client.http_client(), "_session", None)) is not None:
                session.max_redirects = 0
            return {"url": _redirect(method, query)}

    def _describe(self, error: BaseException) -> Message:
        """Put an error into words without any of its own, which may hold a token or a signed URL."""
        values = getattr(self._api, "config_values", {})
        method = str(values.get("auth_method", "")) if self._authenticated and isinstance(values, dict) else ""
        return {"authenticated": self._authenticated, "method": method, **_problem(error, loaded=self._api is not None)}


def _import_api() -> Any:
    """Import the client with no credentials in sight: it would go to the network with them and swallow what happens."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("KAGGLE_") and name not in _SHOWN_TO_IMPORT:
            del os.environ[name]
    os.environ["HOME"] = os.devnull
    try:
        api = importlib.import_module("kaggle").api
    finally:
        os.environ.clear()
        os.environ.update(before)
    if not hasattr(api, "build_kaggle_client"):
        raise ImportError("kaggle 1.x has no client to build", name="kaggle")
    return api


def _redirect(method: Callable[[Any], Any], query: Any) -> str:
    """The address that Kaggle sends to for a file, without going there where that can be had."""
    requests: Any = importlib.import_module("requests")
    try:
        response = method(query)
    except (requests.TooManyRedirects, requests.HTTPError) as error:
        response = error.response
        if not response.is_redirect and not response.history:
            raise
    with contextlib.closing(response):
        if response.is_redirect:
            return str(urljoin(response.url, response.headers["Location"]))
        if response.history:
            return str(response.url)
    raise NotARedirectError


def _problem(error: BaseException, *, loaded: bool) -> Message:
    if isinstance(error, ImportError) or not loaded:
        package = getattr(error, "name", None) or "kaggle"
        return {"problem": "import", "package": str(package).partition(".")[0]}
    requests: Any = importlib.import_module("requests")
    kinds = requests.exceptions
    if isinstance(error, kinds.HTTPError):
        return _http_problem(error.response)
    if isinstance(error, SystemExit | UnicodeError | kinds.InvalidHeader):
        return {"problem": "credentials"}
    if isinstance(error, NotARedirectError | kinds.TooManyRedirects | json.JSONDecodeError | kinds.InvalidJSONError):
        return {"problem": "page"}
    # Errors of requests are OSErrors without a number, its complaint about a missing file of certificates included.
    if isinstance(error, OSError) and error.errno is None:
        return _transport_problem(error, kinds)
    return {"problem": "client", "kind": type(error).__name__}


def _transport_problem(error: OSError, kinds: Any) -> Message:
    causes = list(_causes(error))
    reasons = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    known = isinstance(error, kinds.RequestException)
    untrusted = not known or any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes)
    lost = isinstance(error, kinds.ConnectionError | kinds.Timeout | kinds.ChunkedEncodingError)
    return {
        "problem": "certificate" if untrusted else "connection" if lost else "address",
        "host": urlsplit(getattr(getattr(error, "request", None), "url", None) or "").hostname or "Kaggle",
        "reason": str(reasons[-1]) if reasons else type(error).__name__ if known else "no file of certificates",
    }


def _http_problem(response: Any) -> Message:
    """An HTTP status, also where it is told in the body of a 200, with Kaggle's own words if there are any."""
    body: Any = None
    # Only what the client has read already: the body of anything else may never end.
    if "json" in response.headers.get("Content-Type", ""):
        with contextlib.suppress(ValueError, RecursionError):
            body = response.json()
    body = body if isinstance(body, dict) else {}
    inner = body.get("error") if isinstance(body.get("error"), dict) else body
    message = inner.get("message")
    return {
        "problem": "http",
        "status": response.status_code if response.status_code >= 400 else body.get("code"),
        "message": message if isinstance(message, str) else "",
        "retry_after": response.headers.get("Retry-After"),
    }


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it came from; urllib3 keeps causes as arguments and as reasons."""
    pending, seen = [error], set[int]()
    while pending:
        cause = pending.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        related = (*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__)
        pending.extend(one for one in related if isinstance(one, BaseException))


def _take_pipes() -> tuple[TextIO, TextIO]:
    """Keep the pipes to who asks for this module alone.

    What the client prints is lost, and stdin is empty for it: ``exit()`` closes stdin, and would wait for its reader.
    """
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(null, handle)
    return requests, answers


def _forward(lines: TextIO, requests: queue.SimpleQueue[str]) -> None:
    for line in lines:
        requests.put(line)
    # Who asked is gone, and the other thread may be waiting for a server that never answers.
    os._exit(0)


def main() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lines, answers = _take_pipes()
    requests = queue.SimpleQueue[str]()
    threading.Thread(target=_forward, args=(lines, requests), daemon=True).start()
    client = Client()
    while True:
        answers.write(json.dumps(client.answer(json.loads(requests.get()))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
