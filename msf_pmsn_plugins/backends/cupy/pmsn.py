"""PMSN on CUDA: which kernels, with which macros and geometry, on which memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...settings import PMSNSettings
from ...tensors import PMSNGrads, PMSNState, PMSNWeights, Slopes, state_dtype
from ..device import Steps, as_laid_out, empty, parts, plain, steps_of
from . import launch
from .arguments import SLOPES, check, element, packed
from .compile import Kernel, Macros, variant, words
from .geometry import THREADS, Chunks, chunks_of, gather_of

__all__ = ["KNOWS", "pmsn_backward", "pmsn_forward"]

KNOWS = frozenset(
    [*words("soma.cuh", "reset"), *words("surrogate.cuh", "surrogate"), "membranes out", "residuals out"]
)
MODES_AT_ONCE = 4  # whose sums for the parameters fit the registers beside one another


def pmsn_forward(
    x_seq: Tensor, state: PMSNState, weights: PMSNWeights, lengths: Tensor | None, settings: PMSNSettings
) -> tuple[Tensor, Tensor, Tensor, PMSNState]:
    """Spikes, the drives of the soma and its membranes (if kept), the final state."""
    dtype = state_dtype(x_seq.dtype)
    check(x_seq, dtype, **state._asdict(), **weights._asdict(), lengths=lengths)
    s_seq = empty(x_seq.shape, x_seq)
    y_seq = empty(x_seq.shape if settings.keep_drive else 0, x_seq, dtype)
    m_seq = empty(x_seq.shape if settings.keep_membrane else 0, x_seq, dtype)
    r_seq = empty((*x_seq.shape[:1], *state.r.shape), state.r) if settings.keep_residual else None
    last = PMSNState(
        state.r.clone(memory_format=torch.contiguous_format),
        state.z.resolve_conj().clone(memory_format=torch.contiguous_format),
    )
    if x_seq.numel():
        membranes = m_seq if settings.keep_membrane else None
        x = steps_of(x_seq)
        state, weights = PMSNState(*map(plain, state)), PMSNWeights(*map(plain, weights))
        call = _call("pmsn_forward.cu", x_seq, state.z.shape[-1], lengths, settings)
        if call.chunks.count == 1:
            kept = (y_seq if settings.keep_drive else None, membranes, r_seq)
            tensors = (x.seq, *state, *weights, call.lengths, s_seq, *kept, *last)
            call.each("pmsn_forward", call.lanes, *tensors, *call.shape, x.distance, settings.v_threshold)
        else:
            drives = y_seq if settings.keep_drive else _in_place(s_seq, dtype)
            starts = empty((call.chunks.count, *state.z.shape), state.z)
            call.walk(x, weights, None, ends=starts)
            call.carry(starts, state.z, weights, end=last.z)
            call.walk(x, weights, starts, drives=drives)
            soma = (drives, state.r, call.lengths, s_seq, membranes, r_seq, last.r)
            call.each("pmsn_soma", call.lanes, *soma, *call.columns, settings.v_threshold)
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
    given = {f"g{name}": grad for name, grad in grads._asdict().items() if name != "s"}
    check(x_seq, state_dtype(x_seq.dtype), **state._asdict(), **weights._asdict(), **given, lengths=lengths)
    check(x_seq, x_seq.dtype, gs=grads.s)
    cumulative, state_grad = settings.reset_mode == "cumulative", settings.state_grad
    gr0 = empty(state.r.shape, state.r) if cumulative else state.r.new_zeros(state.r.shape)
    gz0 = empty(state.z.shape if state_grad else 0, state.z)
    weights_grad = PMSNWeights(*(empty(weight.shape, weight) for weight in weights))
    if x_seq.numel() == 0:
        gr0 = torch.zeros_like(gr0) if grads.r is None or not cumulative else gr0.copy_(grads.r)
        gz0 = torch.zeros_like(gz0) if grads.z is None or not state_grad else gz0.copy_(grads.z)
        zeros = PMSNWeights(*(grad.zero_() for grad in weights_grad))
        return torch.empty_like(x_seq), PMSNState(gr0, gz0), zeros
    backward = _backward(grads, x_seq, state, weights, lengths, slopes, settings)
    pieces = backward.pieces(gr0, gz0 if state_grad else None)
    partial = backward.gather(pieces)
    backward.adjoint(pieces.gz_ends, gz0 if state_grad and backward.call.chunks.count == 1 else None)
    backward.parameters(partial, weights_grad)
    return as_laid_out(backward.gx_seq, x_seq), PMSNState(gr0, gz0), weights_grad


def _in_place(seq: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for ``seq`` before its rounding: its own, if that is none."""
    return seq if seq.dtype == dtype else empty(seq.shape, seq, dtype)


