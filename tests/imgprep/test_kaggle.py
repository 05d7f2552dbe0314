"""Credentials and signed addresses: every form of credential with the real client, every refusal as one clear line."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import requests
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from imgprep.backoff import Backoff
from imgprep.errors import (
    AccessError,
    ImgprepError,
    MissingExtraError,
    MissingInputError,
    NetworkError,
    SpecError,
)
from imgprep.sources import kaggle, kaggle_child
from imgprep.sources.kaggle import COMPETITION, KaggleCompetition, find_credentials
from imgprep.testing.kaggle import Credentials, Fault, FaultKind, KaggleStandIn

QUICK = Backoff(retries=3, base=0.001, longest=0.01)
RULES = f"https://www.kaggle.com/competitions/{COMPETITION}/rules"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kaggle") / "bundle.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ILSVRC/a b+c%2F.JPEG", b"x" * 100)
        archive.writestr("LOC_train_solution.csv", b"y" * 1000)
        for number in range(250):
            archive.writestr(f"many/{number}", b"z")
    return path


@pytest.fixture(scope="module")
def stand_in(bundle: Path) -> Iterator[KaggleStandIn]:
    with KaggleStandIn(bundle, zipped_files=["LOC_train_solution.csv"]) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_faults(stand_in: KaggleStandIn) -> None:
    stand_in.clear_faults()
    stand_in.forget()


def set_all(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        patch.setenv(name, value) if value else patch.delenv(name, raising=False)


@pytest.fixture
def offer(stand_in: KaggleStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in for Kaggle and no credentials; gives the ``.kaggle`` folder of an empty home."""
    set_all(monkeypatch, stand_in.environment(tmp_path, credentials="none"))
    monkeypatch.delenv("KAGGLE_CONFIG_DIR")
    return tmp_path / ".kaggle"


@pytest.fixture(scope="module")
def competition(stand_in: KaggleStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KaggleCompetition]:
    """One with a good key, whose process serves all tests that need no other credentials."""
    with pytest.MonkeyPatch.context() as patch:
        set_all(patch, stand_in.environment(tmp_path_factory.mktemp("home")))
        with KaggleCompetition(backoff=QUICK) as made:
            made.archive_url()
            yield made


def refused(expected: type[ImgprepError], *, backoff: Backoff = QUICK, timeout: float = 60.0) -> str:
    """The message of the error that asking for the archive ends in."""
    with KaggleCompetition(backoff=backoff, timeout=timeout) as competition, pytest.raises(expected) as caught:
        competition.archive_url()
    assert type(caught.value) is expected
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- answers ---


def test_the_archive_is_resolved_without_being_touched(
    competition: KaggleCompetition, stand_in: KaggleStandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    signed = competition.archive_url()
    assert signed.name == "archive.zip"
    assert signed.url.startswith(f"{stand_in.url}/storage/")
    assert "Signature=" in signed.url
    assert signed.url not in repr(signed)
    assert [request.path.rpartition("/")[2] for request in stand_in.requests] == ["DownloadDataFiles"]
    assert requests.get(signed.url, timeout=10).content.startswith(b"PK")
    assert capfd.readouterr() == ("", "")


def test_the_name_tells_whether_a_file_comes_as_a_zip(competition: KaggleCompetition) -> None:
    assert competition.file_url("LOC_train_solution.csv").name == "LOC_train_solution.csv.zip"
    assert competition.file_url("many/7").name == "7"
    odd = competition.file_url("ILSVRC/a b+c%2F.JPEG")
    assert odd.name == "a b+c%2F.JPEG"
    assert requests.get(odd.url, timeout=10).content == b"x" * 100


def test_files_are_listed_by_pages(competition: KaggleCompetition) -> None:
    first, token = competition.list_files()
    second, end = competition.list_files(token)
    assert (len(first), len(second), end) == (kaggle_child.PAGE_SIZE, 52, "")
    assert {member.name: member.num_bytes for member in first}["LOC_train_solution.csv"] == 1000
    assert len({member.name for member in first + second}) == 252


def test_threads_take_turns_and_get_their_own_answers(competition: KaggleCompetition) -> None:
    names = [f"many/{number}" for number in range(12)]
    got: dict[str, str] = {}

    def ask(name: str) -> None:
        got[name] = competition.file_url(name).name

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {name: name.partition("/")[2] for name in names}


def test_a_child_that_ended_is_replaced(offer: Path, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"KAGGLE_USERNAME": stand_in.username, "KAGGLE_KEY": stand_in.key})
    with KaggleCompetition(backoff=QUICK) as competition:
        first = competition.archive_url()
        competition.close()
        competition.close()
        assert competition.archive_url() != first
        assert competition.retries == 0
        assert competition._child is not None
        os.kill(competition._child._running.pid, signal.SIGKILL)
        assert competition.archive_url() != first
        assert competition.retries == 1


