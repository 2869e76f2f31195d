"""Sine waves, made on the spot: the reconstruction task of the MSF paper."""

from __future__ import annotations

import math
import random
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .. import RecipeError
from .base import Data

__all__ = ["Sines"]


def sines(amplitudes: list[float], periods: list[int], phases: list[float], length: int = 300) -> Tensor:
    """A sin(2 pi n / P + phi) for every combination, computed in float64: float32 [signals, length, 1]."""
    a, p, phi = np.array(list(product(amplitudes, periods, phases))).T[:, :, None]
    return torch.from_numpy(
        (a * np.sin(2 * np.pi * np.arange(length) / p + phi)).astype(np.float32)
    ).unsqueeze(-1)


class Sines(Data):
    """Reconstruct sines: x and y are the same [300, N, 1].

    The 22,800 training and 320 test signals are the published ones. The published code chose its epoch on the test
    signals; here 320 further signals do that, with amplitudes and phases that occur in neither set.

    Args:
        amplitudes: of the 50 training amplitudes, so many are used.
    """

    layout = "TNC"
    tree = "nothing: the signals are computed"

    def __init__(self, amplitudes: int = 50, **common: Any):
        super().__init__(**common)
        if not 1 <= amplitudes <= 50:
            raise RecipeError(f"data.amplitudes must be 1 to 50, got {amplitudes}")
        self.amplitudes = amplitudes

    def fetch(self):
        pass

    def open(self, split):
        draw = random.Random(42)
        train = [draw.uniform(1, 4) for _ in range(50)]
        phases = [draw.uniform(0, 2 * math.pi) for _ in range(8)]
        test = [draw.uniform(1, 4) for _ in range(10)]
        if split == "train":
            signals = sines(train[: self.amplitudes], list(range(8, 65)), phases)
        elif split == "test":
            signals = sines(test, list(range(8, 65, 8)), [k * math.pi / 2 for k in (1, 2, 3, 4)])
        else:
            draw = random.Random(43)
            amplitudes = [draw.uniform(1, 4) for _ in range(10)]
            signals = sines(
                amplitudes, list(range(8, 65, 8)), [draw.uniform(0, 2 * math.pi) for _ in range(4)]
            )
        return TensorDataset(signals, torch.zeros(len(signals)))

    def transform(self, train):
        return torch.nn.Identity()

    def arrange(self, batch):
        x = batch[0].transpose(0, 1)
        return x, x
