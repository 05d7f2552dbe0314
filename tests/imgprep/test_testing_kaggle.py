"""The stand-in for Kaggle: each call, each fault, storage as HTTP wants it, and the real client against it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import pytest
import urllib3
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from imgprep.errors import ImgprepError, SpecError
from imgprep.testing.kaggle import (
    Archive,
    Credentials,
    Fault,
    FaultKind,
    FileArchive,
    KaggleStandIn,
    Request,
    main,
)

COMPETITION = "imagenet-object-localization-challenge"
SERVICE = "competitions.CompetitionApiService"
CONTENT = random.Random(0).randbytes(3_000_000)
FILES = {"ILSVRC/a/one.JPEG": CONTENT[:70_000], "ILSVRC/a b+c/tw\u00f6.xml": b"<x/>", "LOC_list.csv": b"ImageId\n" * 99}


class Memory:
    """An archive without a path: sent by pieces."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)

    def pread(self, num_bytes: int, offset: int) -> bytes:
        return self.content[offset : offset + num_bytes]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.zip"
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.mkdir("ILSVRC")
        for name, content in FILES.items():
            bundle.writestr(name, content)
    return path


@pytest.fixture
def pool() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False, timeout=5) as manager:
        yield manager


@pytest.fixture(scope="module")
def plain() -> Iterator[tuple[KaggleStandIn, str]]:
    with KaggleStandIn(Memory(CONTENT)) as stand_in:
        yield stand_in, resolve(stand_in)


def call(
    stand_in: KaggleStandIn,
    method: str,
    document: dict[str, Any] | None = None,
    *,
    authorization: str = "",
    port: int = 0,
) -> http.client.HTTPResponse:
    """Send a call the way the real client does through its proxy: in absolute form."""
    connection = http.client.HTTPConnection("127.0.0.1", port or stand_in.port, timeout=5)
    body = json.dumps({"competitionName": COMPETITION} if document is None else document)
    headers = {"Authorization": authorization or f"Bearer {stand_in.token}", "Content-Type": "application/json"}
    try:
        connection.request("POST", f"http://localhost/api/v1/{method}", body, headers)
        response = connection.getresponse()
        response.content = response.read()  # type: ignore[attr-defined]
        return response
    finally:
        connection.close()


def document(response: http.client.HTTPResponse) -> Any:
    return json.loads(response.content)  # type: ignore[attr-defined]


def resolve(stand_in: KaggleStandIn, name: str = "") -> str:
    asked = {"competitionName": COMPETITION, "fileName": name} if name else None
    response = call(stand_in, f"{SERVICE}/DownloadDataFile" + ("" if name else "s"), asked)
    assert response.status == 302
    return response.headers["Location"]


def get(pool: urllib3.PoolManager, url: str, method: str = "GET", **headers: str) -> urllib3.BaseHTTPResponse:
    return pool.request(method, url, headers={name.replace("_", "-"): value for name, value in headers.items()})


# Calls


def test_a_token_is_introspected(archive: Path) -> None:
    with KaggleStandIn(archive) as stand_in:
        good = call(stand_in, "security.OAuthService/IntrospectToken", {"token": stand_in.token})
        bad = call(stand_in, "security.OAuthService/IntrospectToken", {"token": "other"})

    assert (document(good)["active"], document(good)["username"], bad.status) == (True, "someone", 400)


def test_files_are_listed_page_by_page(archive: Path) -> None:
    with KaggleStandIn(archive) as stand_in:
        asked: dict[str, Any] = {"competitionName": COMPETITION, "pageSize": 2}
        first = document(call(stand_in, f"{SERVICE}/ListDataFiles", asked))
        second = document(call(stand_in, f"{SERVICE}/ListDataFiles", {**asked, "pageToken": first["nextPageToken"]}))

    listed = {file["name"]: file["totalBytes"] for page in (first, second) for file in page["files"]}
    assert listed == {name: len(content) for name, content in FILES.items()}
    assert [len(first["files"]), "nextPageToken" in second] == [2, False]


