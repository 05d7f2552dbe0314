"""The training loop.

A run is a pure function of its configuration and its shards: order and draws come from counters
(:mod:`training.order`), and the model's own randomness is seeded anew for every step. So a checkpoint needs no
generator states, and a run that was stopped or killed goes on to the same weights as one that was not, to the bit on a
CPU.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from imgprep.errors import ImgprepError
from training import checkpoint as checkpoints
from training.atomic import publish
from training.augment import NUM_DRAWS, mix, training_batch
from training.devices import training_precision
from training.evaluate import Counts, count_correct, measured
from training.figures import draw_curves
from training.metrics import MetricsLog, count_top_k, keep_until, read_metrics
from training.models import build_model, channels_last
from training.optim import WeightAverage, build_optimizer, learning_rate, set_learning_rate
from training.order import permutation, split_steps, step_seed, uniforms
from training.runs import Run, resume_command, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from imgprep.index import ShardIndex
    from training.config import TrainConfig
    from training.console import Console
    from training.loader import Batch, PixelSource
    from training.signals import StopRequest

CURVES_INTERVAL = 30.0
"""While a run goes on its curves are drawn at most this often, in seconds."""


@dataclass(kw_only=True)
class Position:
    """How far a run is.

    Attributes:
        epoch: In progress, from 0.
        step: Steps done in it.
        global_step: Steps done in all.
        best_correct: Most correct validation samples so far; -1 before the first validation.
        seconds: Time spent training before this process took over.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    best_correct: int = -1
    seconds: float = 0.0


