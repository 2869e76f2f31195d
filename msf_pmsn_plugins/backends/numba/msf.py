"""MSF on the CPU, fused over time and compiled: tensors in, tensors out, no autograd outside."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...settings import MSFSettings
from ...tensors import MSFGrads, MSFParameters, Slopes, of_parameters
from ..halves import widens
from . import kernels
from .kernels.calls import (
    AFTER_CHARGE,
    AT_ONCE,
    BEFORE_CHARGE,
    KEEP_CODES,
    MSFBackward,
    MSFBackwardTensors,
    MSFForward,
    MSFForwardTensors,
)
from .kernels.charges import CHARGES, ChargeCodes
from .kernels.msf import BACKWARD_PARTS, FORWARD_PARTS, LEARNING_PARTS
from .kernels.resets import NONE, RESET_CODES, RESETS
from .kernels.surrogates import SURROGATES, Slope
from .launch import PIECES, Prepared, Work, threads_for
from .memory import Tensors, Walk, ceil, check, gradient_like, like, new, numbers, ready, walk

__all__ = ["KNOWS", "MSFSingle", "msf_backward", "msf_forward"]

KNOWS = frozenset(
    [
        *(f"charge {name!r}" for name in CHARGES),
        *(f"reset {name!r}" for name in RESETS),
        *(f"surrogate {name!r}" for name in SURROGATES),
        *(f"tensor of {name}s" for name in MSFParameters._fields),
        "delayed reset",
        "undecayed reset at once",
        "states out",
    ]
)

BLOCK = 16 << 10  # bytes of state that a block has at most
Shape = tuple[int, ...]


class _Cut(NamedTuple):
    """How lanes are cut into blocks: few, but enough for all threads."""

    block: int
    row: int
    blocks: int
    per_length: int
    work: Work

    @classmethod
    def of(cls, shape: Shape, apart: bool, itemsize: int, parts: int) -> _Cut:
        steps, rows, *sizes = shape
        per_length = math.prod(sizes)
        lanes = rows * per_length
        row = per_length if apart else lanes
        threads, most = threads_for(lanes * steps), BLOCK // itemsize
        share = row if threads == 1 else max(most // 8, ceil(lanes, PIECES * threads))
        block = min(most, ceil(min(share, row), 32) * 32)  # whole vectors and cache lines
        blocks = ceil(row, block)
        return cls(
            block, row, blocks, per_length, Work(lanes // row * blocks, parts * itemsize * block, threads)
        )

    @property
    def fields(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("block", "row", "blocks", "per_length")}


def _fields(settings: MSFSettings, own: tuple[int, ...]) -> dict[str, Any]:
    """The fields of a call that both ways share."""
    delayed = BEFORE_CHARGE if RESETS[settings.reset_mode].before_charge else AFTER_CHARGE
    own_rates, own_firsts, own_amounts = own
    return {
        "own_rates": own_rates,
        "own_firsts": own_firsts,
        "own_amounts": own_amounts,
        "keep": KEEP_CODES[settings.keep],
        "thresholds": len(settings.thresholds),
        "reset": RESET_CODES[settings.reset_mode],
        "delay": delayed if settings.reset_delay else AT_ONCE,
        "scale": settings.input_scale if settings.charge == "decay" else 1.0,
        "rest": settings.v_reset if CHARGES[settings.charge].has_rest else 0.0,
        "v_reset": settings.v_reset,
    }


class _Numbers(NamedTuple):
    """The addresses of the rate, the amount of a soft reset and the lanes' own first thresholds."""

    rate: int
    amount: int
    first: int = 0

    def or_tensors(
        self, parameters: MSFParameters, settings: MSFSettings, v: Tensor, tensors: Tensors
    ) -> _Numbers:
        """Of tensors, where there are such."""
        if not any(own is not None for own in parameters):
            return self
        rate, first, amount = (None if tensor is None else tensor.detach() for tensor in parameters)
        factor = CHARGES[settings.charge].factor
        if rate is not None and factor is not None:
            rate = factor(rate)
        return _Numbers(
            self.rate if rate is None else tensors.at(rate.expand(v.shape) if rate.numel() > 1 else rate),
            self.amount if amount is None else tensors.at(amount.expand(v.shape)),
            0 if first is None else tensors.at(first.expand(v.shape)),
        )


