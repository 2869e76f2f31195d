"""A parallel integrate-and-fire neuron: the reset of PMSN on a compartment without leak or hidden compartments.

``v = r + max(x, 0)/v_threshold``, ``s = [v >= 1]``, ``r = v - floor(v)``: the parallel reset (equations 16 to 18 of
arXiv 2408.14917) holds for any non-leaky compartment whose input is known in advance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..lengths import last_valid
from ..settings import PMSNSettings
from ..surrogate import FireFunction, Surrogate, as_surrogate
from ..tensors import PMSNState, PMSNWeights, state_dtype
from ..words import PARALLEL_IF_HAS_NOT, teaching
from .base import Neuron, State, number, paired_dtype
from .pmsn import BURSTS, parallel_reset, pmsn_step

__all__ = ["ParallelIF"]


@teaching(PARALLEL_IF_HAS_NOT)
class ParallelIF(Neuron):
    """Integrate and fire without leak; all time steps at once.

    Negative inputs are clamped, and a reset removes all whole thresholds: both make it parallel. No gradient passes
    through the reset.

    Args:
        v_threshold: volts.
        surrogate: a name, a :class:`~msf_pmsn_plugins.surrogate.Surrogate` over ``v - v_threshold`` in volts, or a
            callable ``u -> spikes``. Default: triangle of half-width 1 V.
        burst: as in :class:`~msf_pmsn_plugins.neurons.PMSN`.
        backend: ``"auto"`` or the name of a backend.

    State: ``(r,)``, the residual in units of the threshold, [N, *].
    """

    state_names = ("r",)
    constants = ("v_threshold",)
    rests_uniformly = True

    def __init__(
        self,
        v_threshold: float = 1.0,
        surrogate: str | Surrogate | FireFunction | None = None,
        burst: bool | str = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(backend)
        self.v_threshold = v_threshold
        self.burst = burst
        self.surrogate = surrogate
        self.settings()

    @property
    def surrogate(self) -> Surrogate | FireFunction:
        return self._surrogate

    @surrogate.setter
    def surrogate(self, value: str | Surrogate | FireFunction | None) -> None:
        self._keep_surrogate(Surrogate("triangle", 1.0) if value is None else as_surrogate(value))

    def settings(self) -> PMSNSettings:
        """What the reset must know that is no tensor, as it is now, checked."""
        theta = number("v_threshold", self.v_threshold)
        if not theta > 0:
            raise ValueError(f"v_threshold must be positive, got {self.v_threshold!r}")
        if self.burst not in BURSTS:
            raise ValueError(f"unknown burst {self.burst!r}; known: {', '.join(map(repr, BURSTS))}")
        return PMSNSettings(v_threshold=theta, burst=BURSTS[self.burst], keep_drive=False)

    def state_spec(self, x: Tensor) -> tuple[tuple[torch.Size, torch.dtype], ...]:
        return ((x.shape, state_dtype(x.dtype)),)

    def initial_state(self, x: Tensor) -> State:
        return (torch.zeros(x.shape, dtype=state_dtype(x.dtype), device=x.device),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        x = self.check_input(x)
        (r,) = self.check_state(x, state)
        none = r.new_empty(0, dtype=paired_dtype(r.dtype))
        before, weights = PMSNState(r, none.expand(*r.shape, 0)), PMSNWeights(none, none, r.new_ones(()))
        s, after, m = pmsn_step(x.to(r.dtype), before, weights, self.settings(), self.surrogate)
        return s.to(x.dtype), (after.r,), m

    def _run(
        self, x_seq: Tensor, state: State, membrane: bool, lengths: Tensor | None
    ) -> tuple[Tensor, State, Tensor | None]:
        (r,) = state
        if not self._has_kernel(self.surrogate):
            return self._loop(x_seq, state, membrane, lengths)
        s_seq, r, m_seq = parallel_reset(
            x_seq,
            r,
            self.settings(),
            surrogate=self.surrogate,
            lengths=lengths,
            membrane=membrane,
            backend=self.backend,
        )
        return s_seq, (r,), m_seq

    def _trajectory(
        self, x_seq: Tensor, state: State, lengths: Tensor | None, names: Sequence[str]
    ) -> tuple[Tensor, State, list[Tensor]]:
        (r,) = state
        if not self._has_kernel(self.surrogate):
            return super()._trajectory(x_seq, state, lengths, names)
        settings = self.settings().but(keep_residual=True)
        s_seq, r_seq, _m = parallel_reset(
            x_seq.to(r.dtype), r, settings, surrogate=self.surrogate, lengths=lengths, backend=self.backend
        )
        return s_seq.to(x_seq.dtype), (last_valid(r, r_seq, lengths),), [r_seq for _ in names]

    def extra_repr(self) -> str:
        return f"v_threshold={self.v_threshold}, burst={self.burst!r}, backend={self.backend!r}"
