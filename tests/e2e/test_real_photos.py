"""The street on real photographs laid out like the Kaggle archive, where they are present."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Cli = Callable[..., Result]


def test_nano_from_archive_to_evaluation(cli: Cli, real_data: Path) -> None:
    """77 photos: every command once, without an option it does not need."""
    commands = [
        ["fetch", "--from", real_data / "ilsvrc-nano.zip"],
        ["subset", "--classes", "5", "--per-class", "10"],
        ["shard"],
        ["train", "--epochs", "1"],
        ["evaluate", "--json"],
        ["report"],
    ]
    results = [cli(*command) for command in commands]

    assert [result.exit_code for result in results] == [0] * 6, [result.stderr for result in results]
    evaluation = json.loads(results[4].stdout)
    index = json.loads(Path("imgprep-data/shards/main/index.json").read_text())
    assert index["splits"]["train"]["num_samples"] == 50
    assert evaluation["top1"]["total"] == index["splits"]["val"]["num_samples"]


def test_nano_is_the_same_from_zip_tar_and_directory(cli: Cli, real_data: Path, tmp_path: Path) -> None:
    """The same choice and the same shards, whatever the container; only the record of the source differs."""
    archive = real_data / "ilsvrc-nano.zip"
    with zipfile.ZipFile(archive) as source:
        source.extractall(tmp_path / "tree")
    with tarfile.open(tmp_path / "nano.tar", "w") as target:
        target.add(tmp_path / "tree", arcname=".")
    digests = []
    for number, path in enumerate([archive, tmp_path / "nano.tar", tmp_path / "tree"]):
        place = ["-w", f"w{number}"]
        assert cli("fetch", "--from", path, *place).exit_code == 0
        chosen = json.loads(cli("subset", "--classes", "4", "--per-class", "8", "--json", *place).stdout)
        packed = json.loads(cli("shard", "--size", "128", "--json", *place).stdout)
        digests.append((chosen["digest"], packed["dataset_digest"]))

    assert len(set(digests)) == 1


def test_mini_passes_over_the_classes_that_are_short(cli: Cli, real_data: Path) -> None:
    """n02085620 has 99 photos and n01443537 has 60; n02123045 has exactly 100 and is eligible."""
    cli("fetch", "--from", real_data / "ilsvrc-mini.zip")
    result = cli("subset", "--classes", "18", "--per-class", "100", "--json")
    document = json.loads(result.stdout)

    assert document["passed_over"] == {"n01443537": 60, "n02085620": 99}
    assert (len(document["classes"]), document["train"], "n02123045" in document["classes"]) == (18, 1800, True)
    assert cli("subset", "--classes", "19", "--per-class", "100", "--name", "x").exit_code == 2
    short = cli("subset", "--classes", "n02085620,tench", "--per-class", "100", "--name", "x")
    assert (short.exit_code, "n02085620 (Chihuahua) has 99" in short.stderr) == (2, True)
    taken = cli(
        "subset", "--classes", "Chihuahua,tench", "--per-class", "100", "--allow-short", "--name", "y", "--json"
    )
    assert json.loads(taken.stdout)["train"] == 199


def test_mini_packs_every_photo_of_its_ten_classes(cli: Cli, real_data: Path) -> None:
    names = "n01440764,n02102040,n02979186,n03000684,n03028079,n03394916,n03417042,n03425413,n03445777,n03888257"
    cli("fetch", "--from", real_data / "ilsvrc-mini.zip")
    cli("subset", "--classes", names, "--per-class", "100")
    packed = json.loads(cli("shard", "--json").stdout)

    assert (packed["counts"]["train"], packed["counts"]["val"]) == (1000, 300)
    assert packed["counts"].get("rejected", 0) == 0


def test_full_size_photos_are_shrunk_to_short_side_256(cli: Cli, real_data: Path, tmp_path: Path) -> None:
    """392 full-size photos put into the training tree: the resize path on real material."""
    with (
        zipfile.ZipFile(real_data / "fullsize.zip") as source,
        zipfile.ZipFile(tmp_path / "full.zip", "w") as target,
    ):
        photos = [name for name in source.namelist() if name.endswith(".JPEG")][:60]
        for number, name in enumerate(photos):
            wnid = Path(name).name.split("_")[0]
            target.writestr(f"ILSVRC/Data/CLS-LOC/train/{wnid}/{wnid}_{number}.JPEG", source.read(name))
    cli("fetch", "--from", "full.zip")
    cli("subset")
    packed = json.loads(cli("shard", "--json").stdout)["counts"]

    assert (packed["train"], packed.get("rejected", 0)) == (60, 0)
    sizes = []
    for path in Path("imgprep-data/shards/main").glob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    document = json.load(archive.extractfile(member))  # type: ignore[arg-type]
                    sizes.append(min(document["width"], document["height"]))
    assert max(sizes) == 256
    assert len(sizes) == 60


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_truncated_download_is_refused(cli: Cli, real_data: Path, tmp_path: Path, share: float) -> None:
    content = (real_data / "ilsvrc-nano.zip").read_bytes()
    (tmp_path / "part.zip").write_bytes(content[: int(len(content) * share)])
    result = cli("fetch", "--from", "part.zip")

    assert (result.exit_code, "cut off" in result.stderr) == (3, True)
