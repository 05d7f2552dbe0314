"""The record of an adopted source: what of a change is noticed, by which stage, and how it is settled."""

import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from imgprep.annotations import annotations
from imgprep.catalog import catalog
from imgprep.doctor import doctor
from imgprep.errors import DamagedError, ImgprepError, MissingInputError, OutputExistsError, SourceError
from imgprep.fetch import fetch
from imgprep.selection import SubsetSpec
from imgprep.shard import plan_job, shard
from imgprep.shard_plan import ShardSpec
from imgprep.sources import open_source
from imgprep.sources.adopted import (
    check_adopted,
    describe_source,
    gone_note,
    open_adopted,
    read_source_record,
    write_source_record,
)
from imgprep.subset import subset
from imgprep.testing.toy import ToySpec, write_toy_imagenet
from imgprep.workspace import Workspace

Cli = Callable[..., Result]

TINY = ToySpec(classes=2, per_class=3, val_per_class=1, test=0, odd_files=False, min_side=32, max_side=40)
STAGES = ("catalog", "annotations", "doctor", "subset", "shard")
TRAIN = "ILSVRC/Data/CLS-LOC/train"


def record_source(workspace: Workspace, path: Path) -> None:
    with open_source(path) as source:
        write_source_record(workspace, describe_source(workspace, source, layout="imagefolder"))


def rewrite(path: Path) -> None:
    """Another content of the same size, a second later."""
    later = path.stat().st_mtime_ns + 1_000_000_000
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(later, later))