def test_folders_are_listed_level_by_level(archive: Path) -> None:
    with KaggleStandIn(archive) as stand_in:
        root = document(call(stand_in, f"{SERVICE}/ListDataTreeFiles"))
        inside = document(
            call(stand_in, f"{SERVICE}/ListDataTreeFiles", {"competitionName": COMPETITION, "path": "ILSVRC/a"})
        )

    assert [folder["name"] for folder in root["directories"]] == ["ILSVRC"]
    assert [(file["name"], file["relativeUrl"]) for file in root["files"]] == [("LOC_list.csv", "LOC_list.csv")]
    assert (root["totalChildren"], root["totalDirectories"], root["totalFiles"]) == (2, 1, 1)
    assert [(file["relativeUrl"], file["totalBytes"]) for file in inside["files"]] == [("ILSVRC/a/one.JPEG", 70_000)]


@pytest.mark.parametrize("name", FILES)
def test_single_files_are_served_with_their_md5(archive: Path, pool: urllib3.PoolManager, name: str) -> None:
    with KaggleStandIn(archive) as stand_in:
        response = get(pool, resolve(stand_in, name))

    md5 = base64.b64encode(hashlib.md5(FILES[name]).digest()).decode()
    assert (response.data, response.headers["x-goog-hash"]) == (FILES[name], f"md5={md5}")


def test_files_named_so_are_served_as_a_zip(archive: Path, pool: urllib3.PoolManager, tmp_path: Path) -> None:
    with KaggleStandIn(archive, zipped_files=["LOC_list.csv"]) as stand_in:
        url = resolve(stand_in, "LOC_list.csv")
        bodies = {get(pool, url).data for _ in range(2)}

    (tmp_path / "zip").write_bytes(bodies.pop())
    assert (urlsplit(url).path.endswith("/LOC_list.csv.zip"), bodies) == (True, set())
    assert zipfile.ZipFile(tmp_path / "zip").read("LOC_list.csv") == FILES["LOC_list.csv"]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("case", "status"),
    [
        ("key", 401),
        ("competition", 404),
        ("file", 404),
        ("files off", 404),
        ("rules", 403),
        ("calls", 429),
        ("service", 404),
    ],
)
def test_refused_calls(archive: Path, case: str, status: int, nested: bool) -> None:
    stand_in = KaggleStandIn(
        archive,
        rules_accepted=case != "rules",
        files=case != "files off",
        max_file_calls=0 if case == "calls" else None,
        nested_errors=nested,
    )
    asked = {
        "competitionName": "titanic" if case == "competition" else COMPETITION,
        "fileName": "none" if case == "file" else "LOC_list.csv",
    }
    wrong = "Basic " + base64.b64encode(b"someone:else").decode()
    with stand_in:
        response = call(
            stand_in,
            "other.Service/Method" if case == "service" else f"{SERVICE}/DownloadDataFile",
            asked,
            authorization=wrong if case == "key" else "",
        )

    error = document(response)["error"] if nested else document(response)
    assert (response.status, error["code"], "status" in error) == (status, status, nested)
    assert ("Retry-After" in response.headers) == (case == "calls")
    assert ("accept this competition's rules" in error["message"]) == (case == "rules")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 50_000, b"null"])
def test_a_body_that_is_no_json_object_is_refused(archive: Path, pool: urllib3.PoolManager, body: bytes) -> None:
    with KaggleStandIn(archive) as stand_in:
        response = pool.request("POST", f"{stand_in.url}/api/v1/{SERVICE}/ListDataFiles", body=body)

    assert (response.status, response.json()["code"]) == (400, 400)


def test_a_body_too_large_is_refused_unread(archive: Path) -> None:
    with KaggleStandIn(archive) as stand_in, socket.create_connection(("127.0.0.1", stand_in.port), 5) as client:
        client.sendall(b"POST /api/v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n")

        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_only_members_of_a_zip_are_files(pool: urllib3.PoolManager) -> None:
    with KaggleStandIn(Memory(b"no zip")) as stand_in:
        assert document(call(stand_in, f"{SERVICE}/ListDataFiles"))["files"] == []
        assert get(pool, resolve(stand_in)).data == b"no zip"


# Storage


