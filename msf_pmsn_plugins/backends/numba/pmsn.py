"""PMSN on the CPU, fused over time and compiled: tensors in, tensors out, no autograd outside."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...settings import PMSNSettings
from ...tensors import PMSNGrads, PMSNState, PMSNWeights, Slopes
from . import kernels
from .kernels.calls import PMSNBackward, PMSNForward
from .kernels.modes import BACKWARD_ROWS, FORWARD_ROWS
from .kernels.somas import BURST_CODES, SOMA_CODES, SOMAS
from .kernels.surrogates import SURROGATES, Slope, exact_inverse
from .launch import Prepared, Work, known, launch, remember
from .memory import Memory, address, ceil, check, is_small, plain

__all__ = ["KNOWS", "pmsn_backward", "pmsn_forward"]

KNOWS = frozenset(
    [*(f"reset {name!r}" for name in SOMAS), *(f"surrogate {name!r}" for name in SURROGATES), "membranes out"]
)

FAST_BYTES = 28 << 10  # of the first-level cache, for the scratch
FEW_TASKS = 4  # smaller tiles rather than fewer tasks
TASKS = 64  # about so many, whatever the number of threads: the order of sums must not depend on it
LEAST = 1 << 15  # lane steps of a task, to be worth gathering its coefficients


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
    scratch: int  # bytes of a thread

    @classmethod
    @functools.lru_cache(256)
    def of(
        cls, shape: Sequence[int], modes: int, itemsize: int, rows: int, totals: int, apart: bool
    ) -> _Tiles:
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
        return cls(tile, tiles, groups, units, leap, inner, tail, tile * (per_lane + 8 * totals))

    @property
    def tasks(self) -> int:
        return self.tiles * self.groups

    def work(self, memory: Memory) -> Work:
        return Work(self.tasks, memory.lanes * memory.steps, self.scratch)

    @property
    def slots(self) -> int:
        """The most channels that a tile meets."""
        return min(self.inner // self.per_channel, (self.tile - 2) // self.per_channel + 2)

    def sums(self, weights: PMSNWeights) -> Tensor:
        """Memory for what each task sums for the weights of each channel that it meets."""
        return torch.zeros(self.tasks, self.slots, 6 * weights.w.shape[1] + 1, dtype=torch.float64)

    @property
    def sizes(self) -> dict[str, int]:
        """The fields of a call."""
        names = ("tile", "groups", "units", "leap", "inner", "per_channel")
        return {name: getattr(self, name) for name in names}


def _soma(settings: PMSNSettings) -> dict[str, Any]:
    """The fields of a call that say what the soma does."""
    if settings.fixed and settings.reset_mode != "floor":
        raise ValueError(f"fixed point belongs to reset_mode 'floor', got {settings.reset_mode!r}")
    return {
        "soma": SOMA_CODES["fixed" if settings.fixed else settings.reset_mode],
        "burst": BURST_CODES[settings.burst],
        "theta": settings.v_threshold,
        "inverse": exact_inverse(settings.v_threshold),
    }


def _plain(weights: PMSNWeights, dtype: torch.dtype) -> PMSNWeights:
    both = dtype.to_complex()
    return PMSNWeights(plain(weights.e, both), plain(weights.w, both), plain(weights.d, dtype))


def pmsn_forward(
    x_seq: Tensor, state: PMSNState, weights: PMSNWeights, lengths: Tensor | None, settings: PMSNSettings
) -> tuple[Tensor, Tensor, Tensor, PMSNState]:
    """Spikes [T, L, C, K], the drive of the soma, its membrane and the final state, for the op in
    ``neurons/pmsn/op.py``.
    """
    small = lengths is None and is_small(x_seq, *state, *weights)
    key = ("pmsn_forward", settings, x_seq.shape, x_seq.dtype, state.z.shape[3])
    if small and (prepared := known(key)):
        s_seq = torch.empty_like(x_seq)
        y_seq, m_seq = (  # each its own: an op's outputs must not be one tensor
            torch.empty_like(x_seq) if keep else x_seq.new_empty(0)
            for keep in (settings.keep_drive, settings.keep_membrane)
        )
        last = PMSNState(torch.empty_like(state.r), torch.empty_like(state.z))
        prepared(*map(address, (x_seq, *state, *weights, s_seq, y_seq, m_seq, *last)))
        return s_seq, y_seq, m_seq, last
    check(x_seq)
    memory = Memory(x_seq.shape, x_seq.dtype)
    weights = _plain(weights, x_seq.dtype)
    s_seq = memory.like(x_seq)
    y_seq = memory.like(x_seq) if settings.keep_drive else memory.new((0,))
    m_seq = memory.like(x_seq) if settings.keep_membrane else memory.new((0,))
    last = PMSNState(memory.new(state.r.shape), memory.new(state.z.shape, x_seq.dtype.to_complex()))
    if x_seq.numel() == 0:
        return s_seq, y_seq, m_seq, PMSNState(last.r.copy_(state.r), last.z.copy_(state.z))
    sequences = {**memory.sequence("x", x_seq), **memory.written(s_seq)}
    modes = weights.w.shape[1]
    apart = memory.apart or lengths is not None
    tiles = _Tiles.of(x_seq.shape, modes, x_seq.dtype.itemsize, FORWARD_ROWS, 0, apart)
    call = PMSNForward(
        **tiles.sizes,
        **sequences,
        **_soma(settings),
        lanes=memory.lanes,
        steps=memory.steps,
        modes=modes,
        r=memory.at(state.r),
        z=memory.modes_at(state.z),
        e=memory.complex_at(weights.e),
        w=memory.complex_at(weights.w),
        d=memory.at(weights.d),
        s=memory.to_sequence(s_seq),
        y=memory.to_sequence(y_seq),
        m=memory.to_sequence(m_seq),
        r_last=memory.to(last.r),
        z_last=memory.to(last.z),
        lengths=memory.at(lengths, torch.int64),
    )
    launch(kernels.pmsn_forward, call, tiles.work(memory), memory)
    if small:
        fields = ("x", "r", "z", "e", "w", "d", "s", "y", "m", "r_last", "z_last")
        remember(key, lambda: Prepared(kernels.pmsn_forward, call, tiles.work(memory), memory, fields))
    return s_seq, y_seq, m_seq, last


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
    given = (grads.s, grads.y, grads.m, grads.z)
    plain_call = lengths is None and slopes is None and settings.reset_mode != "cumulative"
    small = plain_call and is_small(x_seq, *given, *state, *weights)
    key = ("pmsn_backward", settings, x_seq.shape, x_seq.dtype, state.z.shape[3], *(g is None for g in given))
    if small and (prepared := known(key)):
        gx_seq, gr0 = torch.empty_like(x_seq), torch.zeros_like(state.r)
        gz0 = torch.empty_like(state.z) if settings.state_grad else state.z.new_empty(0)
        tiles = _backward_tiles(x_seq, weights, False)
        sums = tiles.sums(weights)
        prepared(*map(address, (*given, x_seq, *state, *weights, gx_seq, gr0, gz0, sums)))
        return gx_seq, PMSNState(gr0, gz0), _weight_gradients(sums.numpy(), tiles, weights)
    check(x_seq)
    memory = Memory(x_seq.shape, x_seq.dtype)
    weights = _plain(weights, x_seq.dtype)
    surrogate = Slope.of(settings.surrogate if slopes is None else "", settings.width)
    cumulative = settings.reset_mode == "cumulative"
    gx_seq = memory.like(x_seq)
    gz0 = memory.new(state.z.shape if settings.state_grad else (0,), x_seq.dtype.to_complex())
    gr0 = memory.new(state.r.shape) if cumulative else torch.zeros(state.r.shape, dtype=x_seq.dtype)
    if x_seq.numel() == 0:
        gr0 = gr0.copy_(grads.r) if cumulative and grads.r is not None else gr0.zero_()
        gz0 = gz0.zero_() if grads.z is None or not settings.state_grad else gz0.copy_(grads.z)
        return gx_seq, PMSNState(gr0, gz0), PMSNWeights(*map(torch.zeros_like, weights))
    sequences = {
        **memory.sequence("gs", grads.s),
        **memory.sequence("gy", grads.y),
        **memory.sequence("gm", grads.m),
        **memory.sequence("x", x_seq),
        **memory.sequence("slope", None if slopes is None else slopes.total),
        **memory.written(gx_seq),
    }
    modes = weights.w.shape[1]
    apart = memory.apart or lengths is not None
    tiles = _backward_tiles(x_seq, weights, apart)
    sums = tiles.sums(weights)
    call = PMSNBackward(
        **tiles.sizes,
        **sequences,
        **_soma(settings),
        lanes=memory.lanes,
        steps=memory.steps,
        modes=modes,
        slots=tiles.slots,
        gr=memory.at(grads.r if cumulative else None),
        gz=memory.complex_at(grads.z),
        r=memory.at(state.r),
        z=memory.modes_at(state.z),
        e=memory.complex_at(weights.e),
        w=memory.complex_at(weights.w),
        d=memory.at(weights.d),
        gx=memory.to_sequence(gx_seq),
        gr0=memory.to(gr0),
        gz0=memory.to(gz0),
        sums=memory.to(sums),
        lengths=memory.at(lengths, torch.int64),
        surrogate=surrogate.code,
        p=surrogate.p,
        q=surrogate.q,
    )
    launch(kernels.pmsn_backward, call, tiles.work(memory), memory)
    if small:
        fields = ("gs", "gy", "gm", "gz", "x", "r", "z", "e", "w", "d", "gx", "gr0", "gz0", "sums")
        remember(key, lambda: Prepared(kernels.pmsn_backward, call, tiles.work(memory), memory, fields))
    return gx_seq, PMSNState(gr0, gz0), _weight_gradients(sums.numpy(), tiles, weights)


def _backward_tiles(x_seq: Tensor, weights: PMSNWeights, apart: bool) -> _Tiles:
    modes = weights.w.shape[1]
    return _Tiles.of(x_seq.shape, modes, x_seq.dtype.itemsize, BACKWARD_ROWS, 6 * modes + 1, apart)


def _weight_gradients(sums: Any, tiles: _Tiles, weights: PMSNWeights) -> PMSNWeights:
    """Sums of tasks [tiles * groups, slots, 6 modes + 1] -> gradients of the weights."""
    channels, modes = weights.w.shape
    sums = sums.reshape(tiles.tiles, tiles.groups, tiles.slots, -1).sum(1)
    # A tile that meets fewer channels leaves its last slots zero.
    total = np.zeros((channels + tiles.slots, sums.shape[-1]))
    for i, part in enumerate(sums):
        first = i * tiles.tile % tiles.inner // tiles.per_channel
        total[first : first + tiles.slots] += part
    total = total[:channels]
    gz, gp, gz_last = np.moveaxis(
        total[:, :-1].reshape(channels, modes, 3, 2).view(np.complex128)[..., 0], 2, 0
    )
    with np.errstate(all="ignore"):  # a gradient scaler that overflows is not news
        # dL/de = sum conj(w p) g + conj(p) dL/dz_last, dL/dw = sum conj(z) g, dL/dd = sum x g
        ge = np.conj(weights.w.detach().numpy().astype(np.complex128) * gp) + gz_last
    return PMSNWeights(
        torch.from_numpy(ge).to(weights.w.dtype),
        torch.from_numpy(np.conj(gz)).to(weights.w.dtype),
        torch.from_numpy(total[:, -1].copy()).to(weights.d.dtype),
    )
