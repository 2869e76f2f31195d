"""How rates and averages run over the updates of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

__all__ = ["Averaged", "Schedule", "decay"]

DECAY, RAMP = 0.9998, 2000


@dataclass(frozen=True)
class Schedule:
    """The factor on the rate at an iteration: squared from 0 in the ``warmup`` epochs, then a cosine to ``least``, at
    which it stays for the ``last`` epochs. Where these are all epochs, it is there right after the warm-up.
    """

    per_epoch: int
    epochs: int
    warmup: int
    last: int
    least: float = 0.05

    def __call__(self, iteration: int) -> float:
        warm, end = self.warmup * self.per_epoch, (self.epochs - self.last) * self.per_epoch
        if iteration <= warm and warm:
            return (iteration / warm) ** 2
        if iteration >= end:
            return self.least
        wave = 0.5 * (1 + math.cos(math.pi * (iteration - warm) / (end - warm)))
        return self.least + (1 - self.least) * wave


def decay(update: int) -> float:
    """How much of the average an update (1, 2, ..) leaves; small at first."""
    return DECAY * (1 - math.exp(-update / RAMP))


def averaged(average: Tensor, new: Tensor, updates: Tensor) -> Tensor:
    """The new average of one tensor, after ``updates`` earlier ones; integers are those of ``new``.

    torch takes the first update as it is; the published average keeps a two-thousandth of the initial weights in it.
    """
    if not average.is_floating_point():
        return new
    return average + (1 - decay(int(updates) + 1)) * (new - average)


class Averaged(WeightAveraging):
    """Keep an exponential moving average of weights and statistics, which is validated, tested and saved.

    Checkpoints hold both. Lightning's own callback mixes them up in one that is written in the middle of a validation.
    """

    swapped = False

    def __init__(self):
        super().__init__(use_buffers=True, avg_fn=averaged)

    def _swap_models(self, pl_module: Any) -> None:
        super()._swap_models(pl_module)
        self.swapped = not self.swapped

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.swapped and "current_model_state" in checkpoint:
            checkpoint["state_dict"], checkpoint["current_model_state"] = (
                checkpoint["current_model_state"],
                checkpoint["state_dict"],
            )

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None:  # else a test, which wants the averages
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