@pytest.mark.parametrize("form", ["direct", "through the proxy"])
def test_the_bundle_comes_whole(archive: Path, pool: urllib3.PoolManager, form: str) -> None:
    with KaggleStandIn(archive) as stand_in, urllib3.ProxyManager(stand_in.url, retries=False) as proxied:
        url = resolve(stand_in)
        response = get(pool if form == "direct" else proxied, url)
        head = get(pool, url, "HEAD")

        assert response.data == archive.read_bytes()
        assert (urlsplit(url).hostname, urlsplit(url).path.rpartition("/")[2]) == ("127.0.0.1", "archive.zip")
        assert response.headers["ETag"] == stand_in.etag
        assert (response.headers["Accept-Ranges"], "x-goog-hash" in response.headers) == ("bytes", False)
        assert (head.data, head.headers["Content-Length"]) == (b"", str(archive.stat().st_size))
        assert stand_in.storage_bytes == archive.stat().st_size


def expected_range(first: int | None, last: int | None, size: int) -> slice | None:
    """RFC 9110, 14.1.2, written another way: which bytes; None when the range cannot be satisfied."""
    wanted = (
        range(size)[-last:] if first is None and last else range(size)[first or 0 : None if last is None else last + 1]
    )
    if (first is None and last == 0) or not wanted:
        return None
    return slice(wanted.start, wanted.stop)


@given(
    first=st.none() | st.integers(0, len(CONTENT) + 9),
    length=st.none() | st.integers(0, 200_000) | st.integers(0, 2 * len(CONTENT)),
)
@settings(max_examples=60, deadline=None)
def test_any_range_gives_those_bytes(plain: tuple[KaggleStandIn, str], first: int | None, length: int | None) -> None:
    stand_in, url = plain
    if first is None and length is None:
        return
    last = length if first is None or length is None else first + length
    asked = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    response = urllib3.request("GET", url, headers={"Range": asked}, retries=False)
    wanted = expected_range(first, last, len(CONTENT))
    if wanted is None:
        assert (response.status, response.headers["Content-Range"]) == (416, f"bytes */{len(CONTENT)}")
    else:
        assert (response.status, response.data) == (206, CONTENT[wanted])
        assert response.headers["Content-Range"] == f"bytes {wanted.start}-{wanted.stop - 1}/{len(CONTENT)}"
        assert stand_in.requests[-1].range == (wanted.start, wanted.stop - 1)


@pytest.mark.parametrize(
    "header", ["bytes=-", "bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes=1-" + "9" * 40]
)
def test_a_range_that_is_none_is_ignored(
    plain: tuple[KaggleStandIn, str], pool: urllib3.PoolManager, header: str
) -> None:
    response = get(pool, plain[1], Range=header)

    assert (response.status, len(response.data)) == (200, len(CONTENT))


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("If_Match", "{etag}", 206),
        ("If_Match", '"a", {etag}', 206),
        ("If_Match", "*", 206),
        ("If_Match", '"other"', 412),
        ("If_Range", "{etag}", 206),
        ("If_Range", "{modified}", 206),
        ("If_Range", '"other"', 200),
        ("If_Range", "Thu, 01 Jan 1970 00:00:00 GMT", 200),
    ],
)
def test_conditions(
    plain: tuple[KaggleStandIn, str], pool: urllib3.PoolManager, name: str, value: str, status: int
) -> None:
    stand_in, url = plain
    modified = get(pool, url, "HEAD").headers["Last-Modified"]
    condition = value.format(etag=stand_in.etag, modified=modified)
    response = get(pool, url, Range="bytes=10-19", **{name: condition})

    assert response.status == status
    assert response.data == {206: CONTENT[10:20], 200: CONTENT}.get(status, response.data)


def test_an_altered_url_is_refused_and_an_expired_one_too(archive: Path, pool: urllib3.PoolManager) -> None:
    with KaggleStandIn(archive, url_lifetime=0.3) as stand_in:
        url = resolve(stand_in)
        statuses = [get(pool, url[:-1] + ("0" if url[-1] != "0" else "1")).status, get(pool, url).status]
        time.sleep(0.35)
        expired = get(pool, url)

        assert (statuses, expired.status) == ([403, 200], 400)
        assert b"<Code>ExpiredToken</Code>" in expired.data
        assert get(pool, resolve(stand_in)).status == 200


