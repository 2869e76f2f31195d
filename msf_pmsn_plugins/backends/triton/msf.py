"""MSF by Triton: which kernel, with which settings, on which memory."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...charges import CHARGES
from ...settings import MSFSettings
from ...tensors import MSFGrads, MSFParameters, Slopes, of_parameters, state_dtype
from ..device import Steps, as_laid_out, empty, plain, steps_of
from ..halves import HALF
from . import launch
from .arguments import check, table
from .config import Config, for_lanes
from .kernels import charges, resets, surrogates
from .kernels.msf_backward import msf_backward as backward_kernel
from .kernels.msf_forward import msf_forward as forward_kernel

__all__ = ["KNOWS", "msf_backward", "msf_forward"]

KNOWS = frozenset(
    [
        *(f"charge {name!r}" for name in charges.NAMES),
        *(f"reset {name!r}" for name in resets.NAMES),
        *(f"surrogate {name!r}" for name in surrogates.CONSTANTS),
        *("delayed reset", "undecayed reset at once", "states out"),
        *("tensor of rates", "tensor of thresholds", "tensor of resets"),
    ]
)


def msf_forward(
    x_seq: Tensor, v: Tensor, parameters: MSFParameters, lengths: Tensor | None, settings: MSFSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, what ``settings.keep`` names and the final state.

    Half-precision ``x_seq`` with a float32 ``v`` gives half-precision counts; membranes stay float32.
    """
    check(x_seq, state_dtype(x_seq.dtype), v=v, lengths=lengths, **parameters._asdict())
    keep = settings.keep
    s_seq = empty(x_seq.shape, x_seq)
    kept = empty(0 if keep == "none" else x_seq.shape, x_seq, torch.uint8 if keep == "code" else v.dtype)
    v_last = v.clone(memory_format=torch.contiguous_format)
    if x_seq.numel():
        x, v0 = steps_of(x_seq), plain(v)
        numbers = _numbers(parameters, settings, v0)
        size = x_seq.element_size()
        config = for_lanes(v0.numel(), size, launch.device_of(v0), size)
        written = (s_seq, None if keep == "none" else kept, v_last)
        tensors = (x.seq, v0, plain(lengths), *numbers.tensors, *written)
        counts = (len(x_seq), v0.numel(), _sample(v0), x.distance)
        compiled = _settings(settings, numbers, config) | {"RETAKE": settings.retake}
        grid = (config.programs(v0.numel()),)
        launch.run(forward_kernel, v0, grid, config.warps, (*tensors, *counts), compiled)
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
    """Gradients to ``x_seq``, ``v0`` and the parameters (None where there is no tensor).

    ``x_seq`` is read for a learned rate only; otherwise the gradient takes the dtype of ``v0``, or of a ``x_seq`` in
    half precision.
    """
    v0 = v0.to(state_dtype(v0.dtype))  # where nobody needs it, it has but the shape
    check(v0, v0.dtype, gm_seq=grads.m, gv=grads.v, lengths=lengths, **parameters._asdict())
    check(v0, gs_seq=grads.s, x_seq=x_seq, kept=kept)
    if parameters.rate is not None and CHARGES[settings.charge].rate_grad is None:
        raise ValueError(f"charge {settings.charge!r} has no gradient to its rate: pass a number")
    gx_seq = empty(kept.shape, kept, x_seq.dtype if x_seq.dtype in HALF else v0.dtype)
    gv0 = empty(v0.shape, v0)
    sums = [None if p is None else empty(v0.shape, v0) for p in parameters]
    if kept.numel() == 0:
        gv0 = torch.zeros_like(gv0) if grads.v is None else gv0.copy_(grads.v)
        zeros = MSFParameters(*(None if p is None else torch.zeros_like(p) for p in parameters))
        return as_laid_out(gx_seq, kept), as_laid_out(gv0, v0), zeros
    v = plain(v0)
    walked = _walked(grads, x_seq, parameters, slopes, v)
    numbers = _numbers(parameters, settings, v)
    gs, gm, *others = (steps.seq for steps in walked)
    read = (kept, gs, gm, *others)
    narrowest = min(seq.element_size() for seq in read if seq is not None)
    config = for_lanes(v.numel(), gx_seq.element_size(), launch.device_of(v), narrowest)
    given = (gs, gm, plain(grads.v), *others, plain(kept), v, plain(lengths), *numbers.tensors)
    counts = (len(kept), v.numel(), _sample(v), *(steps.distance for steps in walked))
    compiled = _settings(settings, numbers, config) | {
        "SURROGATE": settings.surrogate or "rectangular",
        "DETACH": settings.detach_reset,
    }
    grid = (config.programs(v.numel()),)
    launch.run(backward_kernel, v, grid, config.warps, (*given, gx_seq, gv0, *sums, *counts), compiled)
    learned = any(p is not None for p in parameters) and kept.is_floating_point()
    gradients = of_parameters(sums, parameters, kept.amax(0) if learned else None)
    return as_laid_out(gx_seq, kept), as_laid_out(gv0, v0), gradients


