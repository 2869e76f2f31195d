"""MSF, the multi-synaptic firing neuron: a leaky integrator with D thresholds that emits counts 0..D.

Fan, Shen, Lian, Li, Yao, Li, Hu: "A multisynaptic spiking neuron for simultaneously encoding spatiotemporal
dynamics", Nature Communications 16, 7155 (2025). Per step, with thresholds ``theta_d = v_threshold + d*h``::

    m = decay*v + x                    charge
    s = sum_d [m >= theta_d]           fire: ties fire
    v = v_reset if s > 0 else m        hard reset: any spike resets, whatever the count
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import backends
from ..charges import CHARGES
from ..surrogate import FireFunction, Surrogate, as_surrogate, fire
from .base import Neuron, NoSecondDerivative, State, loop_vmap, number, state_dtype

__all__ = ["MSF", "msf", "msf_step"]


class _HardReset(torch.autograd.Function):
    """``r where fired else m``, with the gradient of ``(1 - f) m + f r``: NaN and inf pass as in a select."""

    generate_vmap_rule = True

    @staticmethod
    def forward(m: Tensor, f: Tensor, r: float) -> Tensor:
        return torch.where(f > 0, r, m)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        m, f, ctx.r = inputs
        ctx.save_for_backward(m, f)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        m, f = ctx.saved_tensors
        (g,) = grads
        return torch.where(f > 0, 0.0, g), g * (ctx.r - m), None


def msf_step(
    x: Tensor,
    v: Tensor,
    rate: float | Tensor,
    thresholds: Sequence[float],
    surrogate: Surrogate | FireFunction,
    charge: str = "decay",
    input_scale: float = 1.0,
    v_reset: float = 0.0,
    reset_mode: str = "hard",
    detach_reset: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of MSF, the oracle: ``x, v`` [N, *] -> counts, next ``v``, membrane before reset."""
    m = CHARGES[charge].forward(x, v, rate, v_reset, input_scale)
    first = s = fire(m - thresholds[0], surrogate)
    for theta in thresholds[1:]:
        s = s + fire(m - theta, surrogate)
    if reset_mode == "hard":
        v = _HardReset.apply(m, first.detach() if detach_reset else first, v_reset)
    elif reset_mode == "soft":
        v = m - (s.detach() if detach_reset else s) * thresholds[0]
    else:
        v = m
    return s, v, m


