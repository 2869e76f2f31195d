"""MSF on CUDA: which kernel, with which macros and geometry, on which memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...charges import CHARGES
from ...settings import MSFSettings
from ...tensors import MSFGrads, MSFParameters, Slopes, of_parameters, state_dtype
from ..device import Steps, as_laid_out, empty, parts, plain, steps_of
from . import launch
from .arguments import SLOPES, check, element, packed, real
from .compile import Kernel, Macros, variant, words
from .geometry import Packs, packs_of

__all__ = ["KNOWS", "msf_backward", "msf_forward"]

KNOWS = frozenset(
    [
        *words("charges.cuh", "charge"),
        *words("msf.cuh", "reset"),
        *words("surrogate.cuh", "surrogate"),
        *(
            "delayed reset",
            "undecayed reset at once",
            "states out",
            "tensor of rates",
            "tensor of thresholds",
            "tensor of resets",
        ),
    ]
)
LEVELS_BY_VALUE = 256  # thresholds that fit a kernel's parameters; more lie in memory
WIDE = 16  # bytes of the widest access
KEEPS = {"none": "KEEP_NONE", "membrane": "KEEP_MEMBRANE", "code": "KEEP_CODE", "state": "KEEP_STATE"}
NUMBERS = ("RATE", "THRESHOLD", "RESET")  # the fields of MSFParameters as macros name them


def msf_forward(
    x_seq: Tensor, v: Tensor, parameters: MSFParameters, lengths: Tensor | None, settings: MSFSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, what ``settings.keep`` names and the final state."""
    check(x_seq, state_dtype(x_seq.dtype), v=v, lengths=lengths, **parameters._asdict())
    keep = settings.keep
    s_seq = empty(x_seq.shape, x_seq)
    kept = empty(0 if keep == "none" else x_seq.shape, x_seq, torch.uint8 if keep == "code" else v.dtype)
    v_last = v.clone(memory_format=torch.contiguous_format)
    if x_seq.numel():
        x, v0, lengths = steps_of(x_seq), plain(v), plain(lengths)
        numbers = _numbers(parameters, settings, v0)
        tensors = [x.seq, v0, lengths, *(n.tensor for n in numbers), s_seq, kept, v_last]
        width = _widest(v0.numel(), s_seq, [x.distance], [x.seq, v0, s_seq, kept, v_last])
        packs = _packs(len(x_seq), v0, width, [x.seq])
        macros = _macros(x_seq.dtype, packs, settings, parameters, lengths)
        counts = [len(x_seq), v0.numel(), _sample(v0), x.distance, *(np.int32(n.step) for n in numbers)]
        constants = [*_constants(numbers, settings), settings.width]
        args = [*tensors, *counts, *constants, _thresholds(settings.thresholds, v0)]
        _launch(Kernel("msf_forward.cu", "msf_forward", macros), v0, args)
    return (
        as_laid_out(s_seq, x_seq),
        kept if keep == "none" else as_laid_out(kept, x_seq),
        as_laid_out(v_last, v),
    )


def msf_backward(
    grads: MSFGrads,
    x_seq: Tensor,
    kept: Tensor,
    v0: Tensor,
    parameters: MSFParameters,
    lengths: Tensor | None,
    slopes: Slopes | None,
    settings: MSFSettings,
) -> tuple[Tensor, Tensor, MSFParameters]:
    """Gradients to ``x_seq``, ``v0`` and the parameters (None where there is no tensor)."""
    state = {"v": v0, "gm_seq": grads.m, "gv": grads.v, **({} if slopes is None else slopes._asdict())}
    check(x_seq, state_dtype(x_seq.dtype), **state, lengths=lengths, **parameters._asdict())
    check(x_seq, x_seq.dtype, gs_seq=grads.s)
    check(x_seq, kept=kept)
    if parameters.rate is not None and CHARGES[settings.charge].rate_grad is None:
        raise ValueError(f"charge {settings.charge!r} has no gradient to its rate: pass a number")
    gx_seq, gv0 = empty(kept.shape, kept, x_seq.dtype), empty(v0.shape, v0)
    sums = [empty(0 if p is None else v0.shape, v0) for p in parameters]
    if kept.numel() == 0:
        gv0 = torch.zeros_like(gv0) if grads.v is None else gv0.copy_(grads.v)
        zeros = MSFParameters(*(None if p is None else torch.zeros_like(p) for p in parameters))
        return as_laid_out(gx_seq, kept), as_laid_out(gv0, v0), zeros
    v, held = plain(v0), plain(kept)
    walked = _walked(grads, x_seq, parameters, slopes)
    gv, lengths, numbers = plain(grads.v), plain(lengths), _numbers(parameters, settings, v)
    given = [*(steps.seq for steps in walked[:2]), gv, *(steps.seq for steps in walked[2:]), held, v]
    distances = [steps.distance for steps in walked]
    out = [gx_seq, gv0, *sums]
    width = _widest(v.numel(), gx_seq, distances, [*given, *out])
    packs = _packs(len(kept), v, width, [held, *(steps.seq for steps in walked)])
    macros = (
        *_macros(x_seq.dtype, packs, settings, parameters, lengths),
        ("SURROGATE", variant("surrogate.cuh", "surrogate", settings.surrogate or "rectangular")),
        ("SLOPES", int(slopes is not None)),
        ("DETACH", int(settings.detach_reset)),
        *((f"{name}_GRAD", int(p is not None)) for name, p in zip(NUMBERS, parameters, strict=True)),
        ("GRAD_MEMBRANE", int(grads.m is not None)),
    )
    counts = [len(kept), v.numel(), _sample(v), *distances, *(np.int32(n.step) for n in numbers)]
    p_and_q = SLOPES[settings.surrogate or "rectangular"](settings.width)
    constants = [*_constants(numbers, settings), *p_and_q, _thresholds(settings.thresholds, v)]
    tensors = [*given, lengths, *(n.tensor for n in numbers), *out]
    _launch(Kernel("msf_backward.cu", "msf_backward", macros), v, [*tensors, *counts, *constants])
    learned = any(p is not None for p in parameters) and kept.is_floating_point()
    gradients = of_parameters(sums, parameters, kept.amax(0) if learned else None)
    return as_laid_out(gx_seq, kept), as_laid_out(gv0, v0), gradients


