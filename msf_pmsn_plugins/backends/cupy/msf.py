"""MSF on CUDA: which kernel, with which macros and geometry, on which memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...charges import CHARGES
from ...settings import MSFSettings
from ...tensors import MSFGrads, MSFParameters
from . import launch
from .arguments import (
    ELEMENTS,
    SLOPES,
    check,
    element,
    empty,
    packed,
    parts,
    plain,
    real,
    state_dtype,
    steps_of,
)
from .compile import Kernel, Macros, variant

THREADS = 256  # in a block
LEVELS_BY_VALUE = 256  # thresholds that fit a kernel's parameters; more lie in memory
WIDE = 16  # bytes of the widest access
KEEPS = {"none": "KEEP_NONE", "membrane": "KEEP_MEMBRANE", "code": "KEEP_CODE"}
HALF = (torch.float16, torch.bfloat16)


def msf_forward(
    x_seq: Tensor, v: Tensor, parameters: MSFParameters, lengths: Tensor | None, settings: MSFSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, what ``settings.keep`` names and the final state.

    Half-precision ``x_seq`` with a float32 ``v`` gives half-precision counts; membranes stay float32.
    """
    check(x_seq, state_dtype(x_seq.dtype), v=v, lengths=lengths, rate=parameters.rate)
    keep = settings.keep
    s_seq = empty(x_seq.shape, x_seq)
    kept = empty(0 if keep == "none" else x_seq.shape, x_seq, torch.uint8 if keep == "code" else v.dtype)
    v_last = v.clone(memory_format=torch.contiguous_format)
    if x_seq.numel() == 0:
        return s_seq, kept, v_last
    v, lengths = plain(v), plain(lengths)
    x = steps_of(x_seq, x_seq.dtype)
    rates = _rates(parameters.rate, settings, v)
    vec = _lanes_per_thread(v.numel(), s_seq, [x.distance], [x.seq, v, s_seq, kept, v_last])
    kernel = Kernel("msf_forward.cu", "msf_forward", _macros(x_seq.dtype, vec, settings, lengths))
    tensors = [x.seq, v, lengths, rates.tensor, s_seq, kept, v_last]
    counts = [len(x_seq), v.numel(), _sample(v), x.distance, np.int32(rates.step)]
    constants = [rates.constant, settings.input_scale, settings.v_reset, settings.width]
    _launch(kernel, v, [*tensors, *counts, *constants, _thresholds(settings.thresholds, v)])
    return s_seq, kept, v_last