class Trainer:
    """One run in progress: :meth:`fit` does the rest of it, from its checkpoint if it has one.

    Args:
        config: What to do.
        run: Claimed and locked.
        index: The shards' index.
        train_source: Pixels of the training split.
        val_source: Pixels of the validation split.
        device: Where to compute.
        console: Where progress goes.
        stop: Asked after every step.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        index: ShardIndex,
        *,
        train_source: PixelSource,
        val_source: PixelSource,
        device: torch.device,
        console: Console,
        stop: StopRequest,
    ) -> None:
        self.config, self.run, self.index, self.device = config, run, index, device
        self.train_source, self.val_source, self.console, self.stop = train_source, val_source, console, stop
        self.num_train = index.splits[config.data.train_split].num_samples
        self.steps_per_epoch = len(split_steps(permutation(config.seed, 0, self.num_train), config.data.batch_size))

        torch.manual_seed(config.seed)
        self.model = self.new_model()
        self.optimizer = build_optimizer(self.model, config.optim)
        self.average = WeightAverage(self.model, config.optim.ema) if config.optim.ema else None
        self.evaluated = self.model
        if self.average is not None:
            self.evaluated = self.new_model()

        self.position = Position()
        # Sums of loss, top-1, top-5 and samples, kept on the device: reading them would wait for it.
        self.epoch_sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.window_sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.started = self.saved_at = self.window_at = time.perf_counter()
        self.drawn_at = 0.0
        self.window_waited = 0.0

    def new_model(self) -> nn.Module:
        """A network with the index's number of classes, on the device."""
        return channels_last(build_model(self.config.model, len(self.index.classes)).to(self.device))

    def fit(self) -> dict[str, Any]:
        """Train what is left, then write ``finished.json`` and return its content."""
        self.restore()
        log = MetricsLog(self.run.metrics)
        counts = None
        try:
            while self.position.epoch < self.config.epochs:
                self.train_epoch(log)
                counts = self.close_epoch(log)
        finally:
            log.close()
        return self.finish(counts or self.validate())

    def train_epoch(self, log: MetricsLog) -> None:
        """Do the steps of the present epoch that are not done yet."""
        config, position = self.config, self.position
        steps = split_steps(permutation(config.seed, position.epoch, self.num_train), config.data.batch_size)
        self.model.train()
        self.epoch_at, self.epoch_waited = time.perf_counter(), self.train_source.wait_seconds
        self.window_at, self.window_waited = self.epoch_at, self.epoch_waited
        name = f"epoch {position.epoch + 1}/{config.epochs}"
        with self.console.task(name, self.num_train, "images") as advance:
            advance(sum(len(samples) for samples in steps[: position.step]))
            for batch in self.train_source.batches(steps[position.step :]):
                self.train_step(batch)
                advance(len(batch.samples))
                if position.step % config.log_every == 0:
                    self.log_window(log)
                if self.stop.made:
                    self.leave()
                if time.perf_counter() - self.saved_at > config.checkpoint_seconds:
                    self.save("last")

    def train_step(self, batch: Batch) -> None:
        """Augment, forward, backward, move the weights, count."""
        config, position = self.config, self.position
        # Dropout draws from torch's generator: seeding it here makes every step a function of its number.
        torch.manual_seed(step_seed(config.seed, position.epoch, position.step))
        set_learning_rate(
            self.optimizer,
            learning_rate(config.optim, position.global_step, self.steps_per_epoch * config.epochs),
        )
        draws = (
            torch.from_numpy(uniforms(config.seed, position.epoch, batch.samples, NUM_DRAWS)).float().to(self.device)
        )
        strong = position.epoch < config.epochs - config.augment.clean_epochs
        images = training_batch(batch.pixels, draws, config.augment, size=config.augment.crop_size, erase=strong)
        other_labels, other_share = batch.labels, torch.zeros(len(batch.labels), device=self.device)
        if strong and (config.augment.mixup or config.augment.cutmix):
            images, other_labels, other_share = mix(images, batch.labels, draws[:, 13:], config.augment)

        with training_precision(self.device):
            logits = self.model(images.contiguous(memory_format=torch.channels_last)).float()
            losses = (1 - other_share) * self.cross_entropy(logits, batch.labels)
            losses = losses + other_share * self.cross_entropy(logits, other_labels)
            loss = losses.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        self.optimizer.step()

        position.step += 1
        position.global_step += 1
        if self.average is not None:
            self.average.update(self.model, position.global_step)
        self.tally(logits.detach(), losses.detach(), batch.labels)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss per sample, with the configured smoothing."""
        return functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.config.optim.label_smoothing
        )

    def tally(self, logits: Tensor, losses: Tensor, labels: Tensor) -> None:
        """Add a batch to the sums; a mixed sample counts as right when its own class wins."""
        sums = [losses.double().sum(), count_top_k(logits, labels, 1), count_top_k(logits, labels, 5)]
        added = torch.stack([*sums, torch.full_like(sums[1], len(labels))])
        self.epoch_sums += added
        self.window_sums += added

    def log_window(self, log: MetricsLog) -> None:
        """Write a line about the steps since the last one."""
        line = self.describe("step", self.window_sums, since=self.window_at, waited=self.window_waited)
        log.append(line)
        self.window_sums.zero_()
        self.window_at, self.window_waited = time.perf_counter(), self.train_source.wait_seconds

    def describe(self, kind: str, sums: Tensor, *, since: float, waited: float) -> dict[str, Any]:
        """Numbers about training for ``metrics.jsonl``.

        Raises:
            ImgprepError: The loss is not finite.
        """
        loss, top1, top5, samples = sums.tolist()
        self.require_finite("loss", loss)
        seconds = max(time.perf_counter() - since, 1e-9)
        return {
            "kind": kind,
            "epoch": self.position.epoch + 1,
            "step": self.position.step,
            "global_step": self.position.global_step,
            "loss": loss / samples,
            "top1": top1 / samples,
            "top5": top5 / samples,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": samples / seconds,
            "input_wait_share": (self.train_source.wait_seconds - waited) / seconds,
            "seconds": self.seconds(),
        }

    def close_epoch(self, log: MetricsLog) -> Counts:
        """Validate, write the epoch's line and its checkpoints, and step on to the next epoch."""
        config, position = self.config, self.position
        line = self.describe("epoch", self.epoch_sums, since=self.epoch_at, waited=self.epoch_waited)
        counts = self.validate()
        line |= {
            "val_loss": counts.loss,
            "val_top1": counts.top1 / counts.total,
            "val_top5": counts.top5 / counts.total,
            "val_correct": counts.top1,
            "val_samples": counts.total,
        }
        # The line comes before the checkpoint: resuming drops lines that are ahead of it, but could not make up one.
        log.append(line)
        self.console.say(
            f"epoch {position.epoch + 1}/{config.epochs}: loss {line['loss']:.3f}, validation loss {counts.loss:.3f}, "
            f"top-1 {100 * line['val_top1']:.1f} %, top-5 {100 * line['val_top5']:.1f} %; "
            f"{line['images_per_second']:,.0f} images/s, {100 * line['input_wait_share']:.1f} % waiting for input"
        )
        is_best = counts.top1 > position.best_correct
        position.best_correct = max(counts.top1, position.best_correct)
        position.epoch, position.step = position.epoch + 1, 0
        self.epoch_sums.zero_()
        self.window_sums.zero_()
        if is_best:
            self.save("best", "last")
        else:
            self.save("last")
        if time.perf_counter() - self.drawn_at > CURVES_INTERVAL:
            self.draw()
        if self.stop.made and position.epoch < config.epochs:
            self.leave()
        return counts

    def require_finite(self, name: str, loss: float) -> None:
        """Refuse to go on, or to call a run finished, with weights that have diverged."""
        if not math.isfinite(loss):
            raise ImgprepError(
                f"the {name} is not a finite number in epoch {min(self.position.epoch + 1, self.config.epochs)}",
                "try a lower --lr; the last checkpoint is from before",
            )

    def validate(self) -> Counts:
        """Count right answers on the validation split, with the averaged weights when there are any.

        Raises:
            ImgprepError: The loss is not finite.
        """
        if self.average is not None:
            self.evaluated.load_state_dict(self.average.values)
        counts = count_correct(
            self.evaluated,
            self.val_source,
            num_samples=self.index.splits[self.config.data.val_split].num_samples,
            num_classes=len(self.index.classes),
            eval_size=self.config.augment.eval_size,
            batch_size=self.config.data.batch_size,
        )
        self.require_finite("validation loss", counts.loss)
        return counts

    def seconds(self) -> float:
        """Time spent on this run so far, by all processes that worked on it."""
        return self.position.seconds + time.perf_counter() - self.started

    def save(self, *which: str) -> str:
        """Write the present state as one or more checkpoints; returns the SHA-256 of their bytes."""
        position = self.position
        content = checkpoints.to_bytes(
            checkpoints.Checkpoint(
                config=self.config,
                dataset_digest=self.index.dataset_digest,
                epoch=position.epoch,
                step=position.step,
                global_step=position.global_step,
                model=self.model.state_dict(),
                average=None if self.average is None else self.average.values,
                optimizer=self.optimizer.state_dict(),
                tallies={"epoch": self.epoch_sums, "window": self.window_sums},
                best_correct=position.best_correct,
                seconds=self.seconds(),
            )
        )
        for name in which:
            publish(self.run.checkpoint(name), content)
        self.saved_at = time.perf_counter()
        return checkpoints.sha256_of(content)

    def restore(self) -> None:
        """Go to where the last checkpoint was saved, if there is one, and drop the metrics after it.

        Raises:
            OutputExistsError: The checkpoint belongs to another configuration or other shards.
            DamagedError: It cannot be read.
        """
        path = self.run.checkpoint("last")
        if not path.exists():
            keep_until(self.run.metrics, global_step=0, epochs=0)
            return
        state, _ = checkpoints.load(path)
        state.require_same(self.config, self.index.dataset_digest, where=str(path))
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if self.average is not None and state.average is not None:
            for name, value in state.average.items():
                self.average.values[name].copy_(value)
        self.epoch_sums.copy_(state.tallies["epoch"])
        self.window_sums.copy_(state.tallies["window"])
        self.position = Position(
            epoch=state.epoch,
            step=state.step,
            global_step=state.global_step,
            best_correct=state.best_correct,
            seconds=state.seconds,
        )
        keep_until(self.run.metrics, global_step=state.global_step, epochs=state.epoch)
        self.console.say(f"going on with run {self.run.name} at epoch {state.epoch + 1} step {state.step}")

    def leave(self) -> None:
        """Save, say how to go on, and stop.

        Raises:
            KeyboardInterrupt: Always.
        """
        self.save("last")
        self.draw()
        self.console.say(
            f"stopped at epoch {self.position.epoch + 1} step {self.position.step}; "
            f"go on with: {resume_command(self.run)}"
        )
        raise KeyboardInterrupt

    def draw(self) -> None:
        """Draw the curves of what is measured so far."""
        draw_curves(read_metrics(self.run.metrics), self.run.curves, title=f"run {self.run.name}")
        self.drawn_at = time.perf_counter()

    def finish(self, counts: Counts) -> dict[str, Any]:
        """Draw the curves and write ``finished.json``."""
        self.draw()
        _, sha256 = checkpoints.load(self.run.checkpoint("last"))
        document = {
            "run": self.run.name,
            "recipe": self.config.recipe,
            "epochs": self.config.epochs,
            "seed": self.config.seed,
            "top1": measured(counts.top1, counts.total, k=1),
            "top5": measured(counts.top5, counts.total, k=min(5, len(self.index.classes))),
            "loss": counts.loss,
            "best_correct": self.position.best_correct,
            "seconds": self.seconds(),
            "checkpoint_sha256": sha256,
            "dataset_digest": self.index.dataset_digest,
        }
        write_json(self.run.finished, document)
        return document