def test_a_replaced_bundle_has_another_etag_and_other_bytes(archive: Path, pool: urllib3.PoolManager) -> None:
    with KaggleStandIn(archive) as stand_in:
        url, etag = resolve(stand_in), stand_in.etag
        stand_in.replace(Memory(CONTENT))
        response = get(pool, url)

        assert (response.data, response.headers["ETag"] == etag) == (CONTENT, False)
        assert get(pool, url, If_Match=etag).status == 412


def test_the_etag_is_that_of_the_bytes(archive: Path) -> None:
    with KaggleStandIn(archive) as one, KaggleStandIn(Memory(archive.read_bytes())) as two:
        assert one.etag == two.etag


def test_one_connection_serves_many_requests(plain: tuple[KaggleStandIn, str]) -> None:
    stand_in, url = plain
    connection = http.client.HTTPConnection("127.0.0.1", stand_in.port)
    for first in range(50):
        connection.request("GET", url, headers={"Range": f"bytes={first}-{first + 9}"})
        assert connection.getresponse().read() == CONTENT[first : first + 10]
        client = connection.sock.getsockname()
    assert client == connection.sock.getsockname()
    connection.close()


def test_a_file_longer_than_one_piece_is_sent_whole(tmp_path: Path, pool: urllib3.PoolManager) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    with KaggleStandIn(tmp_path / "f") as stand_in:
        url = resolve(stand_in)

        assert get(pool, url).data == CONTENT
        assert get(pool, url, Range="bytes=1234567-2999990").data == CONTENT[1234567:2999991]