def msf_backward(
    grads: MSFGrads,
    x_seq: Tensor,
    kept: Tensor,
    v0: Tensor,
    parameters: MSFParameters,
    lengths: Tensor | None,
    settings: MSFSettings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to ``x_seq``, ``v0`` and the rate (a 0-d zero where it is a constant).

    ``x_seq`` is read for a learned rate only; otherwise the gradient takes the dtype of ``v0``, or of a ``x_seq`` in
    half precision.
    """
    check(v0, v0.dtype, gm_seq=grads.m, gv=grads.v, lengths=lengths, rate=parameters.rate)
    check(v0, gs_seq=grads.s, x_seq=x_seq, kept=kept)
    learned = parameters.rate is not None
    if learned and CHARGES[settings.charge].rate_grad is None:
        raise ValueError(f"charge {settings.charge!r} has no learned rate")
    io_dtype = x_seq.dtype if x_seq.dtype in HALF else v0.dtype
    gx_seq, gv0 = empty(kept.shape, kept, io_dtype), empty(v0.shape, v0)
    grate = empty(v0.shape if learned else 0, v0)
    if kept.numel() == 0:
        gv0 = torch.zeros_like(gv0) if grads.v is None else gv0.copy_(grads.v)
        return gx_seq, gv0, v0.new_zeros(parameters.rate.shape if parameters.rate is not None else ())
    # A missing gradient is one step of zeros, read again and again.
    gs = steps_of(v0.new_zeros(v0.shape).expand(kept.shape) if grads.s is None else grads.s, io_dtype)
    gm = steps_of(grads.m, v0.dtype)
    x = steps_of(x_seq if learned else None, io_dtype)
    gv, v0, kept, lengths = plain(grads.v), plain(v0), plain(kept), plain(lengths)
    rates = _rates(parameters.rate, settings, v0)
    tensors = [gs.seq, gm.seq, gv, x.seq, kept, v0, lengths, rates.tensor, gx_seq, gv0, grate]
    distances = [gs.distance, gm.distance, x.distance]
    vec = _lanes_per_thread(v0.numel(), gx_seq, distances, [t for t in tensors if t is not lengths])
    macros = (
        *_macros(io_dtype, vec, settings, lengths),
        ("SURROGATE", variant("surrogate.cuh", "surrogate", settings.surrogate)),
        ("DETACH", int(settings.detach_reset)),
        ("RATE_GRAD", int(learned)),
        ("GRAD_MEMBRANE", int(gm.seq is not None)),
    )
    counts = [len(kept), v0.numel(), _sample(v0), *distances, np.int32(rates.step)]
    slopes = SLOPES[settings.surrogate](settings.width)
    constants = [rates.constant, settings.input_scale, settings.v_reset, *slopes]
    kernel = Kernel("msf_backward.cu", "msf_backward", macros)
    _launch(kernel, v0, [*tensors, *counts, *constants, _thresholds(settings.thresholds, v0)])
    if parameters.rate is None:
        return gx_seq, gv0, v0.new_zeros(())
    return gx_seq, gv0, grate.sum_to_size(parameters.rate.shape)


def _launch(kernel: Kernel, v: Tensor, args: Sequence[Any]) -> None:
    """One thread for each ``VEC`` lanes of ``v``."""
    blocks = parts(v.numel(), int(dict(kernel.macros)["VEC"]) * THREADS)
    launch.device.launch(kernel, v, blocks, (THREADS, 1), packed(args, v.dtype))


def _macros(io_dtype: torch.dtype, vec: int, settings: MSFSettings, lengths: Tensor | None) -> Macros:
    """The macros of both directions."""
    return (
        ("IO", element(io_dtype, *ELEMENTS)),
        ("VEC", vec),
        ("CHARGE", variant("charges.cuh", "charge", settings.charge)),
        ("RESET", variant("msf.cuh", "reset", settings.reset_mode)),
        ("LEVELS", len(settings.thresholds)),
        ("BY_VALUE", int(len(settings.thresholds) <= LEVELS_BY_VALUE)),
        ("KEEP", KEEPS[settings.keep]),
        ("LENGTHS", int(lengths is not None)),
        ("THREADS", THREADS),
    )


@dataclass(frozen=True)
class _Rates:
    """The rates of the lanes, the distance between them (0: one for all), and the constant instead of them."""

    tensor: Tensor | None
    step: int
    constant: float


def _rates(rate: Tensor | None, settings: MSFSettings, v: Tensor) -> _Rates:
    if rate is not None:
        one = rate.numel() == 1
        spread = rate.to(v.dtype).reshape(()) if one else rate.to(v.dtype).expand(v.shape)
        return _Rates(plain(spread), 0 if one else 1, 0.0)
    # The products take their one factor (charges.cuh), in double.
    factors = {"lif_product": lambda tau: 1.0 - 1.0 / tau, "plif_product": lambda q: 1.0 - q}
    return _Rates(None, 0, factors.get(settings.charge, float)(settings.rate))


def _lanes_per_thread(
    lanes: int, wide: Tensor, steps: Sequence[int], tensors: Sequence[Tensor | None]
) -> int:
    """As many lanes as 16 bytes of ``wide`` hold, if every row of every tensor starts at such a place; else 1.

    Rows of N elements start there from the second step on only if N is a multiple.
    """
    count = WIDE // wide.element_size()
    aligned = all(t is None or t.data_ptr() % min(WIDE, count * t.element_size()) == 0 for t in tensors)
    return count if aligned and all(n % count == 0 for n in (lanes, *steps)) else 1


def _thresholds(thresholds: Sequence[float], v: Tensor) -> Any:
    """The struct ``Thresholds`` of msf.cuh: the numbers, or the address of many."""
    if len(thresholds) > LEVELS_BY_VALUE:
        return np.int64(_table(tuple(thresholds), v.dtype, v.device).data_ptr())
    # A single record is what CuPy passes by value.
    return np.array((list(thresholds),), dtype=[("at", real(v.dtype), (len(thresholds),))])


@cache
def _table(thresholds: tuple[float, ...], dtype: torch.dtype, where: torch.device) -> Tensor:
    """Kept for good: a captured graph may hold its address."""
    return torch.tensor(thresholds, dtype=dtype, device=where)


def _sample(v: Tensor) -> int:
    """Lanes of one sample of the batch."""
    return v.numel() // max(1, v.shape[0]) if v.dim() else 1
