"""Numbers of torch as those of NIR, and back, to the last bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def array_of(tensor: Tensor) -> Any:
    """A tensor as an array."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # numpy has no bfloat16


def numbers(dims: int | Sequence[int]) -> Any:
    """One or more integers as an array."""
    return np.atleast_1d(np.asarray(dims, dtype=np.int64))


def wide_type(dtype: torch.dtype) -> Any:
    """The type of numpy in which a state for inputs of ``dtype`` is kept."""
    return np.float64 if dtype == torch.float64 else np.float32


def torch_type(wide: Any) -> torch.dtype:
    """The same in torch."""
    return torch.float64 if wide(0).itemsize == 8 else torch.float32


def time_constant(decay: float, dt: float, wide: Any) -> float:
    """A time constant whose Euler step decays by ``decay`` to the last bit of ``wide``."""
    near = dt / (1.0 - float(decay))
    candidates = (float(f"{near:.12g}"), near, math.nextafter(near, 0), math.nextafter(near, math.inf))
    for kind in (float, wide):  # in double, if it can be
        for candidate in candidates:
            if kind(1.0 - dt / candidate) == kind(decay):
                return candidate
    raise ValueError(
        f"decay {decay!r} is no 1 - dt/tau in {wide.__name__} at dt={dt}: export with standard=False, or from float32"
    )


def pair(value: Any) -> Any:
    """A number or several, as torch takes it."""
    if isinstance(value, str):
        return value
    many = np.atleast_1d(value).tolist()
    return many[0] if len(many) == 1 else tuple(many)


def uniform(name: str, array: Any) -> float:
    """The one value of an array; raise ValueError if there are several."""
    values = np.unique(array)
    if values.size != 1:
        raise ValueError(
            f"{name} differs between neurons, from {values.min():g} to {values.max():g}: one is expected"
        )
    return float(values[0])


def channel_dims(array: Any) -> int | tuple[int, ...]:
    """An axis, or several, as our neurons take them."""
    dims = tuple(int(d) for d in array)
    return dims[0] if len(dims) == 1 else dims


def filled(module: Any, **arrays: Any) -> Any:
    """``module`` with these parameters; None leaves one as it is."""
    for name, array in arrays.items():
        if array is not None:
            setattr(module, name, nn.Parameter(torch.tensor(array)))
    return module