def test_the_rate_holds_for_all_connections_together() -> None:
    size = 400_000
    with KaggleStandIn(Memory(CONTENT[:size]), rate=1_000_000) as stand_in:
        url = resolve(stand_in)
        start = time.monotonic()
        threads = [threading.Thread(target=urllib3.request, args=("GET", url)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert time.monotonic() - start >= 2 * size / 1_000_000 * 0.9


def test_latency_is_waited_before_every_answer(archive: Path) -> None:
    with KaggleStandIn(archive, latency=0.2) as stand_in:
        start = time.monotonic()
        resolve(stand_in)

        assert time.monotonic() - start >= 0.2


def test_what_is_no_get_of_storage_is_refused(plain: tuple[KaggleStandIn, str], pool: urllib3.PoolManager) -> None:
    assert [get(pool, plain[1], method).status for method in ("POST", "DELETE")] == [405, 501]


def test_a_missing_archive_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ImgprepError, match="No such file"):
        FileArchive(tmp_path / "none")


def test_a_port_in_use_is_an_error_of_ours(plain: tuple[KaggleStandIn, str]) -> None:
    with pytest.raises(ImgprepError, match="in use"):
        KaggleStandIn(Memory(b""), port=plain[0].port)


# Faults


def fetched(stand_in: KaggleStandIn, url: str, asked: str = "") -> tuple[int, dict[str, str], bytes]:
    """GET with nothing done behind our back: status, headers and the body's bytes as they came, cut off or not."""
    connection = http.client.HTTPConnection("127.0.0.1", stand_in.port, timeout=0.5)
    try:
        connection.request("GET", url, headers={"Range": asked} if asked else {})
        response = connection.getresponse()
        body = bytearray()
        try:
            while piece := response.read1(4096):
                body += piece
        except (TimeoutError, http.client.IncompleteRead):
            pass
        return response.status, dict(response.headers), bytes(body)
    finally:
        connection.close()


ASKED = "bytes=1000-200999"
PART = CONTENT[1000:201_000]


@pytest.fixture
def faulty() -> Iterator[Any]:
    opened = []

    def start(text: str, source: Archive | None = None) -> tuple[KaggleStandIn, str]:
        opened.append(KaggleStandIn(source or Memory(CONTENT), faults=[Fault.parse(text)]))
        return opened[-1], resolve(opened[-1])

    yield start
    for stand_in in opened:
        stand_in.close()


def test_cut(faulty: Any) -> None:
    stand_in, url = faulty("cut:percent=30")
    status, headers, body = fetched(stand_in, url, ASKED)

    assert (status, headers["Content-Length"], body) == (206, "200000", PART[:60_000])
    assert [(r.num_bytes, r.fault) for r in stand_in.requests[1:]] == [(60_000, "cut")]
    assert fetched(stand_in, url, ASKED)[2] == PART


def test_cut_of_a_file_sent_by_the_kernel(faulty: Any, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    stand_in, url = faulty("cut:percent=50", FileArchive(tmp_path / "f"))

    assert fetched(stand_in, url)[2] == CONTENT[: len(CONTENT) // 2]


def test_close(faulty: Any) -> None:
    stand_in, url = faulty("close:times=2")
    for _ in range(2):
        with pytest.raises(http.client.RemoteDisconnected):
            fetched(stand_in, url)
    assert ([r.status for r in stand_in.requests], fetched(stand_in, url)[2]) == ([302, 0, 0], CONTENT)


def test_stall_keeps_the_connection_but_sends_no_more(faulty: Any) -> None:
    stand_in, url = faulty("stall:percent=10")
    start = time.monotonic()
    body = fetched(stand_in, url, ASKED)[2]

    assert (body, time.monotonic() - start >= 0.5) == (PART[:20_000], True)


def test_slow(faulty: Any) -> None:
    stand_in, url = faulty("slow:rate=20000")
    start = time.monotonic()

    assert fetched(stand_in, url, "bytes=0-5999")[2] == CONTENT[:6000]
    assert time.monotonic() - start >= 0.27


def test_status_with_retry_after(faulty: Any) -> None:
    stand_in, url = faulty("status:status=429,retry_after=Wed, 21 Oct 2026 07:28:00 GMT,times=1")
    status, headers, body = fetched(stand_in, url)

    assert (status, headers["Retry-After"], body[:5]) == (429, "Wed, 21 Oct 2026 07:28:00 GMT", b"<?xml")


def test_expired_is_about_one_url(faulty: Any) -> None:
    stand_in, url = faulty("expired")

    assert [fetched(stand_in, url)[0] for _ in range(2)] == [400, 400]
    assert fetched(stand_in, resolve(stand_in))[0] == 200


def test_no_range(faulty: Any) -> None:
    stand_in, url = faulty("no-range")
    status, headers, body = fetched(stand_in, url, ASKED)

    assert (status, "Content-Range" in headers, body) == (200, False, CONTENT)


@pytest.mark.parametrize("asked", [(1000, 200_999), (0, 999), (len(CONTENT) - 10, len(CONTENT) - 1)])
def test_wrong_range_is_another_part_and_says_so(faulty: Any, asked: tuple[int, int]) -> None:
    stand_in, url = faulty("wrong-range")
    status, headers, body = fetched(stand_in, url, f"bytes={asked[0]}-{asked[1]}")
    first, last = map(int, headers["Content-Range"].removeprefix("bytes ").partition("/")[0].split("-"))

    assert (status, last - first, first != asked[0]) == (206, asked[1] - asked[0], True)
    assert body == CONTENT[first : last + 1]


def test_short_range(faulty: Any) -> None:
    stand_in, url = faulty("short-range:percent=25")
    status, headers, body = fetched(stand_in, url, ASKED)

    assert (status, body) == (206, PART[:50_000])
    assert headers["Content-Range"] == f"bytes 1000-50999/{len(CONTENT)}"


def test_no_etag(faulty: Any) -> None:
    stand_in, url = faulty("no-etag")

    assert ["ETag" in fetched(stand_in, url, ASKED)[1] for _ in range(2)] == [False, True]


def test_no_length(faulty: Any) -> None:
    stand_in, url = faulty("no-length")
    _, headers, body = fetched(stand_in, url)

    assert (headers["Transfer-Encoding"], "Content-Length" in headers, body) == ("chunked", False, CONTENT)


def test_wrong_length(faulty: Any) -> None:
    stand_in, url = faulty("wrong-length")
    _, headers, body = fetched(stand_in, url, ASKED)

    assert (int(headers["Content-Length"]), body) == (201_000, PART)


@pytest.mark.parametrize("percent", [0, 50, 100])
def test_flip_alters_one_byte(faulty: Any, percent: int) -> None:
    stand_in, url = faulty(f"flip:percent={percent}")
    body = fetched(stand_in, url, ASKED)[2]
    altered = [place for place, (got, true) in enumerate(zip(body, PART, strict=True)) if got != true]

    assert altered == [min(percent * 2000, 199_999)]


def test_gzip(faulty: Any) -> None:
    stand_in, url = faulty("gzip")
    _, headers, body = fetched(stand_in, url, ASKED)

    assert (headers["Content-Encoding"], gzip.decompress(body)) == ("gzip", PART)


@pytest.mark.parametrize("where", ["storage", "api", "introspect"])
def test_html(faulty: Any, where: str) -> None:
    stand_in, url = faulty(f"html:where={where},after={int(where == 'api')}")
    if where == "storage":
        status, headers, body = fetched(stand_in, url, ASKED)
    else:
        method = f"{SERVICE}/DownloadDataFiles" if where == "api" else "security.OAuthService/IntrospectToken"
        response = call(stand_in, method)
        status, headers, body = response.status, dict(response.headers), response.content  # type: ignore[attr-defined]

    assert (status, headers["Content-Type"], b"<html>" in body) == (200, "text/html; charset=utf-8", True)


def test_replaced_in_the_middle(faulty: Any) -> None:
    stand_in, url = faulty("replaced:percent=50")
    etag = stand_in.etag
    first, second = fetched(stand_in, url, ASKED), fetched(stand_in, url, ASKED)

    assert (first[1]["ETag"], first[2]) == (etag, PART[:100_000])
    assert (second[1]["ETag"] == etag, second[2]) == (False, PART)


@pytest.mark.parametrize(("percent", "seen"), [(0, CONTENT[::-1]), (100, CONTENT)])
def test_replaced_by_other_bytes(plain: object, percent: float, seen: bytes) -> None:
    fault = Fault(kind="replaced", percent=percent, replacement=Memory(CONTENT[::-1]))
    with KaggleStandIn(Memory(CONTENT), faults=[fault]) as stand_in:
        url = resolve(stand_in)

        assert [fetched(stand_in, url)[2] for _ in range(2)] == [seen, CONTENT[::-1]]


def test_rules(faulty: Any) -> None:
    stand_in, _ = faulty("rules:after=1")
    response = call(stand_in, f"{SERVICE}/DownloadDataFiles")

    assert (response.status, "accept" in document(response)["message"]) == (403, True)
    assert call(stand_in, f"{SERVICE}/ListDataFiles").status == 200


def test_json_error(faulty: Any) -> None:
    stand_in, _ = faulty("json-error:where=api,status=401,after=1")
    response = call(stand_in, f"{SERVICE}/DownloadDataFiles")

    assert (response.status, document(response)["code"]) == (200, 401)


def test_a_call_stalls_before_its_answer(faulty: Any) -> None:
    stand_in, _ = faulty("stall:where=introspect")
    with socket.create_connection(("127.0.0.1", stand_in.port), 0.3) as client:
        client.sendall(b"POST /api/v1/security.OAuthService/IntrospectToken HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(TimeoutError):
            client.recv(1)


@pytest.mark.parametrize(
    ("aim", "hit"),
    [
        ("min_bytes=5000", ["b"]),
        ("max_bytes=5000", ["a", "c"]),
        ("from_byte=600000", ["c"]),
        ("after=1", ["b", "c"]),
        ("after=1,times=1", ["b"]),
        ("path=archive.zip", ["a", "b", "c"]),
        ("path=.xml", []),
    ],
)
def test_faults_are_aimed(faulty: Any, aim: str, hit: list[str]) -> None:
    stand_in, url = faulty(f"status:{aim}" + ("" if "times" in aim else ",times=all"))
    asked = {"a": "bytes=0-99", "b": "bytes=500-9999", "c": "bytes=700000-700099"}

    assert [name for name, header in asked.items() if fetched(stand_in, url, header)[0] == 503] == hit


def test_faults_come_and_go(plain: object) -> None:
    with KaggleStandIn(Memory(CONTENT)) as stand_in:
        url = resolve(stand_in)
        stand_in.add_fault(Fault(kind="status", times=None))
        statuses = [fetched(stand_in, url)[0]]
        stand_in.clear_faults()
        statuses.append(fetched(stand_in, url)[0])

    assert statuses == [503, 200]


@pytest.mark.parametrize("kind", get_args(FaultKind))
def test_every_kind_hits_something(faulty: Any, kind: FaultKind) -> None:
    stand_in, url = faulty(f"{kind}:rate=1000000,after={int(kind == 'rules')}")
    try:
        answers = [fetched(stand_in, url, ASKED)]
    except http.client.RemoteDisconnected:
        answers = []
    call(stand_in, f"{SERVICE}/DownloadDataFiles")

    assert kind in {request.fault for request in stand_in.requests}
    assert all((status, body) != (206, PART) for status, _, body in answers) == (
        kind not in ("slow", "rules", "no-etag", "no-length", "wrong-length")
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("explode", "kind must be one of"),
        ("cut:where=moon", "where must be one of"),
        ("expired:where=api", "about storage"),
        ("cut:percent=101", "percent must be from 0 to 100"),
        ("cut:percent=nan", "percent must be"),
        ("cut:percent=x", "must be a number"),
        ("cut:times=0", "times must be 1 or more"),
        ("cut:after=-1", "after must be 0 or more"),
        ("status:status=200", "status must be from 400"),
        ("slow:rate=0", "rate must be 1 or more"),
        ("cut:colour=red", "no setting 'colour'"),
    ],
)
def test_faults_that_cannot_be(text: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        Fault.parse(text)


def test_a_fault_is_read_from_text() -> None:
    parsed = Fault.parse("cut:percent=30, times=all,min_bytes=65536,where=storage")

    assert parsed == Fault(kind="cut", percent=30, times=None, min_bytes=65536)


# The server as a neighbour


def test_clients_that_go_away_make_no_noise(capfd: pytest.CaptureFixture[str]) -> None:
    with KaggleStandIn(Memory(bytes(50_000_000))) as stand_in:
        url = urlsplit(resolve(stand_in))
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", stand_in.port)) as client:
                client.sendall(f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                client.recv(10)
    sent = [request.num_bytes for request in stand_in.requests[1:]]

    assert capfd.readouterr() == ("", "")
    assert (len(sent), all(0 < number < 50_000_000 for number in sent)) == (3, True)


def test_closing_is_quick_with_stalled_clients_and_leaves_no_threads() -> None:
    before = threading.active_count()
    stand_in = KaggleStandIn(Memory(CONTENT), faults=[Fault(kind="stall", times=None)])
    url = resolve(stand_in)
    connections = [http.client.HTTPConnection("127.0.0.1", stand_in.port, timeout=5) for _ in range(4)]
    for connection in connections:
        connection.request("GET", url)
        connection.getresponse().read(1000)
    start = time.monotonic()
    stand_in.close()
    stand_in.close()

    assert time.monotonic() - start < 1.5
    assert wait_until(lambda: threading.active_count() <= before)
    for connection in connections:
        connection.close()


def test_connections_that_end_leave_no_threads(archive: Path) -> None:
    with KaggleStandIn(archive) as stand_in:
        before = threading.active_count()
        for _ in range(20):
            resolve(stand_in)

        assert wait_until(lambda: threading.active_count() <= before)


def wait_until(true: Any) -> bool:
    end = time.monotonic() + 5
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(true())


def test_the_log_tells_what_was_asked_and_holds_no_secret(archive: Path, pool: urllib3.PoolManager) -> None:
    with KaggleStandIn(archive) as stand_in:
        url = resolve(stand_in)
        get(pool, url, Range="bytes=5-9", If_Match=stand_in.etag, Accept_Encoding="identity", User_Agent="me")
        logged = stand_in.requests
        stand_in.forget()

        assert [(request.method, request.authorized, request.status) for request in logged] == [
            ("POST", True, 302),
            ("GET", False, 206),
        ]
        assert logged[1] == Request(
            "GET",
            f"/storage/{COMPETITION}/archive.zip",
            (5, 9),
            206,
            5,
            False,
            "",
            "bytes=5-9",
            "",
            stand_in.etag,
            "identity",
            "me",
        )
        assert "Signature" not in repr(logged)
        assert (stand_in.requests, stand_in.storage_bytes) == ([], 0)


# By hand


def test_a_bad_fault_on_the_command_line_is_one_line(archive: Path) -> None:
    result = CliRunner().invoke(main, [str(archive), "--fault", "explode"])

    assert (result.exit_code, result.output.startswith("Error: kind must be one of")) == (1, True)


def test_the_command_says_what_to_export_and_serves(archive: Path) -> None:
    command = [sys.executable, "-m", "imgprep.testing.kaggle", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith("export KAGGLE_KEY="):
            lines.append(child.stdout.readline())
            assert lines[-1], lines
        values = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines if line.startswith("export"))
        reached = urllib3.request(
            "POST", values["http_proxy"] + "/api/v1/security.OAuthService/IntrospectToken", body=b"{}"
        )
        child.send_signal(2)
        rest = child.stdout.read()

    assert (reached.status, child.returncode, "Traceback" in rest) == (400, 0, False)
    assert not Path(values["HOME"]).exists()


# The real client


def run_client(stand_in: KaggleStandIn, tmp_path: Path, code: str, credentials: Credentials) -> tuple[int, str, str]:
    script = (
        "from kaggle.api.kaggle_api_extended import KaggleApi\n"
        f"api = KaggleApi(); api.authenticate(); competition = {COMPETITION!r}\n"
        f"folder = {str(tmp_path / 'got')!r}\n{code}"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=stand_in.child_environment(tmp_path / "home", credentials=credentials),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


ALL_CALLS = (
    "print([file.name for file in api.competition_list_files(competition).files])\n"
    "api.competition_download_file(competition, 'ILSVRC/a/one.JPEG', folder, quiet=True)\n"
    "api.competition_download_files(competition, folder, quiet=True)\n"
)


@pytest.mark.parametrize("credentials", ["legacy", "token"])
def test_the_real_client_lists_and_downloads(archive: Path, tmp_path: Path, credentials: Credentials) -> None:
    with KaggleStandIn(archive) as stand_in:
        code, out, errors = run_client(stand_in, tmp_path, ALL_CALLS, credentials)
        logged = stand_in.requests

    assert (code, str(list(FILES)) in out) == (0, True), errors
    (single,) = (tmp_path / "got").rglob("one.JPEG")
    assert single.read_bytes() == FILES["ILSVRC/a/one.JPEG"]
    assert (tmp_path / "got" / f"{COMPETITION}.zip").read_bytes() == archive.read_bytes()
    assert not any(request.authorized for request in logged if request.path.startswith("/storage/"))
    assert ("IntrospectToken" in logged[0].path) == (credentials == "token")


@pytest.mark.parametrize("credentials", ["kaggle.json", "token-path", "access_token", "oauth"])
def test_the_real_client_finds_every_kind_of_credentials(
    archive: Path, tmp_path: Path, credentials: Credentials
) -> None:
    with KaggleStandIn(archive) as stand_in:
        code, out, errors = run_client(stand_in, tmp_path, ALL_CALLS.splitlines()[0], credentials)

    assert (code, str(list(FILES)) in out) == (0, True), errors


@pytest.mark.parametrize(
    ("credentials", "accepted", "said"),
    [
        ("wrong-key", True, "Unauthorized"),
        ("legacy", False, "must accept this competition's rules"),
        ("none", True, ""),
    ],
)
def test_the_real_client_is_refused(
    archive: Path, tmp_path: Path, credentials: Credentials, accepted: bool, said: str
) -> None:
    with KaggleStandIn(archive, rules_accepted=accepted) as stand_in:
        code, _, errors = run_client(stand_in, tmp_path, ALL_CALLS.splitlines()[2], credentials)

        assert (code, said in errors) == (1, True)
        assert [request.authorized for request in stand_in.requests] == ([credentials == "legacy"] if said else [])


def test_the_environment_of_a_child_leaves_nothing_of_the_users(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KAGGLE_API_TOKEN", "VERBOSE", "no_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "localhost")
    with KaggleStandIn(archive) as stand_in:
        child = stand_in.child_environment(tmp_path)

    assert not {"KAGGLE_API_TOKEN", "VERBOSE", "no_proxy", "HTTPS_PROXY"} & set(child)
    assert (child["HOME"], child["KAGGLE_KEY"], child["PATH"]) == (str(tmp_path), stand_in.key, os.environ["PATH"])
