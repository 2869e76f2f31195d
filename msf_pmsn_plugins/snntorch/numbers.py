"""Thresholds and decays as snnTorch's neurons take them: a number, or several, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_beta", "as_threshold", "one_threshold", "several"]


def several(value: Any) -> Any:
    """``value``; of a list or an array of numbers, which ``Leaky`` takes too, a tensor of them."""
    if isinstance(value, Tensor) or not (isinstance(value, (list, tuple)) or getattr(value, "ndim", False)):
        return value
    numbers = torch.as_tensor(value)
    return numbers if numbers.is_floating_point() else numbers.to(torch.get_default_dtype())


def checked(name: str, value: Any, fits: Callable[[Any], Any], what: str) -> float | Tensor:
    """``value`` as a number, or a tensor that broadcasts against one step; it is not learned."""
    value = several(value)
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(f"{name} is not learned here: ask for learn_{name}=True where it is known")
        # Whether they fit is not asked of a device, which would wait.
        good = value.device.type != "cpu" or (value.numel() > 0 and bool(fits(value).all()))
        value = value if value.numel() > 1 else float(value) if good and value.numel() else math.nan
    else:
        value = float(value)
        good = bool(fits(torch.tensor(value, dtype=torch.float64, device="cpu")))
    if not good:
        raise ValueError(f"{name} must {what}, got {value!r}")
    return value


def as_threshold(value: float | Tensor) -> float | Tensor:
    """A threshold that is positive and finite; raise ValueError otherwise."""
    return checked("threshold", value, lambda t: t.isfinite() & (t > 0), "be positive and finite")


def one_threshold(value: float | Tensor) -> float:
    """A threshold that is one number for the whole layer; raise ValueError otherwise."""
    theta = as_threshold(value)
    if isinstance(theta, Tensor):
        raise ValueError(f"threshold must be one number for the whole layer, got shape {tuple(theta.shape)}")
    return theta


def as_beta(value: float | Tensor) -> float | Tensor:
    """A decay in [0, 1]; raise ValueError otherwise."""
    return checked("beta", value, lambda t: (t >= 0) & (t <= 1), "lie in [0, 1]")
