"""Single steps of PMSN by a backend that has a way for them, without torch's dispatcher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import backends
from ...surrogate import slope_of
from ...tensors import PMSNGrads, PMSNState, PMSNWeights
from ..autograd import batched, no_autograd, no_dispatch, saved_tensors
from ..base import paired_dtype
from .op import Call, _PMSNBackward
from .step import slope_argument

__all__ = ["Single"]


class Single:
    """Contiguous steps of one shape, whose lanes are [L, C]."""

    def __init__(self, call: Call, kernel: Any, x: Tensor, lanes: tuple[int, int], modes: int) -> None:
        self.settings, self.backend, self.surrogate = call
        self.kernel = kernel
        self.lanes = lanes
        self.modes = modes
        self.dtypes = paired_dtype(x.dtype), paired_dtype(x.dtype), x.dtype  # of e, w and d
        self._taken: PMSNWeights | None = None  # the last weights that were looked at

    def __deepcopy__(self, memo: Any) -> bool:
        return False  # of a module that torch copies by its attributes: the addresses are ours

    @classmethod
    def of(cls, x: Tensor, lanes: tuple[int, int, int], modes: int, call: Call) -> Single | None:
        """For steps like ``x`` with lanes [L, C, K] if the backend has it."""
        settings, backend, _surrogate = call
        kind = getattr(backends.load(backend, "pmsn"), "PMSNSingle", None)
        if kind is None or settings.reset_mode == "cumulative" or lanes[2] != 1 or x.numel() == 0:
            return None
        return cls(call, kind(settings, x.shape, lanes[:2], modes, x.dtype), x, lanes[:2], modes)

    def takes(self, weights: PMSNWeights) -> bool:
        """Whether the weights are what the kernel reads: of these lanes and dtypes, contiguous, on the CPU."""
        if weights is self._taken:
            return True
        fits = weights.e.shape == weights.w.shape == (self.lanes[1], self.modes)
        if not fits or weights.d.shape != self.lanes[1:] or not no_dispatch(*weights):
            return False
        if not all(part.is_cpu and part.is_contiguous() and not part.is_conj() for part in weights):
            return False
        if tuple([part.dtype for part in weights]) != self.dtypes:
            return False
        self._taken = weights
        return True

    def __call__(
        self, x: Tensor, state: PMSNState, weights: PMSNWeights, membrane: bool
    ) -> tuple[Tensor, PMSNState, Tensor | None]:
        """Spikes, the next state, the membrane if it is kept."""
        if torch.is_grad_enabled():
            s, r, z, *m = _PMSNSingle.apply(x, *state, *weights, self, membrane)
            return s, PMSNState(r, z), m[0] if m else None
        s, r, z, m = self.kernel.forward(x, state, weights, membrane)
        return s, PMSNState(r, z), m

    def slopes(self, m: Tensor | None) -> Tensor | None:
        """At the membranes ``m``, of a surrogate without a name; None where the kernel knows it."""
        if self.surrogate is None or m is None:
            return None
        return slope_of(self.surrogate, slope_argument(m / self.settings.v_threshold, self.settings))

    def differentiate(
        self,
        grads: PMSNGrads,
        x: Tensor,
        state: PMSNState,
        weights: PMSNWeights,
        m: Tensor | None,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, ...]:
        """Gradients to the input, the residual (none), the hidden state and the weights; ``wanted``: of those two."""
        slopes = self.slopes(m)
        if no_autograd() and no_dispatch(*grads, x, *state, *weights, slopes) and not batched(*grads):
            gx, gz, made = self.kernel.backward(grads, x, state, weights, slopes, wanted)
            return gx, None, gz, *made
        settings = self.settings.but(state_grad=wanted[0])
        gs, gm = (None if g is None else g.reshape(1, *self.lanes, 1) for g in (grads.s, grads.m))
        r, z = state.r.reshape(*self.lanes, 1), state.z.reshape(*self.lanes, 1, -1)
        gz = None if grads.z is None else grads.z.reshape(z.shape)
        x_seq = x.reshape(1, *self.lanes, 1)
        slopes = None if slopes is None else slopes.reshape(x_seq.shape)
        tensors = (gs, None, gm, None, gz, x_seq, x_seq, r, z, *weights, None, slopes)
        gx, _gr, gz, *made = _PMSNBackward.apply(*tensors, (settings, self.backend))
        return gx.reshape(x.shape), None, gz.reshape(state.z.shape) if wanted[0] else None, *made


class _PMSNSingle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        x, r, z, e, w, d, single, membrane = inputs
        keep = membrane or single.surrogate is not None
        s, r_last, z_last, m = single.kernel.forward(x, PMSNState(r, z), PMSNWeights(e, w, d), keep)
        ctx.single = single
        ctx.save_for_backward(x, r, z, e, w, d, None if single.surrogate is None else m)
        ctx.mark_non_differentiable(r_last)
        ctx.set_materialize_grads(False)
        return (s, r_last, z_last, m) if membrane else (s, r_last, z_last)

    @staticmethod
    def backward(
        ctx: Any, gs: Tensor | None, _gr: None, gz: Tensor | None, *gm: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if gs is None and gz is None and not any(g is not None for g in gm):
            return (None,) * 8
        x, r, z, *weights, m = saved_tensors(ctx)
        grads = PMSNGrads(gs, None, gm[0] if gm else None, None, None if gz is None else gz.resolve_conj())
        wanted = ctx.needs_input_grad[2], any(ctx.needs_input_grad[3:6])
        made = ctx.single.differentiate(grads, x, PMSNState(r, z), PMSNWeights(*weights), m, wanted)
        return *made, None, None
