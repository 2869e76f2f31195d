"""Both neurons on the CPU, compiled by Numba: on first use, per dtype, and kept on disk (see :func:`warm_up`)."""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Sequence

import torch

from ...settings import MSFSettings, PMSNSettings
from ...tensors import MSFGrads, MSFParameters, PMSNGrads, PMSNState, PMSNWeights

__all__ = ["unusable", "warm_up"]


@functools.cache
def unusable() -> str:
    """Why this backend cannot work here although Numba is installed, or ``""``."""
    try:
        from numba.core import config
    except Exception as error:  # what a broken install raises is not for us to list
        return f"numba cannot be imported ({type(error).__name__}: {error})"
    if config.DISABLE_JIT:
        return "numba's compiler is switched off (NUMBA_DISABLE_JIT)"
    try:
        importlib.import_module(f"{__name__}.kernels")
    except Exception as error:
        return f"numba cannot compile here ({type(error).__name__}: {error})"
    return ""


def warm_up(
    neurons: Sequence[str] = ("msf", "pmsn"),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    train: bool = True,
) -> float:
    """Compile, or load from the cache on disk, what the first calls would; return the seconds it took.

    Args:
        neurons: ``"msf"``, ``"pmsn"`` or both.
        dtypes: torch.float32, torch.float64 or both; half precision is computed in float32.
        train: the backward, too.
    """
    start = time.perf_counter()
    for neuron in neurons:
        if neuron not in ("msf", "pmsn"):
            raise ValueError(f"unknown neuron {neuron!r}; known: 'msf', 'pmsn'")
        for dtype in dtypes:
            (_warm_msf if neuron == "msf" else _warm_pmsn)(dtype, train)
    return time.perf_counter() - start


def _warm_msf(dtype: torch.dtype, train: bool) -> None:
    from .msf import msf_backward, msf_forward

    x, v = torch.zeros(1, 1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    settings = MSFSettings("decay", (1.0,), 0.5)
    _, kept, _ = msf_forward(x, v, MSFParameters(), None, settings)
    if train:
        msf_backward(MSFGrads(x, None, None), x, kept, v, MSFParameters(), None, None, settings)


def _warm_pmsn(dtype: torch.dtype, train: bool) -> None:
    from .pmsn import pmsn_backward, pmsn_forward

    z, d = torch.zeros(1, 1, 1, 1, dtype=dtype.to_complex()), torch.zeros(1, dtype=dtype)
    weights, settings = PMSNWeights(z[0, 0], z[0, 0], d), PMSNSettings()
    for steps in (1, 2):  # a single step has kernels of its own
        x = torch.zeros(steps, 1, 1, 1, dtype=dtype)
        state = PMSNState(x[0], z)
        pmsn_forward(x, state, weights, None, settings)
        if train:
            pmsn_backward(PMSNGrads(x, None, None, None, None), x, x, state, weights, None, None, settings)