def _constants(settings: MSFSettings, dtype: torch.dtype) -> tuple[Any, _Numbers]:
    """The numbers in the settings: their memory, and where each lies."""
    if settings.charge not in CHARGES:
        raise ValueError(f"the numba backend has no charge {settings.charge!r}; known: {', '.join(CHARGES)}")
    factor = CHARGES[settings.charge].factor
    rate = settings.rate if factor is None else factor(settings.rate)
    array, address = numbers((rate, settings.reset_amount), dtype)
    return array, _Numbers(address, address + dtype.itemsize)


def _own(parameters: MSFParameters) -> tuple[int, ...]:
    """Whether lanes have numbers of their own."""
    rate, first, amount = parameters
    return int(rate is not None and rate.numel() > 1), int(first is not None), int(amount is not None)


# ---------------------------------------------------------------- forward


class _Forward(NamedTuple):
    """What calls with the same settings and layouts share."""

    prepared: Prepared
    x: Walk
    out: Walk
    numbers: _Numbers


@functools.lru_cache(1024)
def _prepare_forward(
    settings: MSFSettings,
    own: tuple[int, ...],
    dtype: torch.dtype,
    shape: Shape,
    strides: tuple[Shape, Shape],
    threads: int,
) -> _Forward:
    """For an input and outputs with these strides."""
    x, out = (walk(shape, stride) for stride in strides)
    cut = _Cut.of(shape, x.apart or out.apart, dtype.itemsize, FORWARD_PARTS)
    thetas, thetas_at = numbers(settings.thresholds, dtype)
    constants, addresses = _constants(settings, dtype)
    record = MSFForward(
        **cut.fields,
        **_fields(settings, own),
        steps=shape[0],
        x_step=x.step,
        x_row=x.row,
        out_step=out.step,
        out_row=out.row,
        thetas=thetas_at,
        charge=ChargeCodes.of(settings.charge, settings.v_reset).forward,
        retake=int(settings.retake),
        width=settings.width,
    )
    prepared = Prepared(kernels.msf_forward, dtype, record, cut.work, thetas, constants)
    return _Forward(prepared, x, out, addresses)


