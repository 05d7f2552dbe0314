"""Fixtures: toy archives drawn once a session, workspaces at each station of the street, real data if present."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, settings

from imgprep.annotations import annotations
from imgprep.catalog import catalog
from imgprep.cli import main
from imgprep.fetch import fetch
from imgprep.selection import SubsetSpec
from imgprep.shard import plan_job, shard
from imgprep.shard_plan import ShardSpec
from imgprep.subset import subset
from imgprep.testing.toy import ToyListing, ToySpec, write_toy_imagenet
from imgprep.workspace import Workspace

# Wall-clock limits of hypothesis say more about a busy machine than about the code.
settings.register_profile("imgprep", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("imgprep")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real photographs and annotations. They may not be redistributed, so they lie beside the repository, or nowhere."""

SMALL = ToySpec(classes=5, per_class=10, val_per_class=4, test=3, min_side=40, max_side=72)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No workspace of the person who runs the tests."""
    monkeypatch.delenv("IMGPREP_WORKSPACE", raising=False)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ToyListing]:
    """A small toy archive (zip) and what is in it."""
    path = tmp_path_factory.mktemp("toy") / "toy.zip"
    return path, write_toy_imagenet(path, SMALL)


@pytest.fixture(scope="session")
def toy_spec() -> ToySpec:
    """What :func:`toy` was drawn from."""
    return SMALL


@pytest.fixture(scope="session")
def toy_zip(toy: tuple[Path, ToyListing]) -> Path:
    """The archive of :func:`toy`."""
    return toy[0]


@pytest.fixture(scope="session")
def _sharded(toy_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = Workspace(tmp_path_factory.mktemp("sharded"))
    fetch(workspace, toy_zip)
    catalog(workspace)
    annotations(workspace)
    subset(workspace, SubsetSpec(classes=4, per_class=8), name="main")
    spec = ShardSpec(size=48, samples_per_shard=5)
    shard(workspace, plan_job(workspace, spec, subset="main"), spec)
    return workspace.root


@pytest.fixture
def sharded(_sharded: Path, tmp_path: Path) -> Workspace:
    """A workspace of its own with source, catalog, subset and shards of the toy archive."""
    root = tmp_path / "imgprep-data"
    shutil.copytree(_sharded, root)
    return Workspace(root)


@pytest.fixture
def fetched(toy_zip: Path, tmp_path: Path) -> Workspace:
    """A workspace that has adopted the toy archive, and no more."""
    workspace = Workspace(tmp_path / "imgprep-data")
    workspace.root.mkdir()
    fetch(workspace, toy_zip)
    return workspace


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``imgprep ARG...`` in an empty folder; the result has exit_code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str | Path) -> Result:
        return CliRunner().invoke(main, [str(arg) for arg in args])

    return run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data."""
    if not REAL_DATA.is_dir():
        pytest.skip("real photographs are not beside this checkout; they may not be redistributed")
    return REAL_DATA