def run_stages(workspace: Workspace) -> Mapping[str, str]:
    """Run all stages that read the source, and say what each did."""
    spec = ShardSpec(size=32, max_rejects=6)
    actions: dict[str, str] = {"catalog": catalog(workspace).action, "annotations": annotations(workspace).action}
    actions["doctor"] = doctor(workspace).action
    actions["subset"] = subset(workspace, SubsetSpec(classes=2, per_class=2), name="main", overwrite=True).action
    job = plan_job(workspace, spec, subset="main", overwrite=True)
    return actions | {"shard": shard(workspace, job, spec).action}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A toy archive, unpacked."""
    write_toy_imagenet(tmp_path / "toy", TINY)
    return tmp_path / "toy"


@pytest.fixture
def done(folder: Path, tmp_path: Path) -> Workspace:
    """A workspace with everything made of :func:`folder`."""
    workspace = Workspace(tmp_path / "imgprep-data")
    fetch(workspace, folder)
    run_stages(workspace)
    return workspace


def first_picture(folder: Path) -> Path:
    return min((folder / TRAIN).rglob("*.JPEG"))


CHANGES: dict[str, Callable[[Path, int], object]] = {
    "rewrite": lambda path, _: rewrite(path),
    "touch": lambda path, number: os.utime(path, ns=(number, number)),
    "add": lambda path, number: path.with_name(f"new-{number}").touch(),
    "remove": lambda path, _: path.unlink(),
    "rename": lambda path, number: path.rename(path.with_name(f"new-{number}")),
    "grow": lambda path, _: path.write_bytes(path.read_bytes() + b"x"),
}


@settings(max_examples=40)
@given(
    files=st.dictionaries(
        st.sampled_from(["a", "b", "c/a", "c/b", "d/e/f"]), st.binary(min_size=1, max_size=20), min_size=1
    ),
    change=st.sampled_from(sorted(CHANGES)),
    place=st.integers(min_value=0),
    number=st.integers(min_value=1, max_value=10**9),
)
def test_a_folder_that_changed_is_noticed_and_one_that_did_not_is_not(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], change: str, place: int, number: int
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for name, content in files.items():
        (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "source" / name).write_bytes(content)
    workspace = Workspace(root / "workspace")
    record_source(workspace, root / "source")
    check_adopted(workspace)

    CHANGES[change](root / "source" / sorted(files)[place % len(files)], number)
    with pytest.raises(SourceError, match="changed since it was adopted"):
        check_adopted(workspace)
    with pytest.raises(SourceError, match="changed since it was adopted"):
        open_adopted(workspace)


def test_what_was_changed_in_place_is_counted_and_named(done: Workspace, folder: Path) -> None:
    picture = first_picture(folder)
    rewrite(picture)
    later = done.source_record.stat().st_mtime_ns + 1_000_000_000
    os.utime(picture, ns=(later, later))
    with pytest.raises(SourceError) as caught:
        open_adopted(done)

    assert f"in place, or touched: 1 since then, such as {picture.relative_to(folder)}" in caught.value.what
    assert caught.value.advice == f"run `imgprep fetch --from {folder} --overwrite` if that is intended"
    assert caught.value.exit_code == 3


def test_a_file_that_an_older_one_took_the_place_of_is_noticed_too(done: Workspace, folder: Path) -> None:
    os.utime(first_picture(folder), ns=(1, 1))
    with pytest.raises(SourceError, match="files were changed in place, or touched - run"):
        check_adopted(done)


def test_no_stage_calls_itself_up_to_date_when_the_source_changed(done: Workspace, folder: Path) -> None:
    assert set(run_stages(done).values()) == {"skip"}
    rewrite(first_picture(folder))
    stages: dict[str, Callable[[], Any]] = {
        "catalog": lambda: catalog(done),
        "annotations": lambda: annotations(done),
        "doctor": lambda: doctor(done),
        "subset": lambda: subset(done, SubsetSpec(classes=2, per_class=2), name="main"),
        "shard": lambda: plan_job(done, ShardSpec(size=32, max_rejects=6), subset="main"),
    }
    for stage in STAGES:
        with pytest.raises(SourceError, match="changed since it was adopted"):
            stages[stage]()


def test_adopting_it_anew_makes_every_stage_run_again(done: Workspace, folder: Path) -> None:
    rewrite(first_picture(folder))
    with pytest.raises(OutputExistsError, match=r"changed since it was adopted.* use --overwrite"):
        fetch(done, folder)
    assert fetch(done, folder, overwrite=True).action == "run"
    check_adopted(done)

    assert run_stages(done) == dict.fromkeys(STAGES, "run")
    assert set(run_stages(done).values()) == {"skip"}


def test_shards_do_not_depend_on_times(done: Workspace, folder: Path) -> None:
    def published() -> dict[str, bytes]:
        """All but the receipt, which is about this very source, and the sums, which are about the receipt as well."""
        files = [path for path in done.shards("main").rglob("*") if path.is_file()]
        return {path.name: path.read_bytes() for path in files if path.name not in ("shard.receipt.json", "SHA256SUMS")}

    before = published()
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(1, 1))
    fetch(done, folder, overwrite=True)

    assert run_stages(done)["shard"] == "run"
    assert published() == before


def test_what_was_made_of_a_source_that_is_gone_stays_up_to_date(done: Workspace, folder: Path) -> None:
    shutil.rmtree(folder)

    assert set(run_stages(done).values()) == {"skip"}
    assert gone_note(done) == f"; its source {folder} is gone"
    with pytest.raises(MissingInputError, match="is gone"):
        open_adopted(done)


def test_that_it_is_gone_is_printed(cli: Cli, done: Workspace, folder: Path) -> None:
    commands = {
        "catalog": (),
        "annotations": (),
        "doctor": (),
        "subset": ("--classes", "2", "--per-class", "2", "--overwrite"),
        "shard": ("--size", "32", "--max-rejects", "6", "--overwrite"),
    }
    for away in (False, True):
        if away:
            shutil.rmtree(folder)
        for command, options in commands.items():
            shown = cli(command, *options)
            printed = cli(command, *options, "--json")
            assert (shown.exit_code, printed.exit_code) == (0, 0), shown.output
            line = next(line for line in shown.stdout.splitlines() if line.startswith("up to date"))
            assert line.endswith(f"; its source {folder} is gone") == away
            assert json.loads(printed.stdout).get("source") == ("gone" if away else None)


def test_a_changed_source_is_an_error_of_every_command(cli: Cli, done: Workspace, folder: Path) -> None:
    rewrite(first_picture(folder))
    for command in STAGES:
        result = cli(command, *(("--size", "32", "--max-rejects", "6") if command == "shard" else ()))
        assert (result.exit_code, result.stdout) == (3, "")
        assert result.stderr.splitlines()[-1].startswith(f"Error: {folder} changed since it was adopted: ")


def test_a_record_without_times_is_healed_by_fetching_again(done: Workspace, folder: Path) -> None:
    """A record from before there were times in it."""
    document = json.loads(done.source_record.read_text())
    whole = dict(document)
    del document["state_sha256"], document["follow_links"]
    done.source_record.write_text(json.dumps(document))
    for use in (read_source_record, open_adopted, check_adopted):
        with pytest.raises(DamagedError, match=r"has no state_sha256.* run the same `imgprep fetch` again"):
            use(done)
    fetch(done, folder)

    assert json.loads(done.source_record.read_text()) == whole
    assert set(run_stages(done).values()) == {"skip"}


def test_an_old_record_of_an_archive_with_checksums_is_as_good(fetched: Workspace) -> None:
    document = json.loads(fetched.source_record.read_text())
    record = read_source_record(fetched)
    del document["state_sha256"], document["follow_links"]
    fetched.source_record.write_text(json.dumps(document))

    assert read_source_record(fetched) == record
    assert record.fingerprint == record.listing_sha256


@pytest.mark.parametrize("field", ["path", "num_bytes", "listing_sha256", "follow_links"])
def test_a_record_with_a_wrong_type_is_damage(fetched: Workspace, field: str) -> None:
    document = json.loads(fetched.source_record.read_text())
    fetched.source_record.write_text(json.dumps(document | {field: [1]}))
    with pytest.raises(DamagedError, match=rf"{field} of a source must be"):
        read_source_record(fetched)


def test_a_tar_has_no_checksums_so_its_time_counts(tmp_path: Path) -> None:
    path = tmp_path / "toy.tar"
    write_toy_imagenet(path, TINY)
    workspace = Workspace(tmp_path / "w")
    before = fetch(workspace, path).record
    with tarfile.open(path) as archive:
        member = next(info for info in archive if info.name.endswith(".JPEG"))
    with path.open("r+b") as file:
        file.seek(member.offset_data + 100)
        file.write(b"changed")
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceError, match="files were changed in place"):
        check_adopted(workspace)
    with pytest.raises(OutputExistsError, match="files were changed in place"):
        fetch(workspace, path)

    after = fetch(workspace, path, overwrite=True).record
    assert after.listing_sha256 == before.listing_sha256
    assert after.fingerprint != before.fingerprint


def test_a_tar_in_a_zip_is_known_by_the_checksums_of_the_zip(tmp_path: Path) -> None:
    inner, path = tmp_path / "inner.tar", tmp_path / "outer.zip"
    write_toy_imagenet(inner, TINY)

    def write_outer(content: bytes) -> None:
        with zipfile.ZipFile(path, "w") as outer:
            outer.writestr("inner.tar", content)

    write_outer(inner.read_bytes())
    workspace = Workspace(tmp_path / "w")
    assert fetch(workspace, path).record.kind == "zip+tar"
    os.utime(path, ns=(1, 1))
    check_adopted(workspace)
    with tarfile.open(inner) as archive:
        start = next(info.offset_data for info in archive if info.name.endswith(".JPEG"))
    content = bytearray(inner.read_bytes())
    content[start] ^= 1
    write_outer(bytes(content))
    with pytest.raises(SourceError, match="files were changed in place"):
        check_adopted(workspace)


def test_a_source_that_became_another_kind_changed(done: Workspace, folder: Path) -> None:
    shutil.rmtree(folder)
    write_toy_imagenet(folder.with_suffix(".zip"), TINY)
    folder.with_suffix(".zip").rename(folder)
    with pytest.raises(SourceError, match="its listing is another one"):
        check_adopted(done)


def test_links_are_followed_whenever_the_source_is_read(folder: Path, tmp_path: Path) -> None:
    picture = first_picture(folder)
    target = picture.rename(tmp_path / "moved.JPEG")
    picture.symlink_to(target)
    workspace = Workspace(tmp_path / "w")
    assert fetch(workspace, folder, follow_links=True).record.follow_links
    name = str(picture.relative_to(folder))
    with open_adopted(workspace)[0] as source:
        assert source.read(name) == target.read_bytes()

    check_adopted(workspace)
    picture.unlink()
    picture.symlink_to(next(path for path in folder.rglob("*.JPEG") if path != picture))
    with pytest.raises(SourceError, match=rf"--from {folder} --follow-links --overwrite") as caught:
        check_adopted(workspace)
    assert isinstance(caught.value, ImgprepError)