@dataclass(frozen=True)
class _Call:
    """What the kernels of one call have in common."""

    file: str
    macros: Macros
    where: Tensor
    lengths: Tensor | None
    chunks: Chunks
    steps: int
    leads: int
    channels: int
    positions: int

    @property
    def lanes(self) -> int:
        return self.leads * self.channels * self.positions

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.steps, self.lanes, self.channels, self.positions

    @property
    def columns(self) -> tuple[int, int, int]:
        """The shape as the soma alone sees it."""
        return self.steps, self.lanes, self.channels * self.positions

    @property
    def cut(self) -> tuple[int, int]:
        return self.chunks.span, self.chunks.count

    def launch(self, name: str, blocks: int, threads: tuple[int, int], *args: Any) -> None:
        kernel = Kernel(self.file, name, self.macros)
        launch.device.launch(kernel, self.where, blocks, threads, packed(args, self.where.dtype))

    def each(self, name: str, count: int, *args: Any) -> None:
        """A thread for each of ``count`` lanes, or chunks of lanes."""
        self.launch(name, parts(count, THREADS), (THREADS, 1), *args)

    def walk(
        self,
        x: Steps,
        weights: PMSNWeights,
        starts: Tensor | None,
        ends: Tensor | None = None,
        p_ends: Tensor | None = None,
        lost: Tensor | None = None,
        drives: Tensor | None = None,
    ) -> None:
        """All chunks at once, each from its part of ``starts`` (None: zero)."""
        tensors = (x.seq, starts, *weights, self.lengths, ends, p_ends, lost, drives)
        self.each("pmsn_chunk", self.lanes * self.chunks.count, *tensors, *self.shape, *self.cut, x.distance)

    def carry(
        self,
        chunk_ends: Tensor,
        given: Tensor | None,
        weights: PMSNWeights,
        end: Tensor | None = None,
        lost: Tensor | None = None,
        back: bool = False,
    ) -> None:
        """From what each chunk ends with to what it begins with, in place; ``back``: as gradients go."""
        tensors = (chunk_ends, given, weights.e, self.lengths, end, lost)
        self.each("pmsn_carry", self.lanes, *tensors, *self.shape, *self.cut, np.int32(back))