@pytest.mark.parametrize("name", ["", "a b", "../x", "x/y", "-x", "x" * 300, "x\n"])
def test_a_competition_has_a_plain_name(name: str) -> None:
    with pytest.raises(SpecError):
        KaggleCompetition(name)
    with pytest.raises(SpecError), KaggleCompetition() as competition:
        competition.file_url("")


# --- forms of credentials ---


@pytest.mark.parametrize(
    "form", [form for form in get_args(Credentials) if not form.startswith("wrong") and form != "none"]
)
def test_every_form_of_credentials_works(
    form: Credentials, stand_in: KaggleStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, stand_in.environment(tmp_path, credentials=form))
    assert [found.flaw for found in find_credentials(os.environ)] == [""]
    with KaggleCompetition(backoff=QUICK) as competition:
        assert competition.archive_url().name == "archive.zip"
        assert competition.archive_url().name == "archive.zip"
    checks = sum("Introspect" in request.path for request in stand_in.requests)
    assert checks == (1 if "token" in form else 0)


@pytest.mark.parametrize("place", [".kaggle/access_token.txt", ".config/kaggle/kaggle.json", "xdg/kaggle/kaggle.json"])
def test_other_places_work_too(
    place: str, offer: Path, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    offer.rmdir()
    file = offer.parent / place
    file.parent.mkdir(parents=True)
    key = json.dumps({"username": stand_in.username, "key": stand_in.key})
    file.write_text(key if file.suffix == ".json" else f"  {stand_in.token}\n")
    # Readable by others: the client prints a warning to stdout.
    file.chmod(0o644)
    if place.startswith("xdg"):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(offer.parent / "xdg"))
    monkeypatch.setenv("VERBOSE", "1")
    with KaggleCompetition(backoff=QUICK) as competition:
        assert competition.archive_url().name == "archive.zip"
        assert competition.file_url("many/1").name == "1"
    assert capfd.readouterr() == ("", "")