@torch.library.custom_op("msf_pmsn_plugins::msf", mutates_args=())
def _msf_op(
    x_seq: Tensor,
    v: Tensor,
    rate_tensor: Tensor | None,
    rate: float,
    input_scale: float,
    charge: str,
    thresholds: Sequence[float],
    v_reset: float,
    reset_mode: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    args = (rate_tensor, rate, input_scale, charge, thresholds, v_reset, reset_mode)
    s_seq, m_seq, v = backends.load(backend).msf_fwd(x_seq, v, *args)
    return s_seq.contiguous(), m_seq.contiguous(), v.contiguous()


@_msf_op.register_fake
def _(x_seq: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x_seq.new_empty(x_seq.shape), x_seq.new_empty(x_seq.shape), v.new_empty(v.shape)


@torch.library.custom_op("msf_pmsn_plugins::msf_backward", mutates_args=())
def _msf_backward_op(
    gs_seq: Tensor | None,
    gm_seq: Tensor | None,
    gv: Tensor | None,
    x_seq: Tensor,
    m_seq: Tensor,
    v: Tensor,
    rate_tensor: Tensor | None,
    rate: float,
    input_scale: float,
    charge: str,
    thresholds: Sequence[float],
    v_reset: float,
    reset_mode: str,
    detach_reset: bool,
    surrogate: str,
    width: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    args = (
        rate_tensor,
        rate,
        input_scale,
        charge,
        thresholds,
        v_reset,
        reset_mode,
        detach_reset,
        surrogate,
        width,
    )
    gx, gv, grate = backends.load(backend).msf_bwd(gs_seq, gm_seq, gv, x_seq, m_seq, v, *args)
    return gx.contiguous(), gv.contiguous(), grate.contiguous()


@_msf_backward_op.register_fake
def _(
    gs_seq: Any, gm_seq: Any, gv: Any, x_seq: Tensor, m_seq: Tensor, v: Tensor, rate_tensor: Any, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    grate = v.new_empty(() if rate_tensor is None else rate_tensor.shape)
    return m_seq.new_empty(m_seq.shape), v.new_empty(v.shape), grate


for _op in (_msf_op, _msf_backward_op):
    _op.register_vmap(loop_vmap(_op))


class _MSFFunction(torch.autograd.Function):
    """Autograd for the op: ``register_autograd`` alone fails under torch.func.grad and lies under jvp."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x_seq: Tensor, v: Tensor, rate_tensor: Tensor | None, settings: tuple[Any, ...]) -> Any:
        *charge_and_reset, _detach_reset, _surrogate, _width, backend = settings
        return _msf_op(x_seq, v, rate_tensor, *charge_and_reset, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x_seq, v, rate_tensor, ctx.settings = inputs
        ctx.save_for_backward(x_seq if rate_tensor is not None else output[1], output[1], v, rate_tensor)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, gs_seq: Tensor | None, gm_seq: Tensor | None, gv: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x_seq, m_seq, v, rate_tensor = ctx.saved_tensors
        gx, gv, grate = _MSFBackward.apply(gs_seq, gm_seq, gv, x_seq, m_seq, v, rate_tensor, ctx.settings)
        return gx, gv, None if rate_tensor is None else grate, None


class _MSFBackward(NoSecondDerivative):
    @staticmethod
    def forward(
        gs_seq: Tensor | None,
        gm_seq: Tensor | None,
        gv: Tensor | None,
        x_seq: Tensor,
        m_seq: Tensor,
        v: Tensor,
        rate_tensor: Tensor | None,
        settings: tuple[Any, ...],
    ) -> Any:
        return _msf_backward_op(gs_seq, gm_seq, gv, x_seq, m_seq, v, rate_tensor, *settings)


def msf(
    x_seq: Tensor,
    v: Tensor,
    rate: float | Tensor,
    thresholds: Sequence[float],
    surrogate: Surrogate,
    charge: str = "decay",
    input_scale: float = 1.0,
    v_reset: float = 0.0,
    reset_mode: str = "hard",
    detach_reset: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps of MSF at once: a loop of :func:`msf_step`, as one op.

    Args:
        x_seq: input currents [T, N, *], float32 or float64.
        v: membrane after the previous reset, [N, *], dtype of ``x_seq``.
        rate: what the charge calls ``k``: the decay, tau or q; a tensor (broadcast over [N, *]) may be learned.
        thresholds: ascending, in volts.
        surrogate: a named surrogate.
        charge: a key of :data:`msf_pmsn_plugins.charges.CHARGES`.
        input_scale: factor on the input (charge ``"decay"`` only).
        v_reset, reset_mode: ``"hard"`` to ``v_reset``, ``"soft"`` by ``thresholds[0]`` per spike, or ``"none"``.
        detach_reset: no gradient through the reset.
        backend: ``"auto"`` or a key of :data:`msf_pmsn_plugins.backends.BACKENDS`.

    Returns:
        counts [T, N, *], membranes before reset [T, N, *], last ``v`` [N, *].
    """
    tensor, constant = (rate, 0.0) if isinstance(rate, Tensor) else (None, float(rate))
    settings = (
        (constant, input_scale, charge, tuple(thresholds), v_reset, reset_mode)
        + (detach_reset, surrogate.name, surrogate.width)
        + (backends.resolve(backend, x_seq),)
    )
    return _MSFFunction.apply(x_seq, v, tensor, settings)


class MSF(Neuron):
    """The multi-synaptic firing neuron (Nature Communications 16, 7155).

    Emits integer counts 0..D as floats. D = 1 is LIF; ``decay=0`` is a quantized ReLU.

    Args:
        D: number of thresholds.
        decay: factor on the membrane per step (charge ``"decay"``), in [0, 1].
        input_scale: factor on the input (charge ``"decay"``).
        v_threshold: first threshold, volts.
        threshold_step: spacing of the thresholds, volts.
        v_reset: potential after a hard reset, volts.
        reset_mode: ``"hard"`` (published), ``"soft"`` (subtracts ``v_threshold`` per spike) or ``"none"``.
        detach_reset: no gradient through the reset (published).
        surrogate: a name, a :class:`~msf_pmsn_plugins.surrogate.Surrogate`, or a callable ``u -> spikes``, which
            runs on the plain step loop. Default: rectangular of half-width ``threshold_step / 2``.
        charge: a key of :data:`~msf_pmsn_plugins.charges.CHARGES`, or a pair of keys for training and evaluation.
        tau: time constant in steps, for the charges that name it; greater than 1.
        w: start value of the learned ``w``, ``q = sigmoid(w)``, for the charges that name it.
        backend: ``"auto"`` or the name of a backend.

    State: ``(v,)``, the membrane after reset, [N, *], float32 (float64 for float64 input).

    Raises:
        ValueError: a parameter out of its range, unknown charge, reset, surrogate or backend.
    """

    def __init__(
        self,
        D: int = 4,
        decay: float = 0.25,
        input_scale: float = 1.0,
        v_threshold: float = 1.0,
        threshold_step: float = 1.0,
        v_reset: float = 0.0,
        reset_mode: str = "hard",
        detach_reset: bool = True,
        surrogate: str | Surrogate | FireFunction | None = None,
        charge: str | tuple[str, str] = "decay",
        tau: float | None = None,
        w: float | Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(backend)
        self.D = D
        self.decay = decay
        self.input_scale = input_scale
        self.v_threshold = v_threshold
        self.threshold_step = threshold_step
        self.v_reset = v_reset
        self.reset_mode = reset_mode
        self.detach_reset = detach_reset
        self.charge = (charge, charge) if isinstance(charge, str) else charge
        self.tau = tau
        self.surrogate = surrogate
        for name in self.charge:
            if name not in CHARGES:
                raise ValueError(f"unknown charge {name!r}; known: {', '.join(CHARGES)}")
        rates = {CHARGES[name].rate for name in self.charge}
        if "tau" in rates and not (tau is not None and number("tau", tau) > 1):
            raise ValueError(f"charge {self.charge[0]!r} needs a finite tau > 1, got {tau!r}")
        if "w" in rates:
            if w is None:
                raise ValueError(f"charge {self.charge[0]!r} needs w")
            learned = w.requires_grad if isinstance(w, nn.Parameter) else True
            w = w if isinstance(w, Tensor) else torch.tensor(float(w))
            self.w = nn.Parameter(w.detach().clone(), requires_grad=learned)
        self._check()

    @property
    def surrogate(self) -> Surrogate | FireFunction:
        """The surrogate; by default the rectangle of half-width h/2, the narrowest whose sum over the thresholds
        is flat.
        """
        if self._surrogate is None:
            return Surrogate("rectangular", float(self.threshold_step) / 2)
        return self._surrogate

    @surrogate.setter
    def surrogate(self, value: str | Surrogate | FireFunction | None) -> None:
        self._keep_surrogate(None if value is None else as_surrogate(value))

    @property
    def thresholds(self) -> list[float]:
        """``v_threshold + d * threshold_step``, computed in double and rounded once to the dtype of the state."""
        return [float(self.v_threshold) + d * float(self.threshold_step) for d in range(self.D)]

    def _check(self) -> None:
        """Raise ValueError on settings that cannot work; they may have been changed since construction."""
        if not (isinstance(self.D, int) and not isinstance(self.D, bool) and self.D >= 1):
            raise ValueError(f"D, the number of thresholds, must be an integer >= 1, got {self.D!r}")
        if not 0 <= number("decay", self.decay) <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {self.decay!r}")
        for name in ("input_scale", "v_threshold", "threshold_step", "v_reset"):
            number(name, getattr(self, name))
        if not self.threshold_step > 0:
            raise ValueError(f"threshold_step must be positive, got {self.threshold_step!r}")
        if self.reset_mode not in ("hard", "soft", "none"):
            raise ValueError(f"unknown reset_mode {self.reset_mode!r}; known: 'hard', 'soft', 'none'")

    def _settings(self, dtype: torch.dtype) -> dict[str, Any]:
        self._check()
        charge = self.charge[0] if self.training else self.charge[1]
        kind = CHARGES[charge].rate
        rate: float | Tensor = 0.0
        if kind == "decay":
            rate = self.decay
        elif kind == "tau":
            assert self.tau is not None
            rate = self.tau
        elif kind == "w":
            rate = self.w.sigmoid().to(dtype)
        return {
            "rate": rate,
            "thresholds": self.thresholds,
            "surrogate": self.surrogate,
            "charge": charge,
            "input_scale": self.input_scale,
            "v_reset": 0.0 if self.reset_mode != "hard" else self.v_reset,
            "reset_mode": self.reset_mode,
            "detach_reset": self.detach_reset,
        }

    def state_spec(self, x: Tensor) -> tuple[tuple[torch.Size, torch.dtype], ...]:
        return ((x.shape, state_dtype(x.dtype)),)

    def initial_state(self, x: Tensor) -> State:
        start = self.v_reset if self.reset_mode == "hard" else 0.0
        return (torch.full_like(x, start, dtype=state_dtype(x.dtype), requires_grad=False),)

    def check_input(self, x: Tensor) -> None:
        super().check_input(x)
        if 2 / torch.finfo(x.dtype).eps < self.D:
            raise ValueError(f"{x.dtype} cannot hold all counts up to D={self.D}: give float32 input")

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        self.check_input(x)
        (v,) = self.check_state(x, state)
        s, v, m = msf_step(x.to(v.dtype), v, **self._settings(v.dtype))
        return s.to(x.dtype), (v,), m

    def sequence(
        self, x_seq: Tensor, state: State | None = None, membrane: bool = False
    ) -> tuple[Tensor, State, Tensor | None]:
        (v,) = state = self._begin(x_seq, state)
        settings = self._settings(v.dtype)
        if not self._has_kernel(self.surrogate):
            return self._loop(x_seq, state, membrane)
        s_seq, m_seq, v = msf(x_seq.to(v.dtype), v, **settings, backend=self.backend)
        return s_seq.to(x_seq.dtype), (v,), m_seq if membrane else None

    def extra_repr(self) -> str:
        charge = self.charge[0]
        kind = CHARGES[charge].rate
        rate = {"decay": f"decay={self.decay:.6g}, ", "tau": f"tau={self.tau}, "}.get(kind, "")
        return (
            f"D={self.D}, {rate}v_threshold={self.v_threshold}, threshold_step={self.threshold_step}, "
            f"reset_mode={self.reset_mode!r}, charge={charge!r}, backend={self.backend!r}"
        )
