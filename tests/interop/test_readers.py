"""Real readers read all samples of both splits: same keys, labels and pictures as the subset and the tars say."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgprep.index import read_index
from imgprep.tables import manifest_records, read_manifest
from imgprep.workspace import Workspace

LONG_NAMES = {"train": "train", "val": "validation"}
NEEDS = "comes with the extra `interop`"

# Readers leave files to the garbage collector, and tell of accelerators that are not there.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:'pin_memory' argument"
)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What a reader left open is closed here, where it is allowed, and not in a later test."""
    yield
    gc.collect()


@dataclass(frozen=True)
class Sample:
    """What a reader must find, whatever it calls it."""

    label: int
    jpeg: bytes


@dataclass(frozen=True)
class Shards:
    """A folder with side files, and what is in it: split -> key -> sample."""

    folder: Path
    samples: dict[str, dict[str, Sample]]

    def tars(self, split: str) -> list[str]:
        return [str(self.folder / shard.filename) for shard in read_index(self.folder).splits[split].shards]


@pytest.fixture
def shards(sharded: Workspace) -> Shards:
    folder = sharded.shards("main")
    labels = {
        r.key: (r.split, r.label)
        for r in manifest_records(read_manifest(sharded.subset("main") / "manifest.csv", made_by=""))
    }
    samples: dict[str, dict[str, Sample]] = {"train": {}, "val": {}}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, extension = member.name.split(".")
                if extension == "jpg":
                    split, label = labels[key]
                    file = archive.extractfile(member)
                    assert file is not None
                    samples[split][key] = Sample(label, file.read())
    assert [len(part) for part in samples.values()] == [30, 16]
    return Shards(folder, samples)


def pixels(jpeg: bytes) -> bytes:
    with Image.open(io.BytesIO(jpeg)) as image:
        return image.convert("RGB").tobytes()


def same_pixels(found: Image.Image, jpeg: bytes) -> bool:
    return found.convert("RGB").tobytes() == pixels(jpeg)


def as_samples(rows: Iterable[dict[str, Any]]) -> dict[str, Sample]:
    """Rows with raw members, as keys and samples; a key that comes twice shows."""
    found = [(row["__key__"], Sample(int(row["cls"]), bytes(row["jpg"]))) for row in rows]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_gnu_tar_lists_every_member_in_order(shards: Shards) -> None:
    for split, samples in shards.samples.items():
        names = []
        for tar in shards.tars(split):
            listing = subprocess.run(["tar", "-tvf", tar], check=True, capture_output=True, text=True)
            assert listing.stderr == ""
            names += [line.split()[-1] for line in listing.stdout.splitlines()]

        assert names == [f"{key}.{extension}" for key in samples for extension in ("jpg", "cls", "json")]


@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset(shards: Shards, split: str) -> None:
    wds = pytest.importorskip("webdataset", reason=NEEDS)

    assert as_samples(wds.WebDataset(shards.tars(split), shardshuffle=False)) == shards.samples[split]


@pytest.mark.filterwarnings("ignore:String specifications for transformations")
@pytest.mark.parametrize("split", ["train", "val"])
def test_wids_reads_any_sample_in_place(shards: Shards, split: str) -> None:
    wids = pytest.importorskip("wids", reason=NEEDS)
    before = set(shards.folder.iterdir())
    dataset = wids.ShardListDataset(
        str(shards.folder / f"{split}.wids.json"), transformations=[], localname=str, keep=True
    )
    rows = [dataset[number] for number in reversed(range(len(dataset)))]
    found = [{"__key__": row["__key__"], "jpg": row[".jpg"].read(), "cls": row[".cls"].read()} for row in rows]

    assert as_samples(found) == shards.samples[split]
    assert set(shards.folder.iterdir()) == before


@pytest.mark.parametrize("split", ["train", "val"])
def test_timm(shards: Shards, split: str) -> None:
    timm = pytest.importorskip("timm.data", reason=NEEDS)
    dataset = timm.create_dataset("wds/", root=str(shards.folder), split=LONG_NAMES[split], is_training=False)
    found = list(dataset)
    wanted = list(shards.samples[split].values())

    assert len(dataset) == len(wanted)
    assert [label for _, label in found] == [sample.label for sample in wanted]
    assert all(same_pixels(image, sample.jpeg) for (image, _), sample in zip(found, wanted, strict=True))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("split", ["train", "val"])