def test_a_home_that_cannot_be_written_is_no_obstacle(
    offer: Path, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Below a file no folder can be made, not even by root.
    monkeypatch.setenv("HOME", f"{os.devnull}/home")
    assert "there are no Kaggle credentials" in refused(AccessError)
    monkeypatch.setenv("KAGGLE_API_TOKEN", stand_in.token)
    with KaggleCompetition(backoff=QUICK) as competition:
        assert competition.archive_url().name == "archive.zip"


def test_a_login_that_ran_out_is_renewed_by_authenticating_again(
    offer: Path, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", stand_in.token)
    with KaggleCompetition(backoff=QUICK) as competition:
        competition.archive_url()
        stand_in.add_fault(Fault(kind="status", where="api", status=401))
        assert competition.archive_url().name == "archive.zip"
        assert competition.retries == 0
    assert sum("Introspect" in request.path for request in stand_in.requests) == 2


# --- missing and refused credentials ---


def test_without_credentials_there_are_three_steps_and_no_request(offer: Path, stand_in: KaggleStandIn) -> None:
    began = time.monotonic()
    message = refused(AccessError, backoff=Backoff())
    assert time.monotonic() - began < 20
    for step in ("https://www.kaggle.com,", "https://www.kaggle.com/settings/api", "~/.kaggle/access_token", RULES):
        assert step in message
    assert stand_in.requests == []


@pytest.mark.parametrize(
    ("variables", "files", "told"),
    [
        ({}, {"kaggle.json": "{"}, "kaggle.json, which is not valid JSON"),
        ({}, {"kaggle.json": "[1]"}, "kaggle.json, which is not a JSON object"),
        ({}, {"access_token": None}, "access_token, which is not a file"),
        ({"KAGGLE_API_TOKEN": "S" * 3000}, {}, "KAGGLE_API_TOKEN, which is too long"),
        ({"KAGGLE_API_TOKEN": "/nowhere/token"}, {}, "(it looks like a path, but there is no such file)"),
        ({"KAGGLE_API_TOKEN": "KGAT_a\nb"}, {}, "does not accept the token in the variable KAGGLE_API_TOKEN"),
        ({"KAGGLE_API_TOKEN": "KGAT_\N{SNOWMAN}"}, {}, "does not accept the token in the variable KAGGLE_API_TOKEN"),
        ({"KAGGLE_API_TOKEN": "KGAT_" + "f" * 32}, {}, "does not accept the token in the variable KAGGLE_API_TOKEN"),
        ({}, {"access_token": "KGAT_" + "f" * 32}, "does not accept the token in"),
        ({"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": "f" * 32}, {}, "does not accept the key in the variables"),
        ({"KAGGLE_KEY": "f" * 32}, {"kaggle.json": '{"username": "u"}'}, "does not accept the key in KAGGLE_KEY and /"),
    ],
)
def test_credentials_that_do_not_work_are_named_and_not_shown(
    variables: dict[str, str],
    files: dict[str, str | bytes | None],
    told: str,
    offer: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_all(monkeypatch, variables)
    for name, content in files.items():
        if content is None:
            (offer / name).mkdir()
        else:
            (offer / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(AccessError)
    assert told in message
    for secret in ("f" * 20, "S" * 20, "KGAT_", "/nowhere"):
        assert secret not in message


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("kaggle.json", b'{"username": "someone"}', "kaggle.json, which has no key"),
        ("kaggle.json", b"{}", "kaggle.json, which has no username and no key"),
        ("kaggle.json", b"[" * 60_000, "kaggle.json, which is not valid JSON"),
        ("access_token", b" \n", "access_token, which is empty"),
        ("access_token", b"\xff\xfe", "access_token, which is not text"),
        ("credentials.json", b"{}", "credentials.json, which has no refresh_token"),
    ],
)
def test_flaws_are_found_without_the_client(file: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / file).write_bytes(content)
    (found,) = find_credentials({"HOME": str(tmp_path)})
    assert told in str(found)


def test_a_key_may_come_in_two_halves(tmp_path: Path) -> None:
    (half,) = find_credentials({"HOME": str(tmp_path), "KAGGLE_KEY": "f" * 32})
    assert str(half) == "the key in the variable KAGGLE_KEY, which needs the other variable too"
    (tmp_path / "kaggle.json").write_text('{"username": "someone"}')
    (whole,) = find_credentials({"HOME": "/", "KAGGLE_KEY": "f" * 32, "KAGGLE_CONFIG_DIR": str(tmp_path)})
    assert whole.where == f"KAGGLE_KEY and {tmp_path / 'kaggle.json'}"
    assert not whole.flaw


def test_a_bad_token_that_hides_a_good_key_is_told(
    offer: Path, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    (offer / "kaggle.json").write_text(json.dumps({"username": stand_in.username, "key": stand_in.key}))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_" + "f" * 32)
    message = refused(AccessError)
    assert "does not accept the token in the variable KAGGLE_API_TOKEN (also there, not used" in message
    assert f"the key in {offer / 'kaggle.json'}" in message


@pytest.mark.parametrize("status", [401, 400])
def test_a_token_that_cannot_be_checked_is_refused(
    status: int, offer: Path, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", stand_in.token)
    stand_in.add_fault(Fault(kind="status", where="introspect", status=status, times=None))
    assert "does not accept the token in the variable KAGGLE_API_TOKEN" in refused(AccessError)


# --- trouble ---


@pytest.mark.parametrize("nested", [False, True])
def test_rules_that_are_not_accepted(
    nested: bool, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KaggleStandIn(bundle, rules_accepted=False, nested_errors=nested) as server:
        set_all(monkeypatch, server.environment(tmp_path))
        message = refused(AccessError)
    assert RULES in message
    assert "You must accept this competition's rules" in message


def test_what_is_not_there(competition: KaggleCompetition, stand_in: KaggleStandIn) -> None:
    with pytest.raises(MissingInputError, match=r"does not have the file no/where of the competition imagenet-"):
        competition.file_url("no/where")
    # Not a name that could be anything: a lone surrogate, a line break, the longest path there is.
    for name in ("\udc80", "a\nb", "x" * 4096):
        with pytest.raises(MissingInputError) as caught:
            competition.file_url(name)
        assert str(caught.value).isprintable()
    assert competition.retries == 0


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_refusal_is_retried(status: int, competition: KaggleCompetition, stand_in: KaggleStandIn) -> None:
    before = competition.retries
    stand_in.add_fault(Fault(kind="status", where="api", status=status, times=2))
    assert competition.archive_url().name == "archive.zip"
    assert competition.retries - before == 2


@pytest.mark.parametrize("kind", ["close", "json-error"])
def test_lost_connections_and_statuses_in_bodies_are_retried(
    kind: FaultKind, competition: KaggleCompetition, stand_in: KaggleStandIn
) -> None:
    stand_in.add_fault(Fault(kind=kind, where="api", status=429))
    assert competition.archive_url().name == "archive.zip"
    assert len(stand_in.requests) == 2


def test_retry_after_is_waited_for(competition: KaggleCompetition, stand_in: KaggleStandIn) -> None:
    stand_in.add_fault(Fault(kind="status", where="api", status=429, retry_after="1"))
    began = time.monotonic()
    competition.archive_url()
    assert time.monotonic() - began >= 1


def test_retry_after_of_the_token_check_is_waited_for(
    offer: Path, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", stand_in.token)
    stand_in.add_fault(Fault(kind="status", where="introspect", status=429, retry_after="1"))
    began = time.monotonic()
    with KaggleCompetition(backoff=QUICK) as competition:
        competition.archive_url()
        assert competition.retries == 1
    assert time.monotonic() - began >= 1
    assert len(stand_in.requests) == 3, "two checks, one call: nothing went out while the client was imported"


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (429, NetworkError, "failed 4 times in a row; the last time: HTTP 429"),
        (503, NetworkError, "failed 4 times in a row; the last time: HTTP 503"),
        (418, NetworkError, "HTTP 418"),
        (407, NetworkError, "the proxy on the way"),
        (401, AccessError, "does not accept the key in the variables KAGGLE_USERNAME and KAGGLE_KEY"),
        (403, AccessError, RULES),
        (404, MissingInputError, f"does not have the competition {COMPETITION}"),
    ],
)
def test_lasting_refusals(
    status: int, error: type[ImgprepError], told: str, competition: KaggleCompetition, stand_in: KaggleStandIn
) -> None:
    stand_in.add_fault(Fault(kind="status", where="api", status=status, times=None))
    with pytest.raises(error) as caught:
        competition.archive_url()
    assert told in str(caught.value)
    assert stand_in.key not in str(caught.value)


def test_a_web_page_is_no_file(competition: KaggleCompetition, stand_in: KaggleStandIn) -> None:
    for ask in (competition.archive_url, lambda: competition.file_url("many/1"), competition.list_files):
        stand_in.add_fault(Fault(kind="html", where="api"))
        with pytest.raises(NetworkError, match="a web page instead of a file - a proxy or a login page is in between"):
            ask()


def test_silence_ends_with_the_timeout(offer: Path, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"KAGGLE_USERNAME": stand_in.username, "KAGGLE_KEY": stand_in.key})
    stand_in.add_fault(Fault(kind="stall", where="api", percent=0))
    with KaggleCompetition(backoff=QUICK, timeout=2.0) as competition:
        assert competition.archive_url().name == "archive.zip"
        assert competition.retries >= 1


def test_stopping_ends_the_wait_for_an_answer(
    offer: Path, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, {"KAGGLE_USERNAME": stand_in.username, "KAGGLE_KEY": stand_in.key})
    stand_in.add_fault(Fault(kind="stall", where="api", percent=0, times=None))
    backoff = Backoff()
    threading.Timer(0.3, backoff.stop.set).start()
    assert "was stopped" in refused(NetworkError, backoff=backoff)


@pytest.mark.parametrize(
    ("variable", "host"), [("http_proxy", "localhost"), ("https_proxy", "api.kaggle.com")], ids=["http", "https"]
)
def test_a_proxy_that_is_not_there(variable: str, host: str, offer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    set_all(monkeypatch, {"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": "f" * 32, "http_proxy": ""})
    monkeypatch.setenv(variable, f"http://name:password@127.0.0.1:{port}")
    if variable == "https_proxy":
        monkeypatch.delenv("KAGGLE_API_ENVIRONMENT")
    message = refused(NetworkError)
    assert (
        f"{host} cannot be reached (Connection refused); is a proxy setting (https_proxy) missing or wrong?" in message
    )
    assert "password" not in message


def test_a_proxy_setting_that_makes_no_sense(offer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": "f" * 32, "http_proxy": "socks9://secret:1"})
    message = refused(NetworkError)
    assert "check the proxy settings" in message
    assert "secret" not in message


def test_a_file_of_certificates_that_is_not_there(offer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Looked for before anything is connected to; the proxy is one that nothing would come through.
    set_all(monkeypatch, {"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": "f" * 32, "KAGGLE_API_ENVIRONMENT": ""})
    set_all(monkeypatch, {"https_proxy": "http://127.0.0.1:1", "REQUESTS_CA_BUNDLE": str(offer / "missing.pem")})
    message = refused(NetworkError)
    assert "cannot be trusted (no file of certificates)" in message
    assert "REQUESTS_CA_BUNDLE" in message


# --- the child by itself ---


def fake_client(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "kaggle.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.parametrize("package", ["kaggle", "six"])
def test_a_missing_package_is_named(package: str, offer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_client(offer.parent / "fake", f"raise ModuleNotFoundError('none', name={package!r})", monkeypatch)
    assert f"the package {package}, which is missing or cannot be loaded - run `pip install kaggle six`" in refused(
        MissingExtraError
    )


def test_an_old_client_is_as_good_as_none(offer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_client(offer.parent / "fake", "api = object()", monkeypatch)
    assert "pip install" in refused(MissingExtraError)


def test_what_the_client_prints_is_no_answer(
    offer: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = """
import os, sys
class Api:
    def authenticate(self):
        for _ in range(1000):
            print('{"url": "http://evil/x.zip"}', flush=True)
            os.write(1, b'{"url": "http://evil/x.zip"}\\n')
            print("KGAT_secret", file=sys.stderr)
        input_seen = sys.stdin.read()
        exit(1)
    build_kaggle_client = None
api = Api()
"""
    fake_client(offer.parent / "fake", text, monkeypatch)
    assert "there are no Kaggle credentials" in refused(AccessError)
    assert capfd.readouterr() == ("", "")


def test_files_of_the_current_folder_are_not_taken_for_packages(
    offer: Path, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, {"KAGGLE_USERNAME": stand_in.username, "KAGGLE_KEY": stand_in.key})
    for name in ("kaggle.py", "six.py", "json.py"):
        (offer.parent / name).write_text("raise SystemError('not this one')")
    monkeypatch.chdir(offer.parent)
    with KaggleCompetition(backoff=QUICK) as competition:
        assert competition.archive_url().name == "archive.zip"


PARENT = """
import sys
from imgprep.sources.kaggle import KaggleCompetition
competition = KaggleCompetition()
competition.archive_url()
print(competition._child._running.pid, flush=True)
try:
    competition.archive_url()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_its_parent_without_a_word(
    number: signal.Signals, stand_in: KaggleStandIn, tmp_path: Path
) -> None:
    stand_in.add_fault(Fault(kind="stall", where="api", percent=0, after=1, times=None))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=stand_in.child_environment(tmp_path),
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    until(lambda: len(stand_in.requests) == 2)
    os.killpg(parent.pid, number)
    out, err = parent.communicate(timeout=20)
    assert (out, err) == ("", "")
    assert parent.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    until(lambda: not alive(child))


def until(condition: object) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_redirect_that_was_followed_gives_the_same_address(stand_in: KaggleStandIn) -> None:
    def call(query: object) -> requests.Response:
        return requests.post(
            f"{stand_in.url}/api/v1/competitions.CompetitionApiService/DownloadDataFiles",
            json={"competitionName": query},
            auth=(stand_in.username, stand_in.key),
            stream=True,
            timeout=10,
        )

    assert kaggle_child._redirect(call, COMPETITION).startswith(f"{stand_in.url}/storage/")
    with pytest.raises(kaggle_child.NotARedirectError):
        kaggle_child._redirect(call, "another")


def test_an_untrusted_certificate_is_told_from_a_lost_connection() -> None:
    def problem(cause: Exception) -> object:
        reason = urllib3.exceptions.SSLError(cause)
        error = urllib3.exceptions.MaxRetryError(None, "/", reason)  # type: ignore[arg-type]
        return kaggle_child._problem(requests.exceptions.SSLError(error), loaded=True)["problem"]

    assert problem(ssl.SSLCertVerificationError(1, "certificate verify failed")) == "certificate"
    assert problem(ssl.SSLZeroReturnError(6, "closed")) == "connection"
    with KaggleCompetition() as competition, pytest.raises(NetworkError, match="REQUESTS_CA_BUNDLE"):
        competition._passing_trouble({"problem": "certificate", "host": "api.kaggle.com"}, "it")


# --- words and addresses from elsewhere ---


@pytest.mark.parametrize(
    "url",
    [
        "", "ftp://h/x.zip", "file:///etc/passwd", "http:///x.zip", "https://h/", "https://h/a/", "https://h/..",
        "https://h/%2e%2e", "https://h/a%2F..", "https://[h/x.zip", "https://h/x .zip", "https://h/x\r\n.zip",
        "https://h/\N{SNOWMAN}.zip",
    ],
)  # fmt: skip
def test_addresses_that_cannot_be_a_file_are_refused(url: str) -> None:
    with pytest.raises(NetworkError, match="web page"):
        kaggle._signed({"url": url})


@given(st.text())
def test_names_never_hold_a_folder(text: str) -> None:
    try:
        name = kaggle._signed({"url": "https://h/" + text}).name
    except NetworkError:
        return
    assert name
    assert "/" not in name


def test_words_of_a_server_are_quoted_without_secrets() -> None:
    with KaggleCompetition() as competition:
        assert competition._quoted("") == ""
        assert competition._quoted("Too many requests.\nmore") == ": Too many requests"
        assert competition._quoted(f"No '{COMPETITION}' for KGAT_{'1' * 32}") == f": No '{COMPETITION}' for ***"
        assert competition._quoted("see https://h/x?Signature=1") == ": see ***"
        assert len(competition._quoted("a " * 9999)) < 220


@given(st.dictionaries(st.sampled_from(["KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"]), st.text(), max_size=3))
def test_any_environment_can_be_looked_through(variables: dict[str, str]) -> None:
    for found in find_credentials({"HOME": os.devnull, **variables}):
        assert found.kind in ("token", "key")


@given(content=st.binary(max_size=60))
def test_any_file_can_be_looked_through(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "any" / ".kaggle"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("kaggle.json", "access_token", "credentials.json"):
        (folder / name).write_bytes(content)
    assert len(find_credentials({"HOME": str(folder.parent)})) == 3
