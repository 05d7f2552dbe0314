"""Fixtures for what talks to a network: a stand-in for Kaggle, addresses of what it stores, and quick backoff."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imgprep.backoff import Backoff
from imgprep.fetch.online import ARCHIVE_NAME, Online, OnlineSpec
from imgprep.fetch.request import PartRequest
from imgprep.sources.kaggle import SignedUrl
from imgprep.sources.remote_zip import RemoteZip
from imgprep.testing.archives import VirtualImagenet, VirtualSpec
from imgprep.testing.kaggle import Archive, KaggleStandIn
from imgprep.transfer import Identity, RemoteFile, TransferSpec, Wire
from imgprep.workspace import Workspace

WIDE = VirtualSpec(
    classes=12, train=480, val=120, test=30, train_xml=240, val_xml=120, picture_bytes=5_000, deflate_pictures=True
)
"""An archive whose directory is longer than what is read of its end to find it."""


class StorageKaggle:
    """Gives addresses as Kaggle would, without its client and without a request."""

    retries = 0

    def __init__(self, stand_in: KaggleStandIn) -> None:
        self.stand_in = stand_in
        self.asked: list[str] = []

    def archive_url(self) -> SignedUrl:
        return self.file_url("")

    def file_url(self, name: str) -> SignedUrl:
        self.asked.append(name)
        shown = f"{name}.zip" if name in self.stand_in._zipped_files else name
        url = self.stand_in._signed(name, shown or "archive.zip").headers["Location"]
        return SignedUrl(url, (shown or "archive.zip").rsplit("/", 1)[-1])

    def close(self) -> None:
        """Nothing is held open."""


class Clock(threading.Event):
    """An event that is never waited for: it notes how long one would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


@pytest.fixture
def clock() -> Clock:
    """See :class:`Clock`."""
    return Clock()


@pytest.fixture
def serve() -> Iterator[Callable[..., KaggleStandIn]]:
    """Start a stand-in for Kaggle; it ends with the test."""
    started: list[KaggleStandIn] = []

    def start(archive: Path | Archive, **settings: object) -> KaggleStandIn:
        started.append(KaggleStandIn(archive, **settings))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for stand_in in started:
        stand_in.close()


@pytest.fixture
def kaggle() -> Callable[[KaggleStandIn], StorageKaggle]:
    """See :class:`StorageKaggle`."""
    return StorageKaggle


@pytest.fixture
def remote() -> Iterator[Callable[..., RemoteFile]]:
    """A file behind the storage of a stand-in, with waits that take no time to speak of."""
    files: list[RemoteFile] = []

    def make(
        stand_in: KaggleStandIn,
        name: str = "",
        *,
        retries: int = 4,
        backoff: Backoff | None = None,
        identity: Identity | None = None,
        wire: Wire | None = None,
        **spec: float,
    ) -> RemoteFile:
        kaggle = StorageKaggle(stand_in)
        quick = Backoff(retries=retries, base=0.01, longest=0.05)
        files.append(
            RemoteFile(
                lambda: kaggle.file_url(name).url,
                what=name or ARCHIVE_NAME,
                spec=TransferSpec(**{"timeout": 5.0, **spec}),  # type: ignore[arg-type]
                backoff=backoff or quick,
                wire=wire,
                identity=identity,
            )
        )
        return files[-1]

    yield make
    for file in files:
        file.close()


@pytest.fixture
def remote_zip(remote: Callable[..., RemoteFile], tmp_path: Path) -> Callable[..., RemoteZip]:
    """The archive of a stand-in, opened; its directory is kept in ``tmp_path / "cache"``."""

    def make(stand_in: KaggleStandIn, **settings: object) -> RemoteZip:
        return RemoteZip(remote(stand_in, **settings), cache=tmp_path / "cache")

    return make


@pytest.fixture
def online(tmp_path: Path) -> Iterator[Callable[..., Online]]:
    """A conversation about one request with a stand-in, with waits that take no time to speak of."""
    begun: list[Online] = []

    def make(
        workspace: Workspace,
        stand_in: KaggleStandIn,
        request: PartRequest | None = None,
        *,
        retries: int = 4,
        overwrite: bool = False,
        **transfer: float,
    ) -> Online:
        begun.append(
            Online(
                workspace,
                OnlineSpec(
                    request=request,
                    transfer=TransferSpec(**{"timeout": 5.0, "jobs": 3, **transfer}),  # type: ignore[arg-type]
                    retries=retries,
                    overwrite=overwrite,
                ),
                cache=tmp_path / "cache",
                kaggle=StorageKaggle(stand_in),  # type: ignore[arg-type]  # it has what is called
                backoff=Backoff(retries=retries, base=0.01, longest=0.05),
            )
        )
        workspace.root.mkdir(parents=True, exist_ok=True)
        return begun[-1]

    yield make
    for each in begun:
        each.close()


@pytest.fixture(scope="session")
def wide() -> VirtualImagenet:
    """See :data:`WIDE`."""
    return VirtualImagenet(WIDE)


@pytest.fixture(scope="session")
def wide_zip(wide: VirtualImagenet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of :func:`wide` as a file."""
    path = tmp_path_factory.mktemp("wide") / "wide.zip"
    wide.write(path)
    return path


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxies of the person who runs the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
