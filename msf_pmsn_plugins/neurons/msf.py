"""MSF, the multi-synaptic firing neuron: a leaky integrator with D thresholds that emits counts 0..D.

Fan, Shen, Lian, Li, Yao, Li, Hu: "A multisynaptic spiking neuron for simultaneously encoding spatiotemporal
dynamics", Nature Communications 16, 7155 (2025). Per step, with thresholds ``theta_d = v_threshold + d*h``::

    m = decay*v + x                    charge
    s = sum_d [m >= theta_d]           fire: ties fire
    v = v_reset if s > 0 else m        hard reset: any spike resets, whatever the count
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import backends
from ..charges import CHARGES
from ..surrogate import FireFunction, Surrogate, as_surrogate, fire
from .base import (
    Neuron,
    NoSecondDerivative,
    State,
    channel_axes,
    first_step,
    loop_vmap,
    number,
    state_dtype,
    untracked,
)

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
    if reset_mode == "hard" and getattr(surrogate, "soft", False):
        f = first.detach() if detach_reset else first
        v = (1 - f) * m + f * v_reset  # a part of a spike resets a part
    elif reset_mode == "hard":
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
    lengths: Tensor | None,
    rate_tensor: Tensor | None,
    rate: float,
    input_scale: float,
    charge: str,
    thresholds: Sequence[float],
    v_reset: float,
    reset_mode: str,
    width: float,
    keep: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    args = (rate_tensor, rate, input_scale, charge, thresholds, v_reset, reset_mode, width, keep)
    s_seq, kept, v = backends.load(backend).msf_fwd(x_seq, v, lengths, *args)
    return s_seq.contiguous(), kept.contiguous(), v.contiguous()


@_msf_op.register_fake
def _(x_seq: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, keep, _backend = args
    kept = x_seq.new_empty(
        0 if keep == "none" else x_seq.shape, dtype=torch.uint8 if keep == "code" else None
    )
    return x_seq.new_empty(x_seq.shape), kept, v.new_empty(v.shape)


@torch.library.custom_op("msf_pmsn_plugins::msf_backward", mutates_args=())
def _msf_backward_op(
    gs_seq: Tensor | None,
    gm_seq: Tensor | None,
    gv: Tensor | None,
    x_seq: Tensor,
    kept: Tensor,
    v: Tensor,
    lengths: Tensor | None,
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
    keep: str,
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
        keep,
    )
    gx, gv, grate = backends.load(backend).msf_bwd(gs_seq, gm_seq, gv, x_seq, kept, v, lengths, *args)
    return gx.contiguous(), gv.contiguous(), grate.contiguous()


@_msf_backward_op.register_fake
def _(
    gs_seq: Any,
    gm_seq: Any,
    gv: Any,
    x_seq: Tensor,
    kept: Tensor,
    v: Tensor,
    lengths: Any,
    rate_tensor: Any,
    *args: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    grate = v.new_empty(() if rate_tensor is None else rate_tensor.shape)
    return v.new_empty(kept.shape), v.new_empty(v.shape), grate


for _op in (_msf_op, _msf_backward_op):
    _op.register_vmap(loop_vmap(_op))


class _MSFFunction(torch.autograd.Function):
    """Autograd for the op: ``register_autograd`` alone fails under torch.func.grad and lies under jvp."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x_seq: Tensor,
        v: Tensor,
        lengths: Tensor | None,
        rate_tensor: Tensor | None,
        settings: tuple[Any, ...],
    ) -> Any:
        *charge_and_reset, _detach_reset, _surrogate, width, keep, backend = settings
        return _msf_op(x_seq, v, lengths, rate_tensor, *charge_and_reset, width, keep, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x_seq, v, lengths, rate_tensor, ctx.settings = inputs
        _s_seq, kept, _v = output
        learned = rate_tensor is not None
        ctx.save_for_backward(x_seq if learned else None, kept, v if learned else None, lengths, rate_tensor)
        if ctx.settings[-2] != "membrane":
            ctx.mark_non_differentiable(kept)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, gs_seq: Tensor | None, gm_seq: Tensor | None, gv: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x_seq, kept, v, lengths, rate_tensor = ctx.saved_tensors
        if ctx.settings[-2] != "membrane":
            gm_seq = None
        given = gs_seq if gs_seq is not None else gm_seq if gm_seq is not None else gv
        if given is None:
            return None, None, None, None, None
        if rate_tensor is None:  # only their shapes are needed
            x_seq, v = kept, given.new_zeros(()).expand(kept.shape[1:])
        run = _MSFBackward.forward if untracked() else _MSFBackward.apply
        gx, gv, grate = run(gs_seq, gm_seq, gv, x_seq, kept, v, lengths, rate_tensor, ctx.settings)
        return gx, gv, None, None if rate_tensor is None else grate, None


class _MSFBackward(NoSecondDerivative):
    @staticmethod
    def forward(
        gs_seq: Tensor | None,
        gm_seq: Tensor | None,
        gv: Tensor | None,
        x_seq: Tensor,
        kept: Tensor,
        v: Tensor,
        lengths: Tensor | None,
        rate_tensor: Tensor | None,
        settings: tuple[Any, ...],
    ) -> Any:
        return _msf_backward_op(gs_seq, gm_seq, gv, x_seq, kept, v, lengths, rate_tensor, *settings)


def _keep(membrane: bool, windows: bool) -> str:
    """What the forward leaves for the backward: nothing, one byte an element (``windows`` suffice), or membranes."""
    if membrane:
        return "membrane"
    if not torch.is_grad_enabled():
        return "none"
    return "code" if windows else "membrane"


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
    lengths: Tensor | None = None,
    membrane: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None, Tensor]:
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
        lengths: valid steps of each sample, int64 [N]; later ones emit 0 and leave the state as it is.
        membrane: return the membranes. Without them, training with the rectangle keeps one byte an element.
        backend: ``"auto"`` or a key of :data:`msf_pmsn_plugins.backends.BACKENDS`.

    Returns:
        counts [T, N, *], membranes before reset [T, N, *] or None, last ``v`` [N, *].
    """
    tensor, constant = (rate, 0.0) if isinstance(rate, Tensor) else (None, float(rate))
    detached = detach_reset or reset_mode == "none"
    windows = surrogate.name == "rectangular" and detached and tensor is None and len(thresholds) <= 127
    settings = (
        (constant, input_scale, charge, tuple(thresholds), v_reset, reset_mode)
        + (detach_reset, surrogate.name, surrogate.width, _keep(membrane, windows))
        + (backends.resolve(backend, x_seq),)
    )
    # Of a single step in a stream, autograd's bookkeeping would be a third.
    run = _MSFFunction.forward if untracked() else _MSFFunction.apply
    s_seq, m_seq, v = run(x_seq, v, lengths, tensor, settings)
    return s_seq, m_seq if membrane else None, v


class MSF(Neuron):
    """The multi-synaptic firing neuron (Nature Communications 16, 7155).

    Emits integer counts 0..D as floats. D = 1 is LIF; ``decay=0`` is a quantized ReLU.

    Args:
        D: number of thresholds.
        decay: factor on the membrane per step (charge ``"decay"``), in [0, 1]. With ``learn_decay`` the start value,
            in (0, 1): a number, or a tensor [C], one for each channel.
        input_scale: factor on the input (charge ``"decay"``).
        v_threshold: first threshold, volts.
        threshold_step: spacing of the thresholds, volts.
        v_reset: potential after a hard reset, volts.
        reset_mode: ``"hard"`` (published), ``"soft"`` (subtracts ``v_threshold`` per spike) or ``"none"``.
        detach_reset: no gradient through the reset (published).
        surrogate: a name, a :class:`~msf_pmsn_plugins.surrogate.Surrogate`, or a callable ``u -> spikes``, which
            runs on the plain step loop. Default: rectangular of half-width ``threshold_step / 2``; for an explicit
            list, half its smallest gap.
        charge: a key of :data:`~msf_pmsn_plugins.charges.CHARGES`, or a pair of keys for training and evaluation.
        tau: time constant in steps, for the charges that name it; greater than 1.
        w: start value of the learned ``w``, ``q = sigmoid(w)``, for the charges that name it.
        thresholds: explicit thresholds in volts, strictly increasing; they replace ``D``, ``v_threshold`` and
            ``threshold_step``. A reset looks at the first.
        learn_decay: make the decay a parameter, ``decay = sigmoid(decay_logit)``, which keeps it in (0, 1).
        channel_dim: where the channels of a decay per channel lie in the per-step tensor [N, C, *].
        backend: ``"auto"`` or the name of a backend.

    State: ``(v,)``, the membrane after reset, [N, *], float32 (float64 for float64 input).

    Raises:
        ValueError: a parameter out of its range, unknown charge, reset, surrogate or backend.
    """

    decay_logit: nn.Parameter | None

    def __init__(
        self,
        D: int = 4,
        decay: float | Tensor = 0.25,
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
        thresholds: Sequence[float] | None = None,
        learn_decay: bool = False,
        channel_dim: int | Sequence[int] = 1,
        backend: str = "auto",
    ) -> None:
        super().__init__(backend)
        self.D = D
        self.v_threshold = v_threshold
        self.threshold_step = threshold_step
        self._list: tuple[float, ...] | None = None
        if thresholds is not None:
            self.thresholds = thresholds
        self.register_parameter("decay_logit", None)
        self.charge = (charge, charge) if isinstance(charge, str) else tuple(charge)
        if len(self.charge) != 2:
            raise ValueError(f"charge is a key or a pair of keys (training, evaluation), got {charge!r}")
        if learn_decay:
            if self.charge != ("decay", "decay"):
                raise ValueError(f"learn_decay belongs to charge='decay', got charge={charge!r}")
            self.decay_logit = nn.Parameter(_logit(decay))
        else:
            self.decay = decay
        self.channel_dim = channel_dim
        self.input_scale = input_scale
        self.v_reset = v_reset
        self.reset_mode = reset_mode
        self.detach_reset = detach_reset
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
    def decay(self) -> float | Tensor:
        """The decay; of a learned one its present value. Assign a number (learned: or [C]) to change it."""
        return self._decay if self.decay_logit is None else self.decay_logit.sigmoid()

    @decay.setter
    def decay(self, value: float | Tensor) -> None:
        if self.decay_logit is None:
            self._decay = number("decay", value)
        else:
            with torch.no_grad():
                self.decay_logit.copy_(_logit(value))

    @property
    def surrogate(self) -> Surrogate | FireFunction:
        """The surrogate; by default the rectangle of half-width h/2, the narrowest whose sum over the thresholds
        is flat.
        """
        if self._surrogate is None:
            gaps = [b - a for a, b in itertools.pairwise(self._list or ())]
            return Surrogate("rectangular", min(gaps, default=float(self.threshold_step)) / 2)
        return self._surrogate

    @surrogate.setter
    def surrogate(self, value: str | Surrogate | FireFunction | None) -> None:
        self._keep_surrogate(None if value is None else as_surrogate(value))

    @property
    def thresholds(self) -> list[float]:
        """The thresholds in volts: the explicit list, or ``v_threshold + d * threshold_step``, computed in double.

        They are rounded once, to the dtype of the state. Assign a list to replace ``D``, ``v_threshold`` and the
        spacing; assign None to go back to them.
        """
        if self._list is not None:
            return list(self._list)
        return [float(self.v_threshold) + d * float(self.threshold_step) for d in range(self.D)]

    @thresholds.setter
    def thresholds(self, values: Sequence[float] | None) -> None:
        if values is None:
            self._list = None
            return
        numbers = tuple(number("thresholds", value) for value in values)
        if not numbers or any(b <= a for a, b in itertools.pairwise(numbers)):
            raise ValueError(f"thresholds must be strictly increasing and not empty, got {list(numbers)}")
        self._list = numbers
        self.D, self.v_threshold = len(numbers), numbers[0]

    def _check(self) -> None:
        """Raise ValueError on settings that cannot work; they may have been changed since construction."""
        if not (isinstance(self.D, int) and not isinstance(self.D, bool) and self.D >= 1):
            raise ValueError(f"D, the number of thresholds, must be an integer >= 1, got {self.D!r}")
        if self.decay_logit is None and not 0 <= self._decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {self._decay!r}")
        for name in ("input_scale", "v_threshold", "threshold_step", "v_reset"):
            number(name, getattr(self, name))
        if not self.threshold_step > 0:
            raise ValueError(f"threshold_step must be positive, got {self.threshold_step!r}")
        if self._list is not None and (self.D, self.v_threshold) != (len(self._list), self._list[0]):
            raise ValueError(
                f"D={self.D} and v_threshold={self.v_threshold} do not fit the explicit thresholds "
                f"{list(self._list)}: assign to .thresholds instead (None goes back to an even spacing)"
            )
        if self.reset_mode not in ("hard", "soft", "none"):
            raise ValueError(f"unknown reset_mode {self.reset_mode!r}; known: 'hard', 'soft', 'none'")

    def _learned_decay(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The learned decay, broadcast against one step ``x``."""
        assert self.decay_logit is not None
        decay = self.decay_logit.to(dtype).sigmoid()
        if decay.dim() == 0:
            return decay
        axes = channel_axes(self.channel_dim, x)
        shape = [n if i in axes else 1 for i, n in enumerate(x.shape)]
        if math.prod(shape) != len(decay):
            raise ValueError(
                f"this MSF has a decay for each of {len(decay)} channels, but axis {self.channel_dim} of one step "
                f"{tuple(x.shape)} has {math.prod(shape)}: pass a decay [{math.prod(shape)}], or the channel_dim "
                f"that holds {len(decay)}"
            )
        return decay.reshape(shape)

    def _settings(self, x: Tensor, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of :func:`msf_step` for one step ``x`` with a state of ``dtype``."""
        self._check()
        charge = self.charge[0] if self.training else self.charge[1]
        kind = CHARGES[charge].rate
        rate: float | Tensor = 0.0
        if kind == "decay":
            rate = self._decay if self.decay_logit is None else self._learned_decay(x, dtype)
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
        s, v, m = msf_step(x.to(v.dtype), v, **self._settings(x, v.dtype))
        return s.to(x.dtype), (v,), m

    def _run(
        self, x_seq: Tensor, state: State, membrane: bool, lengths: Tensor | None
    ) -> tuple[Tensor, State, Tensor | None]:
        (v,) = state
        settings = self._settings(first_step(x_seq), v.dtype)
        if not self._has_kernel(self.surrogate):
            return self._loop(x_seq, state, membrane, lengths)
        s_seq, m_seq, v = msf(
            x_seq.to(v.dtype), v, **settings, lengths=lengths, membrane=membrane, backend=self.backend
        )
        return s_seq.to(x_seq.dtype), (v,), m_seq

    def extra_repr(self) -> str:
        charge = self.charge[0]
        kind = CHARGES[charge].rate
        decay = "learned" if self.decay_logit is not None else f"{self._decay:.6g}"
        rate = {"decay": f"decay={decay}, ", "tau": f"tau={self.tau}, "}.get(kind, "")
        spacing = f"v_threshold={self.v_threshold}, threshold_step={self.threshold_step}"
        if self._list is not None:
            spacing = f"thresholds={list(self._list)}"
        return (
            f"D={self.D}, {rate}{spacing}, reset_mode={self.reset_mode!r}, charge={charge!r}, "
            f"backend={self.backend!r}"
        )


def _logit(decay: float | Tensor) -> Tensor:
    """The logit of a decay in (0, 1), a number or [C], in the dtype it will be learned in."""
    value = torch.as_tensor(decay).detach()
    value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    if value.dim() > 1 or value.numel() == 0 or not bool(((value > 0) & (value < 1)).all()):
        raise ValueError(
            f"a learned decay starts in (0, 1), as a number or one number for each channel [C]; got {decay!r}"
        )
    return torch.logit(value.double()).to(value.dtype)