def _walked(
    grads: MSFGrads, x_seq: Tensor, parameters: MSFParameters, slopes: Slopes | None, v: Tensor
) -> list[Steps]:
    """The sequences that backward reads at any distance: gradients of counts and membranes, x, slopes."""
    # A missing gradient is one step of zeros, read again and again.
    gs_seq = v.new_zeros(v.shape).expand(x_seq.shape) if grads.s is None else grads.s
    total = first = None
    if slopes is not None:
        total, first = slopes.total, slopes.total if slopes.first is None else slopes.first
    rated = None if parameters.rate is None else x_seq
    return [steps_of(seq) for seq in (gs_seq, grads.m, rated, total, first)]


class _Numbers(NamedTuple):
    """The numbers of the neuron: the three that may be tensors, the table of the constants, and whether each tensor
    holds one number for all lanes (step 0) or one for each (step 1).
    """

    tensors: tuple[Tensor | None, ...]
    steps: tuple[int, ...]


def _numbers(parameters: MSFParameters, settings: MSFSettings, v: Tensor) -> _Numbers:
    tensors = [_in_memory(tensor, v) for tensor in parameters]
    steps = tuple(int(tensor is not None and tensor.dim() > 0) for tensor in tensors)
    return _Numbers((*tensors, _constants(settings, v)), steps)


def _in_memory(tensor: Tensor | None, v: Tensor) -> Tensor | None:
    if tensor is None:
        return None
    return plain(tensor.reshape(()) if tensor.numel() == 1 else tensor.expand(v.shape))


def _constants(settings: MSFSettings, v: Tensor) -> Tensor:
    """The table that ``kernels.lanes`` reads."""
    # The products take their one factor, in double.
    factors = {"lif_product": lambda tau: 1.0 - 1.0 / tau, "plif_product": lambda q: 1.0 - q}
    rate = factors.get(settings.charge, float)(settings.rate)
    p, q = surrogates.CONSTANTS[settings.surrogate or "rectangular"](settings.width)
    missing = [math.nan] * (4 - len(settings.thresholds))
    numbers = (rate, settings.reset_amount, settings.input_scale, settings.v_reset, settings.width, p, q)
    return table((*numbers, *settings.thresholds, *missing), v.dtype, v.device)


def _settings(settings: MSFSettings, numbers: _Numbers, config: Config) -> dict[str, str | int | bool]:
    """What both directions are compiled for."""
    rate, first, reset = numbers.steps
    return {
        "CHARGE": settings.charge,
        "RESET": settings.reset_mode,
        "DELAY": settings.reset_delay,
        "LEVELS": len(settings.thresholds),
        "KEEP": settings.keep,
        "RATE_STEP": rate,
        "FIRST_STEP": first,
        "RESET_STEP": reset,
        "BLOCK": config.block,
        "STAGES": config.stages,
    }


def _sample(v: Tensor) -> int:
    """Lanes of one sample of the batch."""
    return v.numel() // max(1, v.shape[0]) if v.dim() else 1
