"""One step of PMSN on the CPU: kernels of its own, for lanes [L, C]."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...settings import PMSNSettings
from ...tensors import PMSNGrads, PMSNState, PMSNWeights, Slopes
from . import kernels
from .kernels.calls import PMSNStep, PMSNStepBack, PMSNStepBackTensors, PMSNStepTensors
from .kernels.pmsn_step import STEP_ROWS, SUMS
from .kernels.somas import BURST_CODES, SOMA_CODES
from .kernels.surrogates import Slope, exact_inverse
from .launch import Prepared, Work, threads_for
from .memory import Recycled, Tensors, Walk, ceil, new, ready, walk

__all__ = ["PMSNSingle", "is_step", "soma_fields", "step_backward", "step_forward"]

TILE = 64  # channels of a task; a function of nothing else, so that no sum depends on the number of threads
VECTOR = 64  # bytes
Shape = tuple[int, ...]


def is_step(shape: Shape, lengths: Tensor | None) -> bool:
    """Whether an input [T, L, C, K] is one step of lanes [L, C]."""
    return shape[0] == 1 and shape[3] == 1 and lengths is None


def soma_fields(settings: PMSNSettings) -> dict[str, Any]:
    """The fields of a call that say what the soma does."""
    if settings.fixed and settings.reset_mode != "floor":
        raise ValueError(f"fixed point belongs to reset_mode 'floor', got {settings.reset_mode!r}")
    return {
        "soma": SOMA_CODES["fixed" if settings.fixed else settings.reset_mode],
        "burst": BURST_CODES[settings.burst],
        "theta": settings.v_threshold,
        "inverse": exact_inverse(settings.v_threshold),
    }


class _Call(NamedTuple):
    """What calls with the same settings and layouts share."""

    prepared: Prepared
    walks: dict[str, Walk]


def _work(shape: Shape, tile: int, scratch: int) -> Work:
    _steps, leads, channels, _one = shape
    return Work(ceil(channels, tile), scratch, threads_for(leads * channels))


def _lanes(shape: Shape, modes: int, itemsize: int) -> dict[str, int]:
    """The fields of a call that say how lanes lie."""
    _steps, leads, channels, _one = shape
    vector = 64 // itemsize
    tile = min(TILE, ceil(channels, vector) * vector)
    return {"tile": tile, "leads": leads, "channels": channels, "modes": modes}


@functools.lru_cache(1024)
def _prepare(
    settings: PMSNSettings,
    dtype: torch.dtype,
    shape: Shape,
    strides: tuple[Shape, Shape],
    modes: int,
    threads: int,
) -> _Call:
    """For an input and outputs with these strides."""
    walks = dict(zip(("x", "out"), (walk(shape, stride) for stride in strides), strict=True))
    lanes = _lanes(shape, modes, dtype.itemsize)
    scratch = lanes["tile"] * (modes * STEP_ROWS + 1) * dtype.itemsize + 2 * modes * VECTOR
    record = PMSNStep(**lanes, **soma_fields(settings), x_row=walks["x"].row, out_row=walks["out"].row)
    work = _work(shape, lanes["tile"], scratch)
    return _Call(Prepared(kernels.pmsn_step, dtype, record, work), walks)


def step_forward(
    x: Tensor,
    state: PMSNState,
    weights: PMSNWeights,
    settings: PMSNSettings,
    out: tuple[Tensor, Tensor, Tensor],
    last: PMSNState,
) -> None:
    """Write spikes, drives and membranes to ``out`` (an empty one is not wanted), and the last state."""
    s, y, m = out
    threads = torch.get_num_threads()
    call = _prepare(settings, x.dtype, x.shape, (x.stride(), s.stride()), weights.w.shape[1], threads)
    tensors, walks = Tensors(x.dtype), call.walks
    addresses = PMSNStepTensors(
        tensors.steps_at(x, walks["x"]),
        tensors.at(state.r),
        tensors.modes_at(state.z),
        tensors.complex_at(weights.e),
        tensors.complex_at(weights.w),
        tensors.at(weights.d),
        tensors.steps_to(s, walks["out"]),
        tensors.steps_to(y, walks["out"]),
        tensors.steps_to(m, walks["out"]),
        tensors.to(last.r),
        tensors.to(last.z),
    )
    call.prepared.run(addresses, tensors)


SEQUENCES = "gs", "gy", "gm", "x", "slope", "out"


@functools.lru_cache(1024)
def _prepare_back(
    settings: PMSNSettings,
    dtype: torch.dtype,
    shape: Shape,
    strides: tuple[Shape | None, ...],
    modes: int,
    threads: int,
) -> _Call:
    """For sequences with these strides, in the order of :data:`SEQUENCES`."""
    walks = dict(zip(SEQUENCES, (walk(shape, stride) for stride in strides), strict=True))
    lanes, surrogate = _lanes(shape, modes, dtype.itemsize), Slope.of(settings.surrogate, settings.width)
    sums = modes * SUMS + 1
    scratch = lanes["tile"] * ((modes * STEP_ROWS + 1 + sums) * dtype.itemsize + 8 * sums)
    scratch += 6 * modes * VECTOR
    record = PMSNStepBack(
        **lanes,
        **soma_fields(settings),
        **{f"{name}_row": seq.row for name, seq in walks.items()},
        surrogate=surrogate.code,
        p=surrogate.p,
        q=surrogate.q,
    )
    work = _work(shape, lanes["tile"], scratch)
    return _Call(Prepared(kernels.pmsn_step_back, dtype, record, work), walks)


def step_backward(
    grads: PMSNGrads,
    x: Tensor,
    state: PMSNState,
    weights: PMSNWeights,
    slopes: Slopes | None,
    settings: PMSNSettings,
    into: tuple[Tensor, Tensor],
) -> PMSNWeights:
    """Write the gradients to the input and, if it is not empty, to the hidden state; return those to the weights."""
    gx, gz0 = into
    dtype, total = x.dtype, None if slopes is None else slopes.total
    gs, gy, gm, total = (
        None if seq is None else ready(seq, dtype) for seq in (grads.s, grads.y, grads.m, total)
    )
    x = ready(x, dtype)
    sequences = gs, gy, gm, x, total, gx
    made = PMSNWeights(*(new(weight.shape, weight.dtype) for weight in weights))
    call = _prepare_back(
        settings,
        dtype,
        x.shape,
        tuple(None if seq is None else seq.stride() for seq in sequences),
        weights.w.shape[1],
        torch.get_num_threads(),
    )
    tensors, walks = Tensors(dtype), call.walks
    addresses = PMSNStepBackTensors(
        tensors.steps_at(gs, walks["gs"]),
        tensors.steps_at(gy, walks["gy"]),
        tensors.steps_at(gm, walks["gm"]),
        tensors.complex_at(grads.z),
        tensors.steps_at(x, walks["x"]),
        tensors.steps_at(total, walks["slope"]),
        tensors.at(state.r),
        tensors.modes_at(state.z),
        tensors.complex_at(weights.e),
        tensors.complex_at(weights.w),
        tensors.at(weights.d),
        tensors.steps_to(gx, walks["out"]),
        tensors.to(gz0),
        *(tensors.to(part) for part in made),
    )
    call.prepared.run(addresses, tensors)
    return made


class PMSNSingle:
    """Contiguous steps of one shape with lanes [L, C]: what calls find out, found out once.

    Inputs are plain tensors on the CPU, contiguous and of dtypes that belong together.
    """

    def __init__(
        self, settings: PMSNSettings, shape: Shape, lanes: tuple[int, int], modes: int, dtype: torch.dtype
    ) -> None:
        whole, threads = (1, *lanes, 1), torch.get_num_threads()
        stride = torch.empty(whole, device="meta").stride()
        z_shape, z_dtype = (*shape, modes), dtype.to_complex()
        self._states, self._grads = Recycled(z_shape, z_dtype), Recycled(z_shape, z_dtype)
        self._forward = _prepare(settings, dtype, whole, (stride, stride), modes, threads).prepared
        strides = (stride,) * len(SEQUENCES)
        self._backward = _prepare_back(settings, dtype, whole, strides, modes, threads).prepared

    def forward(
        self, x: Tensor, state: PMSNState, weights: PMSNWeights, membrane: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Spikes, the next residual and hidden state, the membrane if asked for."""
        (r, z), (e, w, d) = state, weights
        s, r_last, z_last, m = torch.empty_like(x), torch.empty_like(r), self._states.new(), None
        if membrane:
            m = torch.empty_like(x)
        read = x.data_ptr(), r.data_ptr(), z.data_ptr(), e.data_ptr(), w.data_ptr(), d.data_ptr()
        written = s.data_ptr(), 0, 0 if m is None else m.data_ptr(), r_last.data_ptr(), z_last.data_ptr()
        self._forward.run((*read, *written), None)
        return s, r_last, z_last, m

    def backward(
        self,
        grads: PMSNGrads,
        x: Tensor,
        state: PMSNState,
        weights: PMSNWeights,
        slopes: Tensor | None,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor | None, PMSNWeights]:
        """Gradients to the input, the hidden state and the weights (None: not ``wanted``)."""
        given = grads.s, grads.m, grads.z, slopes
        gs, gm, gz, slopes = (None if g is None else g.resolve_neg().contiguous() for g in given)
        state_grad, weights_grad = wanted
        (r, z), (e, w, d) = state, weights
        gx, gz0 = torch.empty_like(x), self._grads.new() if state_grad else None
        made = [torch.empty_like(part) for part in weights] if weights_grad else []
        slopes_at = 0 if slopes is None else slopes.data_ptr()
        read = x.data_ptr(), slopes_at, r.data_ptr(), z.data_ptr(), e.data_ptr(), w.data_ptr(), d.data_ptr()
        at = [0 if g is None else g.data_ptr() for g in (gs, None, gm, gz)]
        into = gx.data_ptr(), 0 if gz0 is None else gz0.data_ptr()
        targets = [part.data_ptr() for part in made] or [0, 0, 0]
        self._backward.run((*at, *read, *into, *targets), None)
        return gx, gz0, PMSNWeights(*made) if weights_grad else PMSNWeights(None, None, None)  # type: ignore[arg-type]
