from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imgprep.errors import DamagedError, MissingInputError, OutputExistsError
from training import checkpoint as checkpoints
from training.atomic import publish
from training.checkpoint import Checkpoint
from training.recipes import tiny


def some_checkpoint() -> Checkpoint:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return Checkpoint(
        config=tiny(),
        dataset_digest="d" * 64,
        epoch=3,
        step=4,
        global_step=64,
        model=model.state_dict(),
        average=None,
        optimizer=optimizer.state_dict(),
        tallies={"epoch": torch.arange(4.0)},
        best_correct=17,
        seconds=1.5,
    )


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    original = some_checkpoint()
    path = tmp_path / "last.pt"
    content = checkpoints.to_bytes(original)
    publish(path, content)
    loaded, sha256 = checkpoints.load(path)
    assert sha256 == checkpoints.sha256_of(content)
    assert loaded.config == original.config
    assert (loaded.epoch, loaded.step, loaded.global_step, loaded.best_correct) == (3, 4, 64, 17)
    assert all(torch.equal(loaded.model[name], value) for name, value in original.model.items())
    assert loaded.optimizer["state"][0]["step"] == original.optimizer["state"][0]["step"]
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_what_is_saved_is_a_copy() -> None:
    original = some_checkpoint()
    content = checkpoints.to_bytes(original)
    before = {name: value.clone() for name, value in original.model.items()}
    for value in original.model.values():
        value.add_(1)
    document = torch.load(io.BytesIO(content), weights_only=True)
    assert all(torch.equal(document["model"][name], value) for name, value in before.items())


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (Path("exploded"), "x")


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (pickle.dumps(Bomb()), b"", b"garbage", checkpoints.to_bytes(some_checkpoint())[:-500]):
        path = tmp_path / "last.pt"
        path.write_bytes(content)
        with pytest.raises(DamagedError, match="not a readable checkpoint"):
            checkpoints.load(path)
    torch.save({"format": "imgprep-checkpoint", "version": 1, "model": Bomb()}, tmp_path / "last.pt")
    with pytest.raises(DamagedError, match="not a readable checkpoint"):
        checkpoints.load(tmp_path / "last.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"format": "other"}, "not an imgprep-checkpoint file"),
        ({"version": 2}, "has version 2, this imgprep reads 1"),
        ({"config": "{}"}, "is incomplete"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, edit: dict[str, object], message: str) -> None:
    path = tmp_path / "last.pt"
    document = torch.load(io.BytesIO(checkpoints.to_bytes(some_checkpoint())), weights_only=True)
    torch.save(document | edit, path)
    with pytest.raises(DamagedError, match=message):
        checkpoints.load(path)


def test_a_missing_checkpoint_is_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"last\.pt does not exist"):
        checkpoints.load(tmp_path / "last.pt")


def test_another_run_s_checkpoint_is_refused_with_the_difference() -> None:
    checkpoint = some_checkpoint()
    checkpoint.require_same(tiny(), "d" * 64, where="last.pt")
    with pytest.raises(OutputExistsError, match=r"last.pt was made otherwise \(seed: 0 is not 1\)"):
        checkpoint.require_same(replace(tiny(), seed=1), "d" * 64, where="last.pt")
    with pytest.raises(OutputExistsError, match="dataset digest: dddddddddddd is not eeeeeeeeeeee"):
        checkpoint.require_same(tiny(), "e" * 64, where="last.pt")