@widens
def msf_forward(
    x_seq: Tensor, v: Tensor, parameters: MSFParameters, lengths: Tensor | None, settings: MSFSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts [T, N, *], what ``settings.keep`` names and the final state, for the op in ``neurons/msf/op.py``."""
    check(x_seq)
    s_seq, v_last = like(x_seq), like(v)
    kept_dtype = torch.uint8 if settings.keep == "code" else x_seq.dtype
    kept = new((0,), kept_dtype) if settings.keep == "none" else like(x_seq, kept_dtype)
    if x_seq.numel() == 0:
        return s_seq, kept, v_last.copy_(v)
    x_seq, tensors = ready(x_seq, x_seq.dtype), Tensors(x_seq.dtype)
    call = _prepare_forward(
        settings,
        _own(parameters),
        x_seq.dtype,
        x_seq.shape,
        (x_seq.stride(), s_seq.stride()),
        torch.get_num_threads(),
    )
    addresses = MSFForwardTensors(
        x=tensors.steps_at(x_seq, call.x),
        v=tensors.at(v),
        v_last=tensors.to(v_last),
        s=tensors.steps_to(s_seq, call.out),
        kept=tensors.steps_to(kept, call.out),
        lengths=tensors.at(lengths, torch.int64),
        **call.numbers.or_tensors(parameters, settings, v, tensors)._asdict(),
    )
    call.prepared.run(addresses, tensors)
    return s_seq, kept, v_last


# ---------------------------------------------------------------- backward


class _Backward(NamedTuple):
    """What calls with the same settings and layouts share."""

    prepared: Prepared
    walks: dict[str, Walk]
    numbers: _Numbers


@functools.lru_cache(1024)
def _prepare_backward(
    settings: MSFSettings,
    own: tuple[int, ...],
    learned: bool,
    dtype: torch.dtype,
    shape: Shape,
    strides: tuple[Shape | None, ...],
    threads: int,
) -> _Backward:
    """For sequences with these strides, in the order of :data:`SEQUENCES`."""
    walks = {name: walk(shape, stride) for name, stride in zip(SEQUENCES, strides, strict=True)}
    apart, parts = any(seq.apart for seq in walks.values()), LEARNING_PARTS if learned else BACKWARD_PARTS
    cut = _Cut.of(shape, apart, dtype.itemsize, parts)
    charge, reset = ChargeCodes.of(settings.charge, settings.v_reset), RESET_CODES[settings.reset_mode]
    surrogate = Slope.of(settings.surrogate, settings.width)
    thetas, thetas_at = numbers(settings.thresholds, dtype)
    heights = _height_sums(len(settings.thresholds), surrogate.q, dtype) if settings.keep == "code" else ()
    sums, sums_at = numbers(heights, dtype)
    constants, addresses = _constants(settings, dtype)
    record = MSFBackward(
        **cut.fields,
        **_fields(settings, own),
        **{f"{name}_step": seq.step for name, seq in walks.items()},
        **{f"{name}_row": seq.row for name, seq in walks.items()},
        steps=shape[0],
        thetas=thetas_at,
        sums=sums_at if heights else 0,
        learned=int(learned),
        charge=charge.backward,
        rate_charge=charge.rate,
        through=NONE if settings.detach_reset or settings.reset_delay else reset,
        surrogate=surrogate.code,
        p=surrogate.p,
        q=surrogate.q,
    )
    prepared = Prepared(kernels.msf_backward, dtype, record, cut.work, thetas, sums, constants)
    return _Backward(prepared, walks, addresses)


SEQUENCES = "gs", "gm", "x", "kept", "total", "slope", "out"


@widens
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
    check(v0)
    dtype = v0.dtype
    if parameters.rate is not None and CHARGES[settings.charge].rate is None:
        raise ValueError(f"charge {settings.charge!r} has no gradient to its rate: pass a number")
    gx_seq, gv0 = gradient_like(kept, dtype, grads.m if grads.s is None else grads.s), like(v0)
    if kept.numel() == 0:
        gv0 = gv0.zero_() if grads.v is None else gv0.copy_(grads.v)
        return gx_seq, gv0, MSFParameters(*(None if p is None else torch.zeros_like(p) for p in parameters))
    sums = MSFParameters(*(None if p is None else new(v0.shape, dtype) for p in parameters))
    total, first = (None, None) if slopes is None else slopes
    read = grads.s, grads.m, x_seq if parameters.rate is not None else None, total, first
    gs, gm, x, total, first = (None if seq is None else ready(seq, dtype) for seq in read)
    sequences = gs, gm, x, kept, total, first, gx_seq
    call = _prepare_backward(
        settings if slopes is None else settings.but(surrogate=""),
        _own(parameters),
        any(own is not None for own in parameters),
        dtype,
        kept.shape,
        tuple(None if seq is None else seq.stride() for seq in sequences),
        torch.get_num_threads(),
    )
    tensors, walks = Tensors(dtype), call.walks
    needs_v0 = settings.reset_delay or parameters.rate is not None
    addresses = MSFBackwardTensors(
        gs=tensors.steps_at(gs, walks["gs"]),
        gm=tensors.steps_at(gm, walks["gm"]),
        gv=tensors.at(grads.v),
        x=tensors.steps_at(x, walks["x"]),
        kept=tensors.steps_at(kept, walks["kept"]),
        total=tensors.steps_at(total, walks["total"]),
        slope=tensors.steps_at(first, walks["slope"]),
        v0=tensors.at(v0 if needs_v0 else None),
        gx=tensors.steps_to(gx_seq, walks["out"]),
        gv0=tensors.to(gv0),
        grate=tensors.to(sums.rate),
        gfirst=tensors.to(sums.threshold),
        gamount=tensors.to(sums.reset),
        lengths=tensors.at(lengths, torch.int64),
        **call.numbers.or_tensors(parameters, settings, v0, tensors)._asdict(),
    )
    call.prepared.run(addresses, tensors)
    return gx_seq, gv0, of_parameters(sums, parameters, _largest(kept, parameters))


# ---------------------------------------------------------------- single steps


class MSFSingle:
    """Contiguous steps [N, *] of one shape, without tensors of parameters: what calls find out, found out once.

    Inputs are plain tensors of that shape on the CPU, contiguous and of one dtype.
    """

    def __init__(self, settings: MSFSettings, shape: Shape, dtype: torch.dtype) -> None:
        self.settings = settings
        shape, threads = (1, *shape), torch.get_num_threads()
        stride = torch.empty(shape, device="meta").stride()
        forward = _prepare_forward(settings, NO_TENSORS, dtype, shape, (stride, stride), threads)
        backward = _prepare_backward(
            settings, NO_TENSORS, False, dtype, shape, (stride,) * len(SEQUENCES), threads
        )
        self._forward, self._backward = forward.prepared.run, backward.prepared.run
        self._numbers, self._numbers_back = tuple(forward.numbers), tuple(backward.numbers)
        self._code, self._delayed = settings.keep == "code", settings.reset_delay

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Counts, what ``settings.keep`` names and the next state."""
        s, v_last, kept = torch.empty_like(x), torch.empty_like(v), None
        if self.settings.keep != "none":
            kept = torch.empty_like(x, dtype=torch.uint8) if self._code else torch.empty_like(x)
        kept_at = 0 if kept is None else kept.data_ptr()
        addresses = x.data_ptr(), v.data_ptr(), v_last.data_ptr(), s.data_ptr(), kept_at, 0, *self._numbers
        self._forward(addresses, None)
        return s, kept, v_last

    def backward(
        self, grads: MSFGrads, kept: Tensor, v: Tensor | None, total: Tensor | None, first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients to the input and the state."""
        dtype = next(g.dtype for g in grads if g is not None)
        plain = [None if g is None else g.resolve_neg().contiguous() for g in (*grads, total, first)]
        gx, gv0 = (torch.empty(kept.shape, dtype=dtype) for _ in range(2))
        s_at, m_at, v_at, total_at, first_at = (0 if g is None else g.data_ptr() for g in plain)
        before = v.data_ptr() if v is not None and self._delayed else 0
        slopes = total_at, first_at
        addresses = (s_at, m_at, v_at, 0, kept.data_ptr(), *slopes, before, gx.data_ptr(), gv0.data_ptr())
        self._backward((*addresses, 0, 0, 0, 0, *self._numbers_back), None)
        return gx, gv0


NO_TENSORS = 0, 0, 0


def _largest(kept: Tensor, parameters: MSFParameters) -> Tensor | None:
    """By NumPy: on threads of torch's a child of a fork would wait for ever."""
    learned = any(p is not None for p in parameters) and kept.is_floating_point()
    return torch.from_numpy(kept.detach().numpy().max(0)) if learned else None


def _height_sums(count: int, height: float, dtype: torch.dtype) -> tuple[float, ...]:
    """A rectangle's height added 0, 1, .. times: the bits of the sum over thresholds. Nothing if they are products."""
    heights = torch.full((count,), height, dtype=dtype)
    sums = [torch.zeros((), dtype=dtype)]
    for one in heights:
        sums.append(sums[-1] + one)
    products = torch.arange(count + 1).to(dtype) * heights[:1]
    return () if torch.equal(torch.stack(sums), products) else tuple(torch.stack(sums).tolist())
