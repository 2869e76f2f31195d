"""The Mackey-Glass series, computed on the spot: forecasting a chaotic signal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .. import RecipeError
from .base import Data

__all__ = ["TEST", "TRAIN", "MackeyGlass", "mackey_glass", "points"]

LYAPUNOV_TIME = 197.0
POINTS = 75  # of one Lyapunov time
TRAIN = TEST = 10 * POINTS


def _rate(x: float, delayed: float) -> float:
    """dx/dt. Products and not a power, which libraries round differently: the series has the same bits everywhere."""
    square = delayed * delayed
    fourth = square * square
    return 0.2 * delayed / (1.0 + fourth * fourth * square) - 0.1 * x


def _between(left: tuple[float, float], right: tuple[float, float], part: float, step: float) -> float:
    """Cubic Hermite interpolation between two points (x, dx/dt) that are ``step`` apart."""
    (a, da), (b, db) = left, right
    rest = 1.0 - part
    line = rest * a + part * b
    return line + part * rest * (rest * (step * da - (b - a)) + part * ((b - a) - step * db))


def mackey_glass(times: Iterable[float], step: float = 0.05, past: float = 0.7206597) -> list[float]:
    """x at ascending ``times`` from 0 on, of dx/dt = 0.2 x(t - 17)/(1 + x(t - 17)^10) - 0.1 x(t).

    Runge-Kutta of order 4 in double, with Hermite interpolation where the delayed value lies between two steps.

    Args:
        step: of the integration; 17 must be a multiple of it.
        past: x before t = 0, which is constant.

    Raises:
        ValueError: a step that does not divide 17.
    """
    lag = round(17 / step)
    if not (step > 0 and abs(lag * step - 17) < 1e-9):
        raise ValueError(f"step must divide the delay of 17, got {step}")
    times = list(times)
    rest = (past, 0.0)  # before t = 0, where the slope jumps
    path = [(past, _rate(past, past))]
    for n in range(int(max(times, default=0.0) / step) + 1):
        late = n - lag
        old = path[late] if late >= 0 else rest
        new = path[late + 1] if late + 1 > 0 else rest
        x, k1 = path[n]
        middle = _between(old, new, 0.5, step)
        k2 = _rate(x + 0.5 * step * k1, middle)
        k3 = _rate(x + 0.5 * step * k2, middle)
        k4 = _rate(x + step * k3, new[0])
        x = x + step * (k1 + 2.0 * (k2 + k3) + k4) / 6.0
        path.append((x, _rate(x, new[0])))
    values = []
    for t in times:
        n = min(int(t / step), len(path) - 2)
        values.append(_between(path[n], path[n + 1], t / step - n, step))
    return values


def points(count: int, first: int = 0) -> Tensor:
    """``count`` points of the series from the ``first`` on, 75 in a Lyapunov time: float64 [count, 1]."""
    times = [LYAPUNOV_TIME / POINTS * (first + k) for k in range(count)]
    return torch.tensor(mackey_glass(times), dtype=torch.float64).unsqueeze(-1)


class MackeyGlass(Data):
    """Foretell the next point of the series: x [window, N, 1], y the same one point later.

    As in NeuroBench, 10 Lyapunov times (750 points) are for training, of which the last is for validation here, and the
    10 after them for testing.

    Args:
        series: NeuroBench's 30 series begin half a Lyapunov time one after another; this is the number of one.
        window: points of a training sample.
    """

    layout = "TNC"
    tree = "nothing: the series is computed"

    def __init__(self, series: int = 0, window: int = 50, **common: Any):
        super().__init__(**common)
        if not 1 <= window < POINTS:
            raise RecipeError(f"data.window must lie in 1..{POINTS - 1}, got {window}")
        if series < 0:
            raise RecipeError(f"data.series must be 0 or more, got {series}")
        self.window = window
        self.points = points(TRAIN + TEST + 1, series * POINTS // 2).float()

    def fetch(self):
        pass

    def open(self, split):
        begin, end, stride = {
            "train": (0, TRAIN - POINTS, 1),
            "val": (TRAIN - POINTS, TRAIN, 5),
            "test": (TRAIN, len(self.points), self.window),
        }[split]
        windows = self.points[begin:end].unfold(0, self.window + 1, stride).transpose(1, 2)
        return TensorDataset(windows, torch.zeros(len(windows)))

    def transform(self, train):
        return torch.nn.Identity()

    def arrange(self, batch):
        x = batch[0].transpose(0, 1)
        return x[:-1], x[1:]