def test_hugging_face_datasets(
    shards: Shards, split: str, streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets", reason=NEEDS)
    dataset = datasets.load_dataset(
        str(shards.folder), split=LONG_NAMES[split], streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    rows = list(dataset.cast_column("jpg", datasets.Image(decode=False)))

    assert as_samples([{**row, "jpg": row["jpg"]["bytes"]} for row in rows]) == shards.samples[split]
    assert dataset.features["cls"].names == ["disc", "ring", "square", "triangle"]
    assert all(row["json"]["key"] == row["__key__"] and row["json"]["label"] == row["cls"] for row in rows)


def test_hugging_face_datasets_where_only_late_samples_have_boxes(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets", reason=NEEDS)
    box = {"wnid": "n90000001", "xmin": 1.5, "ymin": 2, "xmax": 3, "ymax": 4}
    for name in shards.tars("train"):
        content = bytearray(Path(name).read_bytes())
        with tarfile.open(name) as archive:
            places = [(member.offset_data, member.size) for member in archive if member.name.endswith(".json")]
        # Headers stay as they are: blanks fill the room of what is taken out.
        for number, (offset, size) in enumerate(places):
            told = {} if number < 3 else {"boxes": [box] if number == 3 else []}
            content[offset : offset + size] = json.dumps(told, separators=(",", ":")).encode().ljust(size)
        Path(name).write_bytes(content)
    dataset = datasets.load_dataset(str(shards.folder), split="train", cache_dir=str(tmp_path / "cache"))
    boxes = [row["boxes"] for row in dataset["json"]]

    assert len(boxes) == 30
    assert [found for found in boxes if found] == [[box]] * sum(len(found or ()) for found in boxes)
    assert any(boxes)


def test_croissant(shards: Shards, tmp_path: Path) -> None:
    pytest.importorskip("mlcroissant", reason=NEEDS)
    script = (
        "import json, sys, mlcroissant as mlc\n"
        "dataset = mlc.Dataset(jsonld=sys.argv[1])\n"
        "issues = [*dataset.metadata.issues.errors, *dataset.metadata.issues.warnings]\n"
        "records = lambda name: [dict(r) for r in dataset.records(name)]\n"
        "text = lambda value: value.decode() if isinstance(value, bytes) else value\n"
        "found = {s: [[text(r[f'{s}-images/key']), r[f'{s}-images/image'].convert('RGB').tobytes().hex()]\n"
        "             for r in records(f'{s}-images')] for s in ('train', 'val')}\n"
        "labels = {s: {text(r[f'{s}-labels/key']): r[f'{s}-labels/label'] for r in records(f'{s}-labels')}\n"
        "          for s in ('train', 'val')}\n"
        "classes = [r['classes/wnid'] for r in records('classes')]\n"
        "print(json.dumps([issues, found, labels, classes]))\n"
    )
    # What it unpacks lies in a cache by the name of the tar, and where that is, is fixed when it is imported.
    environment = {**os.environ, "CROISSANT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", script, str(shards.folder / "croissant.json")]
    output = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    issues, found, labels, classes = json.loads(output.splitlines()[-1])

    # A date would make equal shards differ; where the pictures are from is known of ImageNet.
    assert [issue for issue in issues if "datePublished" not in issue] == []
    for split, samples in shards.samples.items():
        assert {key: bytes.fromhex(image) for key, image in found[split]} == {
            key: pixels(sample.jpeg) for key, sample in samples.items()
        }
        assert labels[split] == {key: sample.label for key, sample in samples.items()}
    assert classes == [info.wnid for info in read_index(shards.folder).classes]


def test_megatron_energon(shards: Shards) -> None:
    energon = pytest.importorskip("megatron.energon", reason="large and seldom wanted: not in an extra")
    worker = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    for split, samples in shards.samples.items():
        dataset = energon.get_val_dataset(str(shards.folder), split_part=split, batch_size=1, worker_config=worker)
        found = {
            key: (int(label), np.round(image.numpy() * 255).astype(np.uint8).transpose(1, 2, 0).tobytes())
            for batch in energon.get_loader(dataset)
            for key, label, image in zip(batch.__key__, batch.label, batch.image, strict=True)
        }

        assert {key.rpartition("/")[2]: value for key, value in found.items()} == {
            key: (sample.label, pixels(sample.jpeg)) for key, sample in samples.items()
        }


def test_dali(shards: Shards, tmp_path: Path) -> None:
    dali = pytest.importorskip("nvidia.dali", reason="large and seldom wanted: not in an extra")
    wds2idx = pytest.importorskip("wds2idx", reason="comes with DALI")
    for split, samples in shards.samples.items():
        tars = shards.tars(split)
        indexes = [f"{tar.removesuffix('.tar')}.idx" for tar in tars]
        for tar, index in zip(tars, indexes, strict=True):
            with wds2idx.IndexCreator(tar, str(tmp_path / "other.idx"), verbose=False) as creator:
                creator.create_index()
            assert (tmp_path / "other.idx").read_bytes() == Path(index).read_bytes()
        pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
        with pipeline:
            pipeline.set_outputs(
                *dali.fn.readers.webdataset(paths=tars, index_paths=indexes, ext=["jpg", "cls"], name="reader")
            )
        pipeline.build()

        assert pipeline.epoch_size("reader") == len(samples)
        for sample in samples.values():
            jpeg, label = pipeline.run()
            assert bytes(jpeg.at(0)) == sample.jpeg
            assert int(bytes(label.at(0))) == sample.label