def _call(
    file: str, x: Tensor, modes: int, lengths: Tensor | None, settings: PMSNSettings, more: Macros = ()
) -> _Call:
    """The call for an input ``x`` [T, L, C, K]; raises where no kernel does what the settings ask for."""
    reset = settings.reset_mode
    if settings.fixed and reset != "floor":
        raise ValueError(f"a fixed-point residual needs reset_mode 'floor', got {reset!r}")
    io = element(x.dtype)
    chunks = chunks_of(x, modes, settings.fixed)
    macros: Macros = (
        ("IO", io),
        ("MODES", modes),
        ("RESET", variant("soma.cuh", "reset", "fixed" if settings.fixed else reset)),
        ("BURST", variant("soma.cuh", "burst", settings.burst or "off")),
        ("LENGTHS", int(lengths is not None)),
        ("CHUNKED", int(chunks.count > 1)),
        ("THREADS", THREADS),
        *more,
    )
    return _Call(file, macros, x, plain(lengths), chunks, *x.shape)


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
    x: Steps
    gs: Steps
    gy: Steps
    gm: Steps
    gr: Tensor | None
    gz: Tensor | None
    state: PMSNState
    weights: PMSNWeights
    fire: tuple[float, float, float]  # the threshold and the constants of the surrogate
    groups: int  # of modes
    fused: bool  # the gather makes the gradients of the drives
    g_seq: Tensor  # the gradients of the drives; the memory of gx_seq, if that is no half
    gx_seq: Tensor

    @property
    def given(self) -> tuple[Tensor | None, ...]:
        """The incoming gradients of the soma."""
        return self.gs.seq, self.gy.seq, self.gm.seq

    @property
    def distances(self) -> tuple[int, int, int]:
        """Between the steps of them."""
        return self.gs.distance, self.gy.distance, self.gm.distance

    def pieces(self, gr0: Tensor, gz0: Tensor | None) -> _Pieces:
        """Make the gradients of the drives (unless fused), and what the next walks begin with."""
        if self.call.chunks.count > 1:
            return self._chunks(gr0, gz0)
        if not self.fused:
            call, distances = self.call, (*self.distances, self.x.distance)
            inputs = (*self.given, self.gr, self.x.seq, *self.state, *self.weights)
            tensors = (*inputs, call.lengths, self.g_seq, gr0)
            call.each("pmsn_drive", call.lanes, *tensors, *call.shape, *distances, *self.fire)
        return _Pieces(self.state.z, None, self.gz, None)

    def _chunks(self, gr0: Tensor, gz0: Tensor | None) -> _Pieces:
        call, z = self.call, self.state.z
        starts, p_starts, gz_ends = (empty((call.chunks.count, *z.shape), z) for _ in range(3))
        lost = empty((call.chunks.count, *self.state.r.shape), z, torch.int64)
        call.walk(self.x, self.weights, None, ends=starts, lost=lost)
        call.carry(starts, z, self.weights, lost=lost)
        call.walk(self.x, self.weights, starts, p_ends=p_starts, lost=lost, drives=self.g_seq)
        call.carry(p_starts, None, self.weights)
        tensors = (*self.given, self.gr, self.state.r, call.lengths, self.g_seq, gr0)
        call.each("pmsn_soma", call.lanes, *tensors, *call.columns, *self.distances, *self.fire)
        self.adjoint(None, gz_ends)
        call.carry(gz_ends, self.gz, self.weights, end=gz0, back=True)
        return _Pieces(starts, p_starts, gz_ends, lost)

    def gather(self, pieces: _Pieces) -> Tensor:
        """The sums for the weights, as the blocks leave them."""
        call, modes = self.call, self.state.z.shape[-1]
        blocks = gather_of(call.leads * call.chunks.count, call.channels * call.positions)
        sums = 4 * parts(modes, self.groups) + 1
        partial = empty((blocks.rows, self.groups, sums, call.channels, call.positions), self.state.r)
        inputs = (*self.given, self.gz, self.x.seq, self.state.r, pieces.starts, *self.weights)
        tensors = (*inputs, call.lengths, pieces.p_starts, pieces.lost, self.g_seq, partial)
        counts = (call.steps, call.leads, call.channels, call.positions, *call.cut, blocks.rows)
        numbers = (*counts, *self.distances, self.x.distance, *self.fire)
        call.launch("pmsn_gather", blocks.blocks * self.groups, blocks.threads, *tensors, *numbers)
        return partial

    def adjoint(self, gz_ends: Tensor | None, gz0: Tensor | None) -> None:
        """Back through time: gradients of the drives to those of x, and of each piece's end to its start."""
        tensors = (self.g_seq, self.gx_seq, gz_ends, *self.weights, self.call.lengths, gz0)
        count = self.call.lanes * self.call.chunks.count
        self.call.each("pmsn_adjoint", count, *tensors, *self.call.shape, *self.call.cut)

    def parameters(self, partial: Tensor, out: PMSNWeights) -> None:
        """Add up the sums, a block for each channel."""
        call = self.call
        counts = (len(partial), call.channels, call.positions)
        call.launch("pmsn_parameters", call.channels, (THREADS, 1), partial, *out, *counts)


def _backward(
    grads: PMSNGrads,
    x_seq: Tensor,
    state: PMSNState,
    weights: PMSNWeights,
    lengths: Tensor | None,
    slopes: Slopes | None,
    settings: PMSNSettings,
) -> _Backward:
    """Everything in one piece, and the macros of the backward."""
    modes = state.z.shape[-1]
    # A missing gradient is one step of zeros, read again and again.
    gs_seq = x_seq.new_zeros(state.r.shape).expand(x_seq.shape) if grads.s is None else grads.s
    gs_seq = gs_seq if slopes is None else gs_seq * slopes.total  # in the dtype of the slopes
    groups = max(1, parts(modes, MODES_AT_ONCE))
    surrogate = settings.surrogate or "rectangular"  # with slopes none is used
    chunked = chunks_of(x_seq, modes, settings.fixed).count > 1
    fused = groups == 1 and settings.reset_mode != "cumulative" and not chunked
    macros = (
        ("SURROGATE", variant("surrogate.cuh", "surrogate", surrogate)),
        ("SLOPES", int(slopes is not None)),
        ("GRAD_DRIVE", int(grads.y is not None)),
        ("GRAD_MEMBRANE", int(grads.m is not None)),
        ("GROUPS", groups),
        ("FUSED", int(fused)),
    )
    gx_seq = empty(x_seq.shape, x_seq)
    return _Backward(
        call=_call("pmsn_backward.cu", x_seq, modes, lengths, settings, macros),
        x=steps_of(x_seq),
        gs=steps_of(gs_seq),
        gy=steps_of(grads.y),
        gm=steps_of(grads.m),
        gr=plain(grads.r),
        gz=plain(grads.z),
        state=PMSNState(*map(plain, state)),
        weights=PMSNWeights(*map(plain, weights)),
        fire=(settings.v_threshold, *SLOPES[surrogate](settings.width)),
        groups=groups,
        fused=fused,
        g_seq=_in_place(gx_seq, state.r.dtype),
        gx_seq=gx_seq,
    )
