"""PMSN on the CPU, fused over time and compiled: tensors in, tensors out, no autograd outside."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...settings import PMSNSettings
from ...tensors import PMSNGrads, PMSNState, PMSNWeights, Slopes
from ..halves import widens
from . import kernels
from .kernels.calls import PMSNBackward, PMSNBackwardTensors, PMSNForward, PMSNForwardTensors
from .kernels.modes import BACKWARD_ROWS, FORWARD_ROWS
from .kernels.somas import SOMAS
from .kernels.surrogates import SURROGATES, Slope
from .launch import Prepared, Work, threads_for
from .memory import Tensors, Walk, ceil, check, gradient_like, like, new, ready, walk
from .pmsn_step import PMSNSingle, is_step, soma_fields, step_backward, step_forward

__all__ = ["KNOWS", "PMSNSingle", "pmsn_backward", "pmsn_forward"]

KNOWS = frozenset(
    [
        *(f"reset {name!r}" for name in SOMAS),
        *(f"surrogate {name!r}" for name in SURROGATES),
        "membranes out",
        "residuals out",
    ]
)

FAST_BYTES = 28 << 10  # of the first-level cache, for the scratch
FEW_TASKS = 4  # smaller tiles rather than fewer tasks
TASKS = 64  # about so many, whatever the number of threads: the order of sums must not depend on it
LEAST = 1 << 15  # lane steps of a task, to be worth gathering its coefficients
Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Tiles:
    """How the lanes [L, C, K] are cut into tasks; a function of shapes alone. The words are those of the kernels."""

    tile: int
    tiles: int
    groups: int
    units: int
    leap: int
    inner: int
    per_channel: int
    lanes: int
    scratch: int  # bytes of a thread
    sums_of_channel: int

    @classmethod
    def of(cls, shape: Shape, modes: int, itemsize: int, rows: int, totals: int, apart: bool) -> _Tiles:
        """For ``rows`` per mode and ``totals`` doubles per lane of scratch; ``apart``: a unit is one leading lane."""
        steps, lead, channels, tail = shape
        vector = 64 // itemsize
        inner = channels * tail
        per_lane = (rows * modes + 8) * itemsize
        most = max(1, min(256, FAST_BYTES // per_lane) // vector) * vector
        spread = max(32, ceil(lead * inner, FEW_TASKS))
        most = min(most, ceil(spread, vector) * vector)
        together = 1 if apart else max(1, min(lead, most // inner))
        leap = together * inner
        tile = ceil(ceil(leap, ceil(leap, most)), vector) * vector  # of about equal size
        tiles = ceil(leap, tile)
        units = ceil(lead, together)
        groups = max(1, min(units, TASKS // tiles, units * tile * steps // LEAST))
        scratch = tile * (per_lane + 8 * totals)
        return cls(tile, tiles, groups, units, leap, inner, tail, lead * inner, scratch, totals)

    def work(self, steps: int) -> Work:
        return Work(self.tiles * self.groups, self.scratch, threads_for(self.lanes * steps))

    @property
    def slots(self) -> int:
        """The most channels that a tile meets."""
        return min(self.inner // self.per_channel, (self.tile - 2) // self.per_channel + 2)

    @property
    def sums(self) -> Shape:
        """The shape of the sums for gradients of weights."""
        return self.tiles * self.groups, self.slots, self.sums_of_channel

    @property
    def fields(self) -> dict[str, int]:
        """The fields of a call."""
        names = ("tile", "groups", "units", "leap", "inner", "per_channel", "lanes")
        return {name: getattr(self, name) for name in names}


class _Call(NamedTuple):
    """What calls with the same settings and layouts share."""

    prepared: Prepared
    tiles: _Tiles
    walks: dict[str, Walk]


def _walks(shape: Shape, strides: dict[str, Shape | None]) -> tuple[dict[str, Walk], dict[str, int]]:
    """How sequences are walked, and the fields of a call that say so."""
    walks = {name: walk(shape, stride) for name, stride in strides.items()}
    fields = {f"{name}_step": seq.step for name, seq in walks.items()}
    return walks, fields | {f"{name}_row": seq.row for name, seq in walks.items()}


# ---------------------------------------------------------------- forward


@functools.lru_cache(1024)
def _prepare_forward(
    settings: PMSNSettings,
    dtype: torch.dtype,
    shape: Shape,
    strides: tuple[Shape, ...],
    modes: int,
    lengths: bool,
    threads: int,
) -> _Call:
    """For an input and outputs with these strides."""
    walks, fields = _walks(shape, dict(zip(("x", "out"), strides, strict=True)))
    apart = lengths or any(seq.apart for seq in walks.values())
    tiles = _Tiles.of(shape, modes, dtype.itemsize, FORWARD_ROWS, 0, apart)
    record = PMSNForward(**tiles.fields, **fields, **soma_fields(settings), steps=shape[0], modes=modes)
    return _Call(Prepared(kernels.pmsn_forward, dtype, record, tiles.work(shape[0])), tiles, walks)


@widens
def pmsn_forward(
    x_seq: Tensor, state: PMSNState, weights: PMSNWeights, lengths: Tensor | None, settings: PMSNSettings
) -> tuple[Tensor, Tensor, Tensor, PMSNState]:
    """Spikes [T, L, C, K], the drive of the soma, its membrane and the final state, for the op in
    ``neurons/pmsn/op.py``.
    """
    check(x_seq)
    dtype = x_seq.dtype
    s_seq = like(x_seq)
    y_seq = like(x_seq) if settings.keep_drive else new((0,), dtype)
    m_seq = like(x_seq) if settings.keep_membrane else new((0,), dtype)
    every = settings.keep_residual
    r_shape = (*x_seq.shape[:1], *state.r.shape) if every else state.r.shape
    last = PMSNState(new(r_shape, dtype), new(state.z.shape, dtype.to_complex()))
    if x_seq.numel() == 0:
        return s_seq, y_seq, m_seq, PMSNState(last.r.copy_(state.r), last.z.copy_(state.z))
    x_seq, tensors = ready(x_seq, dtype), Tensors(dtype)
    if is_step(x_seq.shape, lengths):
        step_forward(x_seq, state, weights, settings, (s_seq, y_seq, m_seq), last)
        return s_seq, y_seq, m_seq, last
    call = _prepare_forward(
        settings,
        dtype,
        x_seq.shape,
        (x_seq.stride(), s_seq.stride()),
        weights.w.shape[1],
        lengths is not None,
        torch.get_num_threads(),
    )
    addresses = PMSNForwardTensors(
        x=tensors.steps_at(x_seq, call.walks["x"]),
        r=tensors.at(state.r),
        z=tensors.modes_at(state.z),
        e=tensors.complex_at(weights.e),
        w=tensors.complex_at(weights.w),
        d=tensors.at(weights.d),
        s=tensors.steps_to(s_seq, call.walks["out"]),
        y=tensors.steps_to(y_seq, call.walks["out"]),
        m=tensors.steps_to(m_seq, call.walks["out"]),
        r_seq=tensors.to(last.r if every else None),
        r_last=tensors.to(None if every else last.r),
        z_last=tensors.to(last.z),
        lengths=tensors.at(lengths, torch.int64),
    )
    call.prepared.run(addresses, tensors)
    return s_seq, y_seq, m_seq, last


# ---------------------------------------------------------------- backward

SEQUENCES = "gs", "gy", "gm", "x", "slope", "out"


@functools.lru_cache(1024)
def _prepare_backward(
    settings: PMSNSettings,
    dtype: torch.dtype,
    shape: Shape,
    strides: tuple[Shape | None, ...],
    modes: int,
    lengths: bool,
    threads: int,
) -> _Call:
    """For sequences with these strides, in the order of :data:`SEQUENCES`."""
    walks, fields = _walks(shape, dict(zip(SEQUENCES, strides, strict=True)))
    apart = lengths or any(seq.apart for seq in walks.values())
    tiles = _Tiles.of(shape, modes, dtype.itemsize, BACKWARD_ROWS, 6 * modes + 1, apart)
    surrogate = Slope.of(settings.surrogate, settings.width)
    record = PMSNBackward(
        **tiles.fields,
        **fields,
        **soma_fields(settings),
        steps=shape[0],
        modes=modes,
        slots=tiles.slots,
        surrogate=surrogate.code,
        p=surrogate.p,
        q=surrogate.q,
    )
    return _Call(Prepared(kernels.pmsn_backward, dtype, record, tiles.work(shape[0])), tiles, walks)


@widens
def pmsn_backward(
    grads: PMSNGrads,
    x_seq: Tensor,
    y_seq: Tensor,
    state: PMSNState,
    weights: PMSNWeights,
    lengths: Tensor | None,
    slopes: Slopes | None,
    settings: PMSNSettings,
) -> tuple[Tensor, PMSNState, PMSNWeights]:
    """Gradients to ``x_seq``, the state and the weights; the residual has one in mode ``"cumulative"`` only.

    Without ``settings.state_grad`` that of ``z`` is empty.
    """
    check(x_seq)
    dtype = x_seq.dtype
    cumulative = settings.reset_mode == "cumulative"
    gx_seq = gradient_like(x_seq, dtype, grads.s)
    gz0 = new(state.z.shape if settings.state_grad else (0,), dtype.to_complex())
    gr0 = new(state.r.shape, dtype) if cumulative else torch.zeros(state.r.shape, dtype=dtype)
    if x_seq.numel() == 0:
        gr0 = gr0.copy_(grads.r) if cumulative and grads.r is not None else gr0.zero_()
        gz0 = gz0.zero_() if grads.z is None or not settings.state_grad else gz0.copy_(grads.z)
        return gx_seq, PMSNState(gr0, gz0), PMSNWeights(*map(torch.zeros_like, weights))
    if is_step(x_seq.shape, lengths) and not cumulative:
        named = settings if slopes is None else settings.but(surrogate="")
        made = step_backward(grads, x_seq, state, weights, slopes, named, (gx_seq, gz0))
        return gx_seq, PMSNState(gr0, gz0), made
    read = grads.s, grads.y, grads.m, x_seq, None if slopes is None else slopes.total
    gs, gy, gm, x, total = (None if seq is None else ready(seq, dtype) for seq in read)
    call = _prepare_backward(
        settings if slopes is None else settings.but(surrogate=""),
        dtype,
        x_seq.shape,
        tuple(None if seq is None else seq.stride() for seq in (gs, gy, gm, x, total, gx_seq)),
        weights.w.shape[1],
        lengths is not None,
        torch.get_num_threads(),
    )
    tensors, walks = Tensors(dtype), call.walks
    sums = torch.zeros(call.tiles.sums, dtype=torch.float64)
    addresses = PMSNBackwardTensors(
        gs=tensors.steps_at(gs, walks["gs"]),
        gy=tensors.steps_at(gy, walks["gy"]),
        gm=tensors.steps_at(gm, walks["gm"]),
        gr=tensors.at(grads.r if cumulative else None),
        gz=tensors.complex_at(grads.z),
        x=tensors.steps_at(x, walks["x"]),
        slope=tensors.steps_at(total, walks["slope"]),
        r=tensors.at(state.r),
        z=tensors.modes_at(state.z),
        e=tensors.complex_at(weights.e),
        w=tensors.complex_at(weights.w),
        d=tensors.at(weights.d),
        gx=tensors.steps_to(gx_seq, walks["out"]),
        gr0=tensors.to(gr0),
        gz0=tensors.to(gz0),
        sums=tensors.to(sums),
        lengths=tensors.at(lengths, torch.int64),
    )
    call.prepared.run(addresses, tensors)
    return gx_seq, PMSNState(gr0, gz0), _weight_gradients(sums.numpy(), call.tiles, weights)


def _weight_gradients(sums: Any, tiles: _Tiles, weights: PMSNWeights) -> PMSNWeights:
    """Sums of tasks [tiles * groups, slots, 6 modes + 1] -> gradients of the weights."""
    channels, modes = weights.w.shape
    sums = sums.reshape(tiles.tiles, tiles.groups, tiles.slots, -1).sum(1)
    total = np.zeros((channels + tiles.slots, sums.shape[-1]))
    for i, part in enumerate(sums):  # a tile that meets fewer channels leaves its last slots zero
        first = i * tiles.tile % tiles.inner // tiles.per_channel
        total[first : first + tiles.slots] += part
    total = total[:channels]
    gz, gp, gz_last = np.moveaxis(
        total[:, :-1].reshape(channels, modes, 3, 2).view(np.complex128)[..., 0], 2, 0
    )
    w = weights.w.detach().resolve_conj().numpy().astype(np.complex128)
    with np.errstate(all="ignore"):  # a gradient scaler that overflows is not news
        # dL/de = sum conj(w p) g + conj(p) dL/dz_last, dL/dw = sum conj(z) g, dL/dd = sum x g
        ge = np.conj(w * gp) + gz_last
    return PMSNWeights(
        torch.from_numpy(ge).to(weights.w.dtype),
        torch.from_numpy(np.conj(gz)).to(weights.w.dtype),
        torch.from_numpy(total[:, -1].copy()).to(weights.d.dtype),
    )
