"""How a detector is trained, validated and tested."""

from __future__ import annotations

import math
import random
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import RecipeError
from ..data.detection import Batch
from ..models.detector import Predictions
from ..module import Task
from .boxes import Detections, decode, detect, probabilities
from .losses import Losses, losses
from .metric import average_precision, predicted, truths
from .pictures import draw
from .schedule import Averaged, Schedule

__all__ = ["Detection"]

PUBLISHED_BATCH = 64
EVERY = 10
"""Updates between two input sizes."""
SHOWN = 8
"""Pictures that a validation and a test leave."""


class Detection(Task):
    """A detector, trained as YOLOX is: SGD with Nesterov's momentum, a rate by iteration, averaged weights.

    Validated, tested and saved are the averages (:class:`Averaged`). A validation, and a test, leaves
    ``detected_val.png``, ``detected_test.png`` beside the checkpoints.

    Args:
        network: maps x to :class:`recipes.models.detector.Predictions`.
        lr: of a batch of 64; other batches have their share of it.
        weight_decay: not of norms and biases.
        neuron_lr, groups: rates of PMSN's parameters: :func:`msf_pmsn_plugins.optim.param_groups`.
        momentum: of SGD.
        warmup_epochs, last_epochs: see :class:`Schedule`. In the last epochs scenes are not mixed, and the L1 loss of
            the boxes is added.
        least: part of the rate that the last epochs have.
        multiscale, scale_step: every ten updates the batch is resized to a height of ``scale_step`` times up to
            ``multiscale`` more or less than its own; 0 leaves it.
        threshold, overlap: of detections, see :func:`recipes.detection.boxes.detect`.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 0.01,
        neuron_lr: float = 1e-3,
        weight_decay: float = 5e-4,
        groups: Literal["smnist", "shd", "imagenet"] = "smnist",
        momentum: float = 0.9,
        warmup_epochs: int = 5,
        last_epochs: int = 15,
        least: float = 0.05,
        multiscale: int = 5,
        scale_step: int = 32,
        threshold: float = 0.01,
        overlap: float = 0.65,
    ):
        super().__init__(
            network,
            optimizer="sgd",
            lr=lr,
            neuron_lr=neuron_lr,
            weight_decay=weight_decay,
            groups=groups,
            momentum=momentum,
            decay_all=False,
            warmup_epochs=warmup_epochs,
        )
        if min(last_epochs, multiscale) < 0 or scale_step < 1 or not 0 <= least <= 1:
            raise RecipeError(
                "model.last_epochs and model.multiscale must be 0 or more, model.scale_step 1 or more and model.least "
                f"in [0, 1], got {last_epochs}, {multiscale}, {scale_step} and {least}"
            )
        if not (0 <= threshold <= 1 and 0 <= overlap <= 1):
            raise RecipeError(
                f"model.threshold and model.overlap must lie in [0, 1], got {threshold} and {overlap}"
            )
        self.last_epochs = last_epochs
        self.least = least
        self.multiscale = multiscale
        self.scale_step = scale_step
        self.threshold = threshold
        self.overlap = overlap
        for stage in ("val", "test"):
            self.metrics[f"{stage}_map"] = average_precision()

    @property
    def monitor(self):
        return "val/map", "max"

    def configure_callbacks(self):
        return [Averaged()]

    # -- optimisation

    @property
    def rate(self):
        return self.lr * self.trainer.datamodule.batch_size / PUBLISHED_BATCH

    def configure_optimizers(self):
        groups = self.parameter_groups()
        optimizer = torch.optim.SGD(groups, self.rate, momentum=self.momentum, nesterov=self.momentum > 0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.shapes(groups))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def shapes(self, groups):
        trainer = self.trainer
        trainer.fit_loop.setup_data()  # the number of batches
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        schedule = Schedule(max(1, steps), self.epochs(), self.warmup_epochs, self.last_epochs, self.least)
        return [partial(schedule) for _ in groups]

    def scheduled(self):
        return self.trainer.global_step

    def epochs(self):
        epochs = super().epochs()
        if epochs is None:
            raise RecipeError("the schedule of a detector needs a number of epochs; give trainer.max_epochs")
        return epochs

    @property
    def ending(self) -> int:
        """The first of the last epochs."""
        return max(0, self.epochs() - self.last_epochs)

    def on_fit_start(self):
        self.trainer.datamodule.samples["train"].plain_from = self.ending
        super().on_fit_start()

    # -- steps

    def setup(self, stage: str) -> None:
        pass  # the metrics are there

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = self.resized(self.trainer.datamodule.arrange(batch))
        found = self.losses(self(batch.x), batch.labels, l1=self.current_epoch >= self.ending)
        self.metrics["train_loss"].update(found.total.detach(), weight=len(batch.labels))
        shown = {"loss_step": found.total, "boxes": found.boxes, "objectness": found.objectness}
        shown |= {"classes": found.classes, "l1": found.l1, "positives": found.positives}
        self.log_dict(
            {f"train/{name}": torch.as_tensor(value).detach().float() for name, value in shown.items()},
            batch_size=len(batch.labels),
        )
        return found.total

    def resized(self, batch: Batch) -> Batch:
        """The batch at the size of this update; every process draws the same one, whatever was stopped in between."""
        if not self.multiscale:
            return batch
        data = self.trainer.datamodule
        own = data.augmentation
        times = round(own.height / self.scale_step)
        draw = random.Random(f"{data.seed} {self.trainer.global_step // EVERY}")
        k = draw.randint(max(1, times - self.multiscale), times + self.multiscale)
        size = self.scale_step * k, self.scale_step * int(k * own.width / own.height)
        x = F.interpolate(batch.x.flatten(0, -4), size, mode="bilinear", align_corners=False)
        labels = batch.labels.clone()
        labels[..., 1::2] *= size[1] / own.width
        labels[..., 2::2] *= size[0] / own.height
        return batch._replace(x=x.unflatten(0, batch.x.shape[:-3]), labels=labels)

    def losses(self, predictions: Predictions, labels: Tensor, l1: bool) -> Losses:
        raw = in_float(predictions.raw)
        decoded = decode(raw, predictions.anchors)
        return losses(decoded, predictions.anchors, labels, raw[..., :4] if l1 else None)

    def detections(self, predictions: Predictions) -> list[Detections]:
        """What is found in each image, in pixels of the network's input."""
        decoded = probabilities(decode(in_float(predictions.raw), predictions.anchors))
        return detect(decoded, self.threshold, self.overlap)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.judge("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.judge("test", batch, batch_idx)

    def judge(self, stage: str, batch: Any, batch_idx: int) -> None:
        data = self.trainer.datamodule
        batch = data.arrange(batch)
        predictions = self(batch.x)
        loss = self.losses(predictions, batch.labels, l1=False).total
        self.metrics[f"{stage}_loss"].update(loss, weight=len(batch.labels))
        found = self.detections(predictions)
        if batch_idx == 0 and self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            path = Path(self.trainer.default_root_dir) / f"detected_{stage}.png"
            draw(path, data, batch, found[:SHOWN])
        ratios = batch.ratio.tolist()
        scaled = [one.scaled(1 / ratio) for one, ratio in zip(found, ratios, strict=True)]
        self.metrics[f"{stage}_map"].update([self.counted(one) for one in scaled], truths(batch.truth))

    def counted(self, found: Detections) -> dict[str, Tensor]:
        """What torchmetrics takes; boxes are cut, and some count nowhere, as those of the labels."""
        keep = self.trainer.datamodule.keep
        if keep is None:
            return predicted(found)
        corners = keep.cut(found.boxes.cpu().numpy())
        large = keep.large(*(corners[:, 2:] - corners[:, :2]).T)
        boxes, large = (torch.from_numpy(array).to(found.boxes.device) for array in (corners, large))
        return {name: values[large] for name, values in {**predicted(found), "boxes": boxes}.items()}

    def _summarise(self, stage: str) -> None:
        if stage != "train":
            metric = self.metrics[f"{stage}_map"]
            result = metric.compute()
            for name in ("map", "map_50", "map_75"):
                self.log(f"{stage}/{name}", result[name].float(), prog_bar=name == "map")
            metric.reset()
        metric = self.metrics[f"{stage}_loss"]
        self.log(f"{stage}/loss", metric.compute(), prog_bar=True)
        metric.reset()

    # -- before the first step

    def check(self) -> None:
        data, name = self.trainer.datamodule, type(self.network).__name__
        if str(self.trainer.precision) in ("16-true", "bf16-true"):
            raise RecipeError(
                f"boxes in pixels need more digits than trainer.precision {self.trainer.precision} has; give 16-mixed "
                "or bf16-mixed"
            )
        if self.multiscale and data.augmentation.height < self.scale_step:
            raise RecipeError(
                f"model.scale_step {self.scale_step} is more than data.height {data.augmentation.height}; lower it, or "
                "give model.multiscale 0"
            )
        predictions = self.tried(self.sample().x)
        classes = predictions.raw.shape[-1] - 5
        if classes != data.classes:
            raise RecipeError(
                f"{name} has {classes} classes, {type(data).__name__} has {data.classes}: make model.network.classes "
                "and the data agree"
            )


def in_float(raw: Tensor) -> Tensor:
    """``raw`` in float32 at least: sizes are exponentials."""
    return raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw
