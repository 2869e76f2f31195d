"""PMSN by Triton: which kernels, with which settings, on which memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...settings import PMSNSettings
from ...tensors import PMSNGrads, PMSNState, PMSNWeights, Slopes, state_dtype
from ..device import Steps, as_laid_out, empty, plain, steps_of
from . import launch
from .arguments import check, table
from .config import CARRY, WALK, Chunks, for_gather, for_modes, for_time, power_of_two
from .kernels import soma, surrogates
from .kernels.pmsn_adjoint import pmsn_adjoint
from .kernels.pmsn_chunks import pmsn_carry, pmsn_chunk
from .kernels.pmsn_drive import pmsn_drive
from .kernels.pmsn_forward import pmsn_forward as forward_kernel
from .kernels.pmsn_forward import pmsn_soma
from .kernels.pmsn_gather import pmsn_gather, pmsn_weights

__all__ = ["KNOWS", "pmsn_backward", "pmsn_forward"]

KNOWS = frozenset(
    [
        *(f"reset {name!r}" for name in soma.RESETS),
        *(f"surrogate {name!r}" for name in surrogates.CONSTANTS),
        *("membranes out", "residuals out"),
    ]
)
ADDING = 256  # sums that a program adds at once


def pmsn_forward(
    x_seq: Tensor, state: PMSNState, weights: PMSNWeights, lengths: Tensor | None, settings: PMSNSettings
) -> tuple[Tensor, Tensor, Tensor, PMSNState]:
    """Spikes, the drives of the soma and its membranes (if kept), the final state (or with it the residual of
    every step, if kept).

    Half-precision ``x_seq`` with a float32 state gives half-precision spikes; drives and membranes stay float32.
    """
    real = state_dtype(x_seq.dtype)
    check(x_seq, real, **state._asdict(), **weights._asdict(), lengths=lengths)
    s_seq = empty(x_seq.shape, x_seq)
    y_seq = empty(x_seq.shape if settings.keep_drive else 0, x_seq, real)
    m_seq = empty(x_seq.shape if settings.keep_membrane else 0, x_seq, real)
    r_seq = empty((*x_seq.shape[:1], *state.r.shape), state.r) if settings.keep_residual else None
    last = PMSNState(
        state.r.clone(memory_format=torch.contiguous_format),
        state.z.resolve_conj().clone(memory_format=torch.contiguous_format),
    )
    call = _Call.of(x_seq, state, weights, lengths, settings)
    if x_seq.numel():
        membranes = m_seq if settings.keep_membrane else None
        if call.chunks.count == 1:
            call.forward(s_seq, y_seq if settings.keep_drive else None, membranes, r_seq, last)
        else:
            drives = y_seq if settings.keep_drive else empty(x_seq.shape, x_seq, real)
            call.forward_in_chunks(s_seq, drives, membranes, r_seq, last)
    y_seq = as_laid_out(y_seq, x_seq) if settings.keep_drive else y_seq
    m_seq = as_laid_out(m_seq, x_seq) if settings.keep_membrane else m_seq
    last = last if r_seq is None else last._replace(r=r_seq)
    return as_laid_out(s_seq, x_seq), y_seq, m_seq, last


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
    """Gradients to ``x_seq``, the state and the weights; the residual carries one in mode ``"cumulative"`` only.

    Without ``settings.state_grad`` that of ``z`` is empty. ``y_seq`` is not read. The sums over lanes and steps are
    added in an order that depends on the shape alone.
    """
    real = state_dtype(x_seq.dtype)
    check(x_seq, real, **state._asdict(), **weights._asdict(), lengths=lengths)
    check(x_seq, real, gy=grads.y, gm=grads.m, gr=grads.r, gz=grads.z)
    check(x_seq, gs=grads.s)
    cumulative, state_grad = settings.reset_mode == "cumulative", settings.state_grad
    gr0 = empty(state.r.shape, state.r) if cumulative else state.r.new_zeros(state.r.shape)
    gz0 = empty(state.z.shape if state_grad else 0, state.z)
    weights_grad = PMSNWeights(*(empty(weight.shape, weight) for weight in weights))
    call = _Call.of(x_seq, state, weights, lengths, settings)
    if x_seq.numel() == 0:
        gr0 = torch.zeros_like(gr0) if grads.r is None or not cumulative else gr0.copy_(grads.r)
        gz0 = torch.zeros_like(gz0) if grads.z is None or not state_grad else gz0.copy_(grads.z)
        zeros = PMSNWeights(*(grad.zero_() for grad in weights_grad))
        return torch.empty_like(x_seq), PMSNState(gr0, gz0), zeros
    backward = _Backward.of(call, grads, x_seq, slopes, settings)
    pieces = backward.pieces(gr0, gz0 if state_grad else None)
    partial = backward.gather(pieces)
    chunked = call.chunks.count > 1
    backward.adjoint(backward.gx_seq, pieces.gz_ends, gz0 if state_grad and not chunked else None)
    channels, sums = call.channels, partial.shape[1]
    args = (partial, *map(_pairs, weights_grad), len(partial), channels, call.positions)
    launch.run(pmsn_weights, x_seq, (channels, sums), 4, args, {"COUNT": call.modes, "BLOCK": ADDING})
    return as_laid_out(backward.gx_seq, x_seq), PMSNState(gr0, gz0), weights_grad


@dataclass(frozen=True)
class _Call:
    """What the kernels of one call have in common."""

    x: Steps
    state: PMSNState
    weights: PMSNWeights
    lengths: Tensor | None
    numbers: Tensor
    chunks: Chunks
    reset: str
    burst: str
    steps: int
    leads: int
    channels: int
    positions: int

    @classmethod
    def of(
        cls,
        x_seq: Tensor,
        state: PMSNState,
        weights: PMSNWeights,
        lengths: Tensor | None,
        settings: PMSNSettings,
    ) -> _Call:
        """The call for an input ``x_seq`` [T, L, C, K]."""
        modes, reset = state.z.shape[-1], settings.reset_mode
        if settings.fixed and reset != "floor":
            raise ValueError(f"a fixed-point residual needs reset_mode 'floor', got {reset!r}")
        p, q = surrogates.CONSTANTS[settings.surrogate or "rectangular"](settings.width)
        lanes, device = max(1, state.r.numel()), launch.device_of(x_seq)
        return cls(
            x=steps_of(x_seq),
            state=PMSNState(*map(_pairs, state)),
            weights=PMSNWeights(*map(_pairs, weights)),
            lengths=plain(lengths),
            numbers=table((settings.v_threshold, p, q), state.r.dtype, x_seq.device),
            chunks=for_time(len(x_seq), lanes, modes, settings.fixed, device),
            reset="fixed" if settings.fixed else reset,
            burst=settings.burst,
            steps=x_seq.shape[0],
            leads=x_seq.shape[1],
            channels=x_seq.shape[2],
            positions=x_seq.shape[3],
        )

    @property
    def modes(self) -> int:
        return self.state.z.shape[-2]

    @property
    def lanes(self) -> int:
        return self.leads * self.channels * self.positions

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.steps, self.lanes, self.channels, self.positions

    @property
    def cut(self) -> tuple[int, int]:
        return self.chunks.span, self.chunks.count

    @property
    def rows(self) -> dict[str, int]:
        """The modes as rows of a tile."""
        return {"COUNT": self.modes, "MODES": power_of_two(self.modes)}

    @property
    def soma(self) -> dict[str, str]:
        return {"RESET": self.reset, "BURST": self.burst}

    def each(
        self, kernel: Any, count: int, args: Iterable[Any], settings: launch.Settings, alone: bool = False
    ) -> None:
        """A thread, or several, for each of ``count`` lanes or chunks of lanes; ``alone``: the soma without modes."""
        r = self.state.r
        rows, held = power_of_two(0 if alone else self.modes), CARRY if kernel is pmsn_carry else WALK
        config = for_modes(count, rows, held[r.element_size()], launch.device_of(r))
        shape = {"BLOCK": config.block}
        if kernel is not pmsn_carry:
            shape["STAGES"] = config.stages
        launch.run(kernel, r, (config.programs(count),), config.warps, args, {**settings, **shape})

    def forward(
        self,
        s_seq: Tensor,
        y_seq: Tensor | None,
        m_seq: Tensor | None,
        r_seq: Tensor | None,
        last: PMSNState,
    ) -> None:
        tensors = (self.x.seq, *self.state, *self.weights, self.lengths, self.numbers)
        written = (s_seq, y_seq, m_seq, r_seq, last.r, _pairs(last.z))
        args = (*tensors, *written, *self.shape, self.x.distance)
        self.each(forward_kernel, self.lanes, args, {**self.rows, **self.soma})

    def forward_in_chunks(
        self,
        s_seq: Tensor,
        drives: Tensor,
        m_seq: Tensor | None,
        r_seq: Tensor | None,
        last: PMSNState,
    ) -> None:
        z = self.state.z
        starts = empty((self.chunks.count, *z.shape), z)
        self.walk(None, ends=starts)
        self.carry(starts, z, end=_pairs(last.z))
        self.walk(starts, drives=drives)
        tensors = (drives, self.state.r, self.lengths, self.numbers, s_seq, m_seq, r_seq, last.r)
        counts = (self.steps, self.lanes, self.channels * self.positions)
        self.each(pmsn_soma, self.lanes, (*tensors, *counts), self.soma, alone=True)

    def walk(
        self,
        starts: Tensor | None,
        ends: Tensor | None = None,
        p_ends: Tensor | None = None,
        lost: Tensor | None = None,
        drives: Tensor | None = None,
    ) -> None:
        """All chunks at once, each from its part of ``starts`` (None: zero)."""
        tensors = (self.x.seq, starts, *self.weights, self.lengths, ends, p_ends, lost, drives)
        counts = (*self.shape, self.x.distance, *self.cut)
        count = self.lanes * self.chunks.count
        self.each(pmsn_chunk, count, (*tensors, *counts), {**self.rows, "BACKWARD": lost is not None})

    def carry(
        self,
        chunk_ends: Tensor,
        given: Tensor | None,
        end: Tensor | None = None,
        lost: Tensor | None = None,
        back: bool = False,
    ) -> None:
        """From what each chunk ends with to what it begins with, in place; ``back``: as gradients go."""
        tensors = (chunk_ends, given, self.weights.e, self.lengths, end, lost)
        args = (*tensors, *self.shape, *self.cut)
        self.each(pmsn_carry, self.lanes, args, {**self.rows, "BACK": back})


def _pairs(tensor: Tensor) -> Tensor:
    """In one piece; complex numbers as pairs of reals, which is what a kernel's pointer can name."""
    tensor = plain(tensor)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


@dataclass(frozen=True)
class _Pieces:
    """What the walks over whole lanes, or over the chunks of them, begin with."""

    starts: Tensor  # states
    p_starts: Tensor | None  # their sensitivities dz/de (None: zero)
    gz_ends: Tensor | None  # gradients of the states that they end with (None: zero)
    lost: Tensor | None  # with chunks: the step from which on a lane is NaN


@dataclass(frozen=True)
class _Backward:
    """The walks of one backward."""

    call: _Call
    gs: Steps
    gy: Steps
    gm: Steps
    gr: Tensor | None
    gz: Tensor | None
    surrogate: str
    g_seq: Tensor  # gradients of the drives
    gx_seq: Tensor  # the same memory, unless x is in half precision

    @classmethod
    def of(
        cls, call: _Call, grads: PMSNGrads, x_seq: Tensor, slopes: Slopes | None, settings: PMSNSettings
    ) -> _Backward:
        # A missing gradient is one step of zeros, read again and again.
        gs_seq = x_seq.new_zeros(x_seq.shape[1:]).expand(x_seq.shape) if grads.s is None else grads.s
        gs_seq = gs_seq if slopes is None else gs_seq * slopes.total
        gx_seq, real = empty(x_seq.shape, x_seq), call.state.r.dtype
        return cls(
            call=call,
            gs=steps_of(gs_seq),
            gy=steps_of(grads.y),
            gm=steps_of(grads.m),
            gr=plain(grads.r),
            gz=None if grads.z is None else _pairs(grads.z),
            surrogate=settings.surrogate if slopes is None else "",
            g_seq=gx_seq if x_seq.dtype == real else empty(x_seq.shape, x_seq, real),
            gx_seq=gx_seq,
        )

    @property
    def fused(self) -> bool:
        """Whether the gather makes the gradients of the drives."""
        return self.call.reset != "cumulative" and self.call.chunks.count == 1

    @property
    def given(self) -> tuple[Tensor | None, ...]:
        """The incoming gradients of the soma."""
        return self.gs.seq, self.gy.seq, self.gm.seq

    @property
    def distances(self) -> tuple[int, int, int, int]:
        """Between the steps of x and of them."""
        return self.call.x.distance, self.gs.distance, self.gy.distance, self.gm.distance

    def pieces(self, gr0: Tensor, gz0: Tensor | None) -> _Pieces:
        """Make the gradients of the drives (unless fused), and what the next walks begin with."""
        if self.call.chunks.count > 1:
            return self._chunks(gr0, gz0)
        if not self.fused:
            self._drive(gr0, chunked=False)
        return _Pieces(self.call.state.z, None, self.gz, None)

    def _drive(self, gr0: Tensor, chunked: bool) -> None:
        call = self.call
        inputs = (*self.given, self.gr, call.x.seq, *call.state, *call.weights, call.lengths, call.numbers)
        args = (*inputs, self.g_seq, gr0, *call.shape, *self.distances)
        settings: launch.Settings = {
            **call.rows,
            **call.soma,
            "SURROGATE": self.surrogate,
            "CHUNKED": chunked,
        }
        call.each(pmsn_drive, call.lanes, args, settings, alone=chunked)

    def _chunks(self, gr0: Tensor, gz0: Tensor | None) -> _Pieces:
        call, z = self.call, self.call.state.z
        starts, p_starts, gz_ends = (empty((call.chunks.count, *z.shape), z) for _ in range(3))
        lost = empty((call.chunks.count, *call.state.r.shape), z, torch.int64)
        call.walk(None, ends=starts, lost=lost)
        call.carry(starts, z, lost=lost)
        call.walk(starts, p_ends=p_starts, lost=lost, drives=self.g_seq)
        call.carry(p_starts, None)
        self._drive(gr0, chunked=True)
        self.adjoint(None, None, gz_ends)
        call.carry(gz_ends, self.gz, end=None if gz0 is None else _pairs(gz0), back=True)
        return _Pieces(starts, p_starts, gz_ends, lost)

    def gather(self, pieces: _Pieces) -> Tensor:
        """The sums for the weights, as the programs leave them: [rows, 4 * modes + 1, C, K]."""
        call = self.call
        leads, columns = call.leads * call.chunks.count, call.channels * call.positions
        r = call.state.r
        blocks = for_gather(leads, columns, call.rows["MODES"], r.element_size(), launch.device_of(r))
        partial = empty((blocks.rows, 4 * call.modes + 1, call.channels, call.positions), r)
        inputs = (
            *self.given,
            self.gz,
            call.x.seq,
            r,
            pieces.starts,
            *call.weights,
            call.lengths,
            call.numbers,
        )
        counts = (
            call.steps,
            call.leads,
            call.channels,
            call.positions,
            *self.distances,
            blocks.rows,
            *call.cut,
        )
        tensors = (*inputs, pieces.p_starts, pieces.lost, self.g_seq, partial)
        settings: launch.Settings = {
            **call.rows,
            **call.soma,
            "SURROGATE": self.surrogate,
            "FUSED": self.fused,
            "CHUNKED": call.chunks.count > 1,
            "HIGH": blocks.high,
            "WIDE": blocks.wide,
            "STAGES": blocks.config.stages,
        }
        grid = (blocks.across, blocks.rows)
        launch.run(pmsn_gather, r, grid, blocks.config.warps, (*tensors, *counts), settings)
        return partial

    def adjoint(self, gx_seq: Tensor | None, gz_ends: Tensor | None, gz0: Tensor | None) -> None:
        """Back through time: gradients of the drives to those of x, and of each piece's end to its start."""
        call = self.call
        starts = None if gz0 is None else _pairs(gz0)
        tensors = (self.g_seq, gz_ends, *call.weights, call.lengths, gx_seq, starts)
        count, chunked = call.lanes * call.chunks.count, call.chunks.count > 1
        args = (*tensors, *call.shape, *call.cut)
        call.each(pmsn_adjoint, count, args, {**call.rows, "CHUNKED": chunked})
