"""fetch adopts a source where it lies."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from imgprep.catalog import catalog
from imgprep.errors import LockedError, MissingInputError, OutputExistsError, SourceError, UsageError
from imgprep.fetch import adopt, fetch, plan_fetch
from imgprep.sources.adopted import open_adopted, read_source_record
from imgprep.testing.toy import ToySpec, write_toy_imagenet
from imgprep.workspace import Workspace

TINY = ToySpec(classes=2, per_class=3, val_per_class=1, test=0, odd_files=False, min_side=32, max_side=40)


@pytest.mark.parametrize("name", ["toy.zip", "toy.tar", "toy"])
def test_a_source_is_recorded_not_copied(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    listing = write_toy_imagenet(path, TINY)
    workspace = Workspace(tmp_path / "w")
    record = fetch(workspace, path).record

    assert (record.kind, record.layout, record.num_members) == (
        {"toy.zip": "zip", "toy.tar": "tar", "toy": "directory"}[name],
        "ilsvrc",
        listing.members,
    )
    assert [file.name for file in workspace.root.rglob("*") if file.is_file()] == ["source.json"]
    assert json.loads(workspace.source_record.read_text())["listing_sha256"] == record.listing_sha256


def test_the_same_source_again_is_up_to_date(fetched: Workspace, toy_zip: Path) -> None:
    before = fetched.source_record.stat().st_mtime_ns

    assert fetch(fetched, toy_zip).action == "skip"
    assert fetched.source_record.stat().st_mtime_ns == before


def test_another_source_is_refused_with_what_differs(fetched: Workspace, tmp_path: Path) -> None:
    other = tmp_path / "other.zip"
    write_toy_imagenet(other, TINY)
    before = read_source_record(fetched)
    with pytest.raises(OutputExistsError, match=r"path was .*toy\.zip, now .*other\.zip"):
        fetch(fetched, other)

    assert read_source_record(fetched) == before
    assert fetch(fetched, other, overwrite=True).action == "run"
    assert read_source_record(fetched).name == "other.zip"


def test_planning_writes_nothing(tmp_path: Path, toy_zip: Path) -> None:
    assert plan_fetch(Workspace(tmp_path / "w"), toy_zip).action == "run"
    assert not (tmp_path / "w").exists()


def test_a_source_that_changed_since_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "toy.zip"
    write_toy_imagenet(path, TINY)
    workspace = Workspace(tmp_path / "w")
    fetch(workspace, path)
    os.utime(path, ns=(1, 1))
    # Touched, but with the same listing: still the same source.
    assert catalog(workspace).action == "run"
    write_toy_imagenet(path, ToySpec(classes=2, per_class=4, val_per_class=1, test=0, odd_files=False))
    with pytest.raises(SourceError, match="changed since it was adopted"):
        open_adopted(workspace)


def test_a_source_that_is_gone_is_named(tmp_path: Path, toy_zip: Path) -> None:
    path = shutil.copy(toy_zip, tmp_path / "copy.zip")
    workspace = Workspace(tmp_path / "w")
    fetch(workspace, Path(path))
    Path(path).unlink()
    with pytest.raises(MissingInputError, match=r"copy\.zip is gone"):
        open_adopted(workspace)


def test_a_source_that_was_only_touched_is_the_same(fetched: Workspace, tmp_path: Path) -> None:
    """A copy with another time, or an archive drawn again, has the same listing."""
    path = tmp_path / "toy.zip"
    write_toy_imagenet(path, TINY)
    workspace = Workspace(tmp_path / "w")
    fetch(workspace, path)
    os.utime(path, ns=(1, 1))

    assert fetch(workspace, path).action == "skip"
    assert read_source_record(workspace).mtime_ns == 1


def test_a_workspace_inside_the_source_is_refused(tmp_path: Path) -> None:
    """Its own files would change the listing with every stage."""
    write_toy_imagenet(tmp_path / "toy", TINY)
    with pytest.raises(UsageError, match="lies inside the source"):
        fetch(Workspace(tmp_path / "toy" / "imgprep-data"), tmp_path / "toy")


def test_two_plans_at_once_do_not_replace_each_other(tmp_path: Path) -> None:
    paths = [tmp_path / "a.zip", tmp_path / "b.zip"]
    for path in paths:
        write_toy_imagenet(path, TINY)
    workspace = Workspace(tmp_path / "w")
    first, second = (plan_fetch(workspace, path) for path in paths)
    adopt(workspace, first)
    with pytest.raises(LockedError, match="meanwhile"):
        adopt(workspace, second)

    assert read_source_record(workspace).name == "a.zip"


def test_a_workspace_that_a_link_leads_to_is_refused(tmp_path: Path) -> None:
    write_toy_imagenet(tmp_path / "toy", TINY)
    (tmp_path / "other" / "imgprep-data").mkdir(parents=True)
    (tmp_path / "toy" / "link").symlink_to(tmp_path / "other")
    workspace = Workspace(tmp_path / "other" / "imgprep-data")
    with pytest.raises(UsageError, match="lies inside the source"):
        fetch(workspace, tmp_path / "toy", follow_links=True)

    assert fetch(workspace, tmp_path / "toy").links.not_followed == ["link"]


def test_links_are_followed_in_folders_only(tmp_path: Path, toy_zip: Path) -> None:
    with pytest.raises(UsageError, match=r"--follow-links goes with a folder, and .* kind zip"):
        fetch(Workspace(tmp_path / "w"), toy_zip, follow_links=True)


def test_another_answer_about_links_matters_where_there_are_some(tmp_path: Path) -> None:
    write_toy_imagenet(tmp_path / "toy", TINY)
    workspace = Workspace(tmp_path / "w")
    fetch(workspace, tmp_path / "toy")

    assert fetch(workspace, tmp_path / "toy", follow_links=True).action == "skip"
    assert read_source_record(workspace).follow_links
    (tmp_path / "new").touch()
    (tmp_path / "toy" / "link").symlink_to(tmp_path / "new")
    assert fetch(workspace, tmp_path / "toy").action == "skip"
    with pytest.raises(OutputExistsError, match=r"num_members was \d+, now \d+.*follow_links was False, now True"):
        fetch(workspace, tmp_path / "toy", follow_links=True)
