"""MSF on the CPU, fused over time and compiled: tensors in, tensors out, no autograd outside."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...settings import MSFSettings
from ...tensors import MSFGrads, MSFParameters
from . import kernels
from .kernels.calls import KEEP_CODES, MSFBackward, MSFForward
from .kernels.charges import CHARGES, ChargeCodes
from .kernels.msf import BACKWARD_SCRATCH, FORWARD_SCRATCH
from .kernels.resets import NONE, RESET_CODES
from .kernels.surrogates import Slope
from .launch import PIECES, Work, launch
from .memory import Memory, ceil, check, number_type

__all__ = ["msf_backward", "msf_forward"]

BLOCK = 16 << 10  # bytes of state that a block has at most


class _Charge(NamedTuple):
    """A charge as the kernels take it, for one call."""

    codes: ChargeCodes
    rates: Tensor | None  # one a lane, or
    rate: float
    scale: float
    rest: float

    @classmethod
    def of(cls, parameters: MSFParameters, settings: MSFSettings, like: Tensor) -> _Charge:
        name = settings.charge
        if name not in CHARGES:
            raise ValueError(f"the numba backend has no charge {name!r}; known: {', '.join(CHARGES)}")
        known = CHARGES[name]
        rate: Any = settings.rate if parameters.rate is None else parameters.rate.detach()
        if known.factor is not None:
            rate = known.factor(rate)
        rates = None
        if isinstance(rate, Tensor):
            rate = rate.to(like.dtype)
            if rate.numel() == 1:
                rate = rate.item()
            else:
                rates, rate = rate.expand(like.shape), 0.0
        codes = ChargeCodes.of(name, settings.v_reset)
        scale = settings.input_scale if name == "decay" else 1.0
        return cls(codes, rates, rate, scale, settings.v_reset if known.has_rest else 0.0)


def _block(lanes: int, itemsize: int) -> int:
    """Lanes of a block: less than the most where threads would be idle; whole vectors and cache lines."""
    most = BLOCK // itemsize
    threads = torch.get_num_threads()
    share = lanes if threads == 1 else max(most // 8, ceil(lanes, PIECES * threads))
    return min(most, ceil(share, 32) * 32)


def msf_forward(
    x_seq: Tensor,
    v: Tensor,
    parameters: MSFParameters,
    lengths: Tensor | None,
    settings: MSFSettings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts [T, N, *], what ``settings.keep`` names and the final state [N, *]."""
    check(x_seq)
    steps, *shape = x_seq.shape
    memory = Memory(x_seq.dtype)
    s_seq, v_last = memory.new(x_seq.shape), memory.new(v.shape)
    kept = memory.new(
        (0,) if settings.keep == "none" else x_seq.shape, torch.uint8 if settings.keep == "code" else x_seq.dtype
    )
    if x_seq.numel() == 0:
        return s_seq, kept, v_last.copy_(v)
    lanes = math.prod(shape)
    block = _block(lanes, x_seq.dtype.itemsize)
    charge = _Charge.of(parameters, settings, v)
    x, x_step = memory.steps(x_seq)
    call = MSFForward(
        block=block,
        steps=steps,
        lanes=lanes,
        per_length=lanes // shape[0],
        x=x,
        x_step=x_step,
        v=memory.at(v),
        v_last=memory.at(v_last),
        s=memory.at(s_seq),
        kept=memory.at(kept, kept.dtype),
        rates=memory.at(charge.rates),
        thetas=memory.numbers(settings.thresholds),
        lengths=memory.at(lengths, torch.int64),
        keep=KEEP_CODES[settings.keep],
        count=len(settings.thresholds),
        charge=charge.codes.forward,
        reset=RESET_CODES[settings.reset_mode],
        rate=charge.rate,
        scale=charge.scale,
        rest=charge.rest,
        v_reset=settings.v_reset,
        amount=settings.reset_amount,
        width=settings.width,
    )
    launch(kernels.msf_forward, call, Work(ceil(lanes, block), lanes * steps, FORWARD_SCRATCH * block), memory)
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
    """Gradients to ``x_seq``, ``v0`` and the rate (a 0-d zero where it is a constant)."""
    check(v0)
    steps, *shape = kept.shape
    memory = Memory(v0.dtype)
    charge = _Charge.of(parameters, settings, v0)
    given = parameters.rate is not None
    learned = given and CHARGES[settings.charge].rate is not None
    if given and not learned:
        raise ValueError(f"charge {settings.charge!r} has no gradient to its rate: pass a number")
    surrogate = Slope.of(settings.surrogate, settings.width)
    gx_seq, gv0 = memory.new(kept.shape), memory.new(v0.shape)
    grate = memory.new(v0.shape if given else ())
    if kept.numel() == 0:
        gv0 = gv0.zero_() if grads.v is None else gv0.copy_(grads.v)
        return gx_seq, gv0, _summed(grate.zero_(), parameters.rate)
    lanes = math.prod(shape)
    block = _block(lanes, v0.dtype.itemsize)
    count = len(settings.thresholds)
    sums = _height_sums(count, surrogate.q, number_type(v0.dtype)) if settings.keep == "code" else None
    gs, gs_step = memory.steps(grads.s)
    gm, gm_step = memory.steps(grads.m)
    x, x_step = memory.steps(x_seq if given else None)
    reset = RESET_CODES[settings.reset_mode]
    call = MSFBackward(
        block=block,
        steps=steps,
        lanes=lanes,
        per_length=lanes // shape[0],
        gs=gs,
        gs_step=gs_step,
        gm=gm,
        gm_step=gm_step,
        gv=memory.at(grads.v),
        x=x,
        x_step=x_step,
        kept=memory.at(kept, kept.dtype),
        v0=memory.at(v0 if learned else None),
        gx=memory.at(gx_seq),
        gv0=memory.at(gv0),
        grate=memory.at(grate),
        rates=memory.at(charge.rates),
        thetas=memory.numbers(settings.thresholds),
        sums=0 if sums is None else memory.numbers(sums),
        lengths=memory.at(lengths, torch.int64),
        keep=KEEP_CODES[settings.keep],
        count=count,
        charge=charge.codes.backward,
        rate_charge=charge.codes.rate,
        learned=int(learned),
        reset=reset,
        through=NONE if settings.detach_reset else reset,
        surrogate=surrogate.code,
        rate=charge.rate,
        scale=charge.scale,
        rest=charge.rest,
        v_reset=settings.v_reset,
        amount=settings.reset_amount,
        p=surrogate.p,
        q=surrogate.q,
    )
    launch(kernels.msf_backward, call, Work(ceil(lanes, block), lanes * steps, BACKWARD_SCRATCH * block), memory)
    return gx_seq, gv0, _summed(grate if given else grate.zero_(), parameters.rate)


def _summed(grad: Tensor, like: Tensor | None) -> Tensor:
    return grad if like is None else grad.sum_to_size(like.shape)


def _height_sums(count: int, height: float, number: Any) -> Any:
    """A rectangle's height added 0, 1, .. times: the bits of the sum over thresholds. None if they are products."""
    sums = np.zeros(count + 1, number)
    for i in range(count):
        sums[i + 1] = sums[i] + number(height)
    return None if (sums == np.arange(count + 1, dtype=number) * number(height)).all() else sums