def _walked(grads: MSFGrads, x_seq: Tensor, parameters: MSFParameters, slopes: Slopes | None) -> list[Steps]:
    """The sequences that backward reads at any distance: gradients of counts and membranes, x, slopes."""
    # A missing gradient is one step of zeros, read again and again.
    gs_seq = x_seq.new_zeros(x_seq.shape[1:]).expand(x_seq.shape) if grads.s is None else grads.s
    total = first = None
    if slopes is not None:
        total, first = slopes.total, slopes.total if slopes.first is None else slopes.first
    read = gs_seq, grads.m, None if parameters.rate is None else x_seq, total, first
    return [steps_of(seq) for seq in read]


def _launch(kernel: Kernel, v: Tensor, args: Sequence[Any]) -> None:
    """One thread for each ``VEC`` lanes of ``v``."""
    macros = dict(kernel.macros)
    width, threads = int(macros["VEC"]), int(macros["THREADS"])
    launch.device.launch(kernel, v, parts(v.numel(), width * threads), (threads, 1), packed(args, v.dtype))


def _macros(
    io_dtype: torch.dtype,
    packs: Packs,
    settings: MSFSettings,
    parameters: MSFParameters,
    lengths: Tensor | None,
) -> Macros:
    """The macros of both directions."""
    return (
        ("IO", element(io_dtype)),
        ("VEC", packs.width),
        ("CHARGE", variant("charges.cuh", "charge", settings.charge)),
        ("RESET", variant("msf.cuh", "reset", settings.reset_mode)),
        ("DELAY", int(settings.reset_delay)),
        ("LEVELS", len(settings.thresholds)),
        ("BY_VALUE", int(len(settings.thresholds) <= LEVELS_BY_VALUE)),
        ("THRESHOLD_TENSOR", int(parameters.threshold is not None)),
        ("KEEP", KEEPS[settings.keep]),
        ("LENGTHS", int(lengths is not None)),
        ("THREADS", packs.threads),
        ("AHEAD", packs.ahead),
        *([("RETAKE", 1)] * settings.retake),
    )


@dataclass(frozen=True)
class _Number:
    """A number of the neuron: one for each lane (step 1) or for all (step 0), or the constant."""

    tensor: Tensor | None
    step: int
    constant: float


def _numbers(parameters: MSFParameters, settings: MSFSettings, v: Tensor) -> list[_Number]:
    """The rate of the charge, the first threshold where it is a tensor, and the amount of a soft reset."""
    # The products take their one factor (charges.cuh), in double.
    factors = {"lif_product": lambda tau: 1.0 - 1.0 / tau, "plif_product": lambda q: 1.0 - q}
    rate = factors.get(settings.charge, float)(settings.rate)
    return [
        _number(parameters.rate, rate, v),
        _number(parameters.threshold, 0.0, v),
        _number(parameters.reset, settings.reset_amount, v),
    ]


def _number(tensor: Tensor | None, constant: float, v: Tensor) -> _Number:
    if tensor is None:
        return _Number(None, 0, constant)
    if tensor.numel() == 1:
        return _Number(plain(tensor.to(v.dtype).reshape(())), 0, 0.0)
    return _Number(plain(tensor.to(v.dtype).expand(v.shape)), 1, 0.0)


def _constants(numbers: Sequence[_Number], settings: MSFSettings) -> list[float]:
    rate, _, amount = numbers
    return [rate.constant, amount.constant, settings.input_scale, settings.v_reset]


def _packs(steps: int, v: Tensor, width: int, read: Iterable[Tensor | None]) -> Packs:
    """The geometry for the lanes of ``v`` and the sequences that are read."""
    registers = sum(parts(seq.element_size(), 4) for seq in read if seq is not None)
    return packs_of(steps, v.numel(), width, registers, launch.device.multiprocessors(v))


def _widest(lanes: int, wide: Tensor, steps: Iterable[int], tensors: Iterable[Tensor | None]) -> int:
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
