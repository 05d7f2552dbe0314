from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from imgprep.index import SAMPLE_FIELDS, ClassInfo, ShardIndex, ShardInfo, SplitInfo, read_index
from training.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from training.console import Console
from training.recipes import tiny

COLOURS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 40], [200, 40, 200], [40, 200, 200]])


def make_photo(label: int, number: int, height: int, width: int) -> bytes:
    """A JPEG whose colour tells its class."""
    noise = np.random.default_rng(1000 * label + number).integers(-30, 31, (height, width, 3))
    pixels = np.clip(COLOURS[label] + noise, 0, 255).astype(np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB")


def write_shards(folder: Path, *, splits: dict[str, int], num_classes: int = 6, shards: int = 2, seed: int = 0) -> Path:
    """Write tars, sample tables and index.json with nothing but the contract; returns the index."""
    folder.mkdir(parents=True)
    infos = {}
    for split, total in splits.items():
        rows, shard_infos = [], []
        for shard in range(shards):
            numbers = range(shard * total // shards, (shard + 1) * total // shards)
            path = folder / f"imgprep-{split}-{shard:06d}.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for number in numbers:
                    label = number % num_classes
                    jpeg = make_photo(label, number + 10_000 * seed, 20 + number % 7, 16 + number % 5)
                    member = tarfile.TarInfo(f"{split}{number:04d}.jpg")
                    member.size = len(jpeg)
                    rows.append((shard, tar.offset + tarfile.BLOCKSIZE, len(jpeg), label, zlib.crc32(jpeg)))
                    tar.addfile(member, io.BytesIO(jpeg))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            shard_infos.append(
                ShardInfo(filename=path.name, num_samples=len(numbers), num_bytes=path.stat().st_size, sha256=digest)
            )
        table = folder / f"{split}.samples.npy"
        np.save(table, np.array(rows, dtype=list(SAMPLE_FIELDS)))
        infos[split] = SplitInfo(
            num_samples=total,
            samples_filename=table.name,
            samples_sha256=hashlib.sha256(table.read_bytes()).hexdigest(),
            shards=tuple(shard_infos),
        )
    classes = tuple(ClassInfo(label=k, wnid=f"n{k:08d}", name=f"colour {k}, shade {k}") for k in range(num_classes))
    path = folder / "index.json"
    path.write_text(ShardIndex(classes=classes, splits=infos).to_json(), encoding="utf-8")
    return path


@pytest.fixture
def photo_of() -> Callable[[int], bytes]:
    """The JPEG of a sample of the fixture's shards, by its number."""
    return lambda sample: make_photo(sample % 6, sample, 20 + sample % 7, 16 + sample % 5)


@pytest.fixture
def shard_writer() -> Callable[..., Path]:
    return write_shards


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace whose shards hold 40 training and 17 validation samples of 6 classes."""
    write_shards(tmp_path / "shards" / "main", splits={"train": 40, "val": 17})
    return tmp_path


@pytest.fixture
def index_path(workspace: Path) -> Path:
    return workspace / "shards" / "main" / "index.json"


@pytest.fixture
def index(index_path: Path) -> ShardIndex:
    return read_index(index_path)


@pytest.fixture
def small_config() -> TrainConfig:
    """Everything the tiny recipe does, on pictures of 16 pixels."""
    return replace(
        tiny(),
        epochs=2,
        log_every=3,
        data=DataConfig(image_size=16, batch_size=8),
        augment=AugmentConfig(crop_size=16, eval_size=16, mixup=0.4, cutmix=0.3, erase=0.3, jitter=0.2, clean_epochs=1),
        model=ModelConfig(architecture="alexnet-64", width=0.125, dropout=0.3),
        optim=OptimConfig(optimizer="adamw", lr=2e-3, weight_decay=0.05, ema=0.9),
    )


@pytest.fixture
def console() -> Console:
    return Console(io.StringIO(), terminal=False)
