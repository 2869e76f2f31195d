"""MSF on the CPU, fused over time and compiled: tensors in, tensors out, no autograd outside."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...settings import MSFSettings
from ...tensors import MSFGrads, MSFParameters, Slopes
from . import kernels
from .kernels.calls import AFTER_CHARGE, AT_ONCE, BEFORE_CHARGE, KEEP_CODES, MSFBackward, MSFForward
from .kernels.charges import CHARGES, ChargeCodes
from .kernels.msf import BACKWARD_SCRATCH, FORWARD_SCRATCH
from .kernels.resets import NONE, RESET_CODES, RESETS
from .kernels.surrogates import SURROGATES, Slope
from .launch import PIECES, Prepared, Work, known, launch, remember
from .memory import Memory, address, ceil, check, is_small, number_type

__all__ = ["KNOWS", "msf_backward", "msf_forward"]

KNOWS = frozenset(
    [
        *(f"charge {name!r}" for name in CHARGES),
        *(f"reset {name!r}" for name in RESETS),
        *(f"surrogate {name!r}" for name in SURROGATES),
        *(f"tensor of {name}s" for name in MSFParameters._fields),
        "delayed reset",
    ]
)

NUMBERS = MSFParameters()  # nothing is a tensor
BLOCK = 16 << 10  # bytes of state that a block has at most


class _Charge(NamedTuple):
    """A charge as the kernels take it, for one call."""

    codes: ChargeCodes
    rates: Tensor | None  # that broadcast against a step, or
    rate: float
    scale: float
    rest: float

    @classmethod
    def of(cls, parameters: MSFParameters, settings: MSFSettings, dtype: torch.dtype) -> _Charge:
        name = settings.charge
        if name not in CHARGES:
            raise ValueError(f"the numba backend has no charge {name!r}; known: {', '.join(CHARGES)}")
        known = CHARGES[name]
        rate: Any = settings.rate if parameters.rate is None else parameters.rate.detach()
        if known.factor is not None:
            rate = known.factor(rate)
        rates = None
        if isinstance(rate, Tensor):
            rate = rate.to(dtype)
            rates, rate = (None, rate.item()) if rate.numel() == 1 else (rate, 0.0)
        codes = ChargeCodes.of(name, settings.v_reset)
        scale = settings.input_scale if name == "decay" else 1.0
        return cls(codes, rates, rate, scale, settings.v_reset if known.has_rest else 0.0)


def _blocks(memory: Memory, most: int) -> dict[str, int]:
    """The fields of a call that say how lanes are cut: into few blocks, but enough for all threads."""
    row = memory.row if memory.apart else memory.lanes
    threads = torch.get_num_threads()
    share = row if threads == 1 else max(most // 8, ceil(memory.lanes, PIECES * threads))
    block = min(most, ceil(min(share, row), 32) * 32)  # whole vectors and cache lines
    return {"block": block, "row": row, "blocks": ceil(row, block), "per_length": memory.row}


def _parameters(
    memory: Memory, charge: _Charge, parameters: MSFParameters, settings: MSFSettings, v: Tensor
) -> dict[str, Any]:
    """The fields of a call that both ways share: numbers of the neuron, or tensors of them."""
    delayed = BEFORE_CHARGE if RESETS[settings.reset_mode].before_charge else AFTER_CHARGE
    return {
        "thetas": memory.numbers_at(settings.thresholds),
        "rates": memory.lanes_at(charge.rates, v),
        "firsts": memory.lanes_at(parameters.threshold, v),
        "amounts": memory.lanes_at(parameters.reset, v),
        "keep": KEEP_CODES[settings.keep],
        "count": len(settings.thresholds),
        "reset": RESET_CODES[settings.reset_mode],
        "delay": delayed if settings.reset_delay else AT_ONCE,
        "rate": charge.rate,
        "amount": settings.reset_amount,
        "scale": charge.scale,
        "rest": charge.rest,
        "v_reset": settings.v_reset,
    }


def msf_forward(
    x_seq: Tensor, v: Tensor, parameters: MSFParameters, lengths: Tensor | None, settings: MSFSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts [T, N, *], what ``settings.keep`` names and the final state, for the op in ``neurons/msf/op.py``."""
    small = lengths is None and parameters == NUMBERS and is_small(x_seq, v)
    key = ("msf_forward", settings, x_seq.shape, x_seq.dtype)
    if small and (prepared := known(key)):
        s_seq, v_last = torch.empty_like(x_seq), torch.empty_like(v)
        kept = _kept(x_seq, settings)
        prepared(*map(address, (x_seq, v, v_last, s_seq, kept)))
        return s_seq, kept, v_last
    check(x_seq)
    memory = Memory(x_seq.shape, x_seq.dtype)
    s_seq, v_last = memory.like(x_seq), memory.like(v)
    kept = _kept(x_seq, settings, memory)
    if x_seq.numel() == 0:
        return s_seq, kept, v_last.copy_(v)
    charge = _Charge.of(parameters, settings, x_seq.dtype)
    sequences = {**memory.sequence("x", x_seq), **memory.written(s_seq)}
    blocks = _blocks(memory, BLOCK // x_seq.dtype.itemsize)
    call = MSFForward(
        **blocks,
        **sequences,
        **_parameters(memory, charge, parameters, settings, v),
        steps=memory.steps,
        v=memory.at(v),
        v_last=memory.to(v_last),
        s=memory.to_sequence(s_seq),
        kept=memory.to_sequence(kept),
        lengths=memory.at(lengths, torch.int64),
        charge=charge.codes.forward,
        width=settings.width,
    )
    work = _work(memory, blocks, FORWARD_SCRATCH)
    launch(kernels.msf_forward, call, work, memory)
    if small:
        fields = ("x", "v", "v_last", "s", "kept")
        remember(key, lambda: Prepared(kernels.msf_forward, call, work, memory, fields))
    return s_seq, kept, v_last


def _kept(x_seq: Tensor, settings: MSFSettings, memory: Memory | None = None) -> Tensor:
    """Memory for what the backward will need."""
    dtype = torch.uint8 if settings.keep == "code" else x_seq.dtype
    if settings.keep == "none":
        return torch.empty(0, dtype=dtype)
    return torch.empty_like(x_seq, dtype=dtype) if memory is None else memory.like(x_seq, dtype)


def _work(memory: Memory, blocks: dict[str, int], scratch: int) -> Work:
    rows = memory.lanes // blocks["row"]
    return Work(rows * blocks["blocks"], memory.lanes * memory.steps, scratch * blocks["block"])


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
    plain_call = lengths is None and slopes is None and parameters == NUMBERS and kept.is_contiguous()
    small = plain_call and grads.s is not None and is_small(grads.s, grads.m, grads.v)
    start = v0 if settings.reset_delay else None
    key = ("msf_backward", settings, kept.shape, v0.dtype, grads.m is None, grads.v is None)
    if small and (prepared := known(key)) and (start is None or start.is_contiguous()):
        gx_seq, gv0 = torch.empty_like(grads.s), v0.new_empty(v0.shape)
        tensors = (grads.s, grads.m, grads.v, kept, start, gx_seq, gv0)
        prepared(*map(address, tensors))
        return gx_seq, gv0, NUMBERS
    check(v0)
    memory = Memory(kept.shape, v0.dtype)
    charge = _Charge.of(parameters, settings, v0.dtype)
    if parameters.rate is not None and CHARGES[settings.charge].rate is None:
        raise ValueError(f"charge {settings.charge!r} has no gradient to its rate: pass a number")
    surrogate = Slope.of(settings.surrogate if slopes is None else "", settings.width)
    gx_seq, gv0 = memory.like(kept), memory.like(v0)
    sums = MSFParameters(*(None if p is None else memory.new(v0.shape) for p in parameters))
    if kept.numel() == 0:
        gv0 = gv0.zero_() if grads.v is None else gv0.copy_(grads.v)
        return gx_seq, gv0, MSFParameters(*(None if p is None else torch.zeros_like(p) for p in parameters))
    total, first = (None, None) if slopes is None else slopes
    sequences = {
        **memory.sequence("gs", grads.s),
        **memory.sequence("gm", grads.m),
        **memory.sequence("x", None if parameters.rate is None else x_seq),
        **memory.sequence("kept", kept, kept.dtype),
        **memory.sequence("total", total),
        **memory.sequence("slope", first),
        **memory.written(gx_seq),
    }
    blocks = _blocks(memory, BLOCK // v0.dtype.itemsize)
    reset = RESET_CODES[settings.reset_mode]
    heights = _height_sums(len(settings.thresholds), surrogate.q, v0.dtype) if settings.keep == "code" else ()
    call = MSFBackward(
        **blocks,
        **sequences,
        **_parameters(memory, charge, parameters, settings, v0),
        steps=memory.steps,
        gv=memory.at(grads.v),
        v0=memory.at(v0 if settings.reset_delay or parameters.rate is not None else None),
        gx=memory.to_sequence(gx_seq),
        gv0=memory.to(gv0),
        grate=memory.to(sums.rate),
        gfirst=memory.to(sums.threshold),
        gamount=memory.to(sums.reset),
        sums=memory.numbers_at(heights) if heights else 0,
        lengths=memory.at(lengths, torch.int64),
        charge=charge.codes.backward,
        rate_charge=charge.codes.rate,
        through=NONE if settings.detach_reset or settings.reset_delay else reset,
        surrogate=surrogate.code,
        p=surrogate.p,
        q=surrogate.q,
    )
    work = _work(memory, blocks, BACKWARD_SCRATCH)
    launch(kernels.msf_backward, call, work, memory)
    if small:
        fields = ("gs", "gm", "gv", "kept", "v0", "gx", "gv0")
        remember(key, lambda: Prepared(kernels.msf_backward, call, work, memory, fields))
    return gx_seq, gv0, MSFParameters(*map(_of_lanes, sums, parameters))


def _of_lanes(sums: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    """The gradient of a parameter; a lane lost to NaN leaves it that of the others."""
    if sums is None or parameter is None:
        return None
    return torch.where(sums.isnan(), 0.0, sums).sum_to_size(parameter.shape)


@functools.lru_cache(64)
def _height_sums(count: int, height: float, dtype: torch.dtype) -> tuple[float, ...]:
    """A rectangle's height added 0, 1, .. times: the bits of the sum over thresholds. Nothing if they are products."""
    number = number_type(dtype)
    sums = np.zeros(count + 1, number)
    for i in range(count):
        sums[i + 1] = sums[i] + number(height)
    products = np.arange(count + 1, dtype=number) * number(height)
    return () if (sums == products).all() else tuple(sums.tolist())
