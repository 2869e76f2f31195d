"""MSN, the serial multi-compartment spiking neuron: PMSN with a leaky soma and feedback from it.

The continuous model is equation (4) of the PMSN paper (arXiv 2408.14917): a chain of ``n`` compartments in which only
neighbours couple, only the last one (the soma) fires, and a spike takes ``theta`` from it. Compartment ``i`` drives the
next by ``beta_up[i]`` and is driven by it through ``beta_down[i]``. The last ``beta_down`` is the feedback that PMSN
leaves out; with the leak of the soma it makes the neuron serial. Let ``T`` be the tridiagonal matrix of the hidden
compartments (``-1/tau`` on its diagonal), ``e`` the unit vector of the last one, and all that drives them be held
over a step::

    A = exp(T dt),  P = integral of exp(T s) over [0, dt]
    V = h + P gamma x                                 hidden compartments; the current input enters
    y = beta_up[n-1] V[n-1] + gamma[n] x              drive of the soma
    m = exp(-dt/tau_soma) v + y                       membrane
    s = [m >= theta],  v = m - k theta                k = s, or all whole thresholds
    h = A (V - k reset_feedback e) + P e beta_down[n-1] f,    f = v or m
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..surrogate import FireFunction, Surrogate, fire
from ..tensors import state_dtype
from ..words import MSN_HAS_NOT, teaching
from .base import State, channel_shape, number
from .computed import value_of
from .per_channel import PerChannel
from .pmsn import INITS

__all__ = ["MSN", "Weights", "msn_step", "zero_order_hold"]

PARAMETERS = ("log_dt", "log_tau", "log_tau_soma", "beta_up", "beta_down", "gamma")
RESET_MODES = ("subtract", "floor")
FEEDBACKS = ("residual", "membrane")
CHAIN_INITS = tuple(name for name, init in INITS.items() if init.output == "last")


class Weights(NamedTuple):
    """The constants of one step, each with the channels in front; ``m`` hidden compartments."""

    a: Tensor
    """Transition of the hidden compartments, [C, m, m]."""
    b: Tensor
    """Their gain for the input, [C, m]."""
    back: Tensor
    """Their gain for the soma, [C, m]."""
    up: Tensor
    """Gain of the soma for the last hidden compartment, [C]."""
    gain: Tensor
    """Gain of the soma for the input, [C]."""
    leak: Tensor
    """Factor on the soma per step, [C]."""


def zero_order_hold(t: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(t dt)`` and the integral of ``exp(t s)`` over [0, dt], [*, m, m], for ``t`` [*, m, m] and ``dt`` [*].

    Both are blocks of one exponential, so a singular ``t`` is no special case.
    """
    m = t.shape[-1]
    scale = dt[..., None, None]
    # This eye keeps the norm above 1: for norms up to 0.05 torch's matrix_exp in double is good to 2e-10 only.
    eye = torch.eye(m, dtype=t.dtype, device=t.device).expand_as(t)
    top = torch.cat([t * scale, eye], -1)
    exponential = torch.linalg.matrix_exp(torch.cat([top, torch.zeros_like(top)], -2))
    return exponential[..., :m, :m], exponential[..., :m, m:] * scale


def _reset(m: Tensor, s: Tensor, theta: float, mode: str, detach: bool) -> tuple[Tensor, Tensor]:
    """The soma after its reset, and the number of thresholds that were taken."""
    if mode == "subtract":
        k = s.detach() if detach else s
        return m - theta * k, k
    # remainder is exact and stays in [0, theta); m - theta*floor(m/theta) does neither
    fired = (m >= theta) & (s.detach() > 0)
    r = torch.where(fired, torch.remainder(m, theta), m)
    k = torch.round((m - r) / theta).detach()
    if detach:
        return r, k
    # the straight-through estimate of the floor, slope 1/theta, takes from r the whole gradient of m
    return r.detach(), k + (m - m.detach()) / theta


def msn_step(
    x: Tensor,
    v: Tensor,
    h: Tensor,
    weights: Weights,
    v_threshold: float,
    surrogate: Surrogate | FireFunction,
    reset_mode: str = "subtract",
    feedback: str = "residual",
    reset_feedback: float = 0.0,
    detach_reset: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of MSN, the oracle: ``x, v`` [N, *], ``h`` [N, *, m]; the weights broadcast against them.

    Returns spikes, the soma after its reset (volts), the hidden compartments before the next input (leaks, couplings
    and feedback done), and the membrane before reset. A non-finite input makes its lane NaN from that step on.
    """
    x = torch.where(torch.isfinite(x), x, torch.nan)
    hidden = h + weights.b * x.unsqueeze(-1)
    y = weights.gain * x
    if hidden.shape[-1]:
        y = weights.up * hidden[..., -1] + y
    m = weights.leak * v + y
    s = fire(m - v_threshold, surrogate)
    v, k = _reset(m, s, v_threshold, reset_mode, detach_reset)
    if reset_feedback:
        last = hidden[..., -1] - reset_feedback * k
        hidden = torch.cat([hidden[..., :-1], last.unsqueeze(-1)], -1)
    soma = v if feedback == "residual" else m
    h = (weights.a * hidden.unsqueeze(-2)).sum(-1) + weights.back * soma.unsqueeze(-1)
    return s, v, h, m


@teaching(MSN_HAS_NOT)
class MSN(PerChannel):
    """The serial multi-compartment spiking neuron: PMSN with a leaky soma and feedback from it.

    Parameters are learned per channel and shared over batch and positions. With ``n`` compartments: ``log_dt`` [C],
    ``log_tau`` [C, n-1] (hidden time constants, in the unit of dt), ``log_tau_soma`` [C], ``beta_up`` and ``beta_down``
    [C, n-1] (couplings of each hidden compartment with the next, per unit of dt; the last of ``beta_up`` is a plain
    factor), ``gamma`` [C, n] (input gains, the soma's last). ``tau`` may be infinite: no leak. An infinite tau has no
    gradient, and an L2 penalty would turn it into NaN, so a ``log_tau`` or ``log_tau_soma`` that starts infinite
    throughout is not learned.

    It runs on the plain step loop. Two special cases are built by :meth:`lif` and :meth:`tc_lif`. With
    ``reset_mode="floor"`` and neither leak of the soma nor feedback it is PMSN without its clamp.

    Args:
        channels: size of the channel axis, or None to take it from the first input (or a loaded state dict).
        compartments: hidden ones plus the soma, at least 1.
        channel_dim: the channel axis in the per-step tensor [N, C, *]; a tuple of adjacent axes (heads and their
            width, say) counts as one axis of their product.
        v_threshold: volts.
        surrogate: a name, a :class:`~msf_pmsn_plugins.surrogate.Surrogate` over ``v - v_threshold`` in volts, or a
            callable ``u -> spikes``. Default: triangle of half-width 1 V.
        reset_mode: ``"subtract"`` takes one threshold per spike, ``"floor"`` all whole thresholds at once.
        feedback: which potential of the soma drives the hidden compartments: ``"residual"``, after the reset, or
            ``"membrane"``, before it.
        reset_feedback: volts taken from the last hidden compartment for each threshold taken from the soma.
        detach_reset: no gradient through the number of thresholds taken. Else that number has the surrogate's
            gradient (``"subtract"``), or slope ``1/v_threshold`` (``"floor"``): then nothing passes from step to step
            through the soma, as in PMSN.
        init: ``"sequence"`` or ``"imagenet"``: PMSN's published start, here in the basis of the compartments, with
            neither leak of the soma nor feedback from it.
        start: start values in place of those of ``init``, by parameter: a number, or one for each compartment.
        backend: ``"auto"`` or ``"torch"``.

    State: ``(v, h)``: the soma after its reset, volts, [N, *]; and the hidden compartments as they will be before the
    next input, leaks and feedback done, [N, *, n-1]. float32 (float64 for float64 input).

    Raises:
        ValueError: a parameter out of its range, unknown init, start, reset, feedback, surrogate or backend; an input
            whose channel axis has another size.
    """

    state_names = ("v", "h")
    constants = ("v_threshold", "reset_feedback")
    called = "an MSN"
    log_dt: nn.Parameter
    log_tau: nn.Parameter
    log_tau_soma: nn.Parameter
    beta_up: nn.Parameter
    beta_down: nn.Parameter
    gamma: nn.Parameter

    def __init__(
        self,
        channels: int | None = None,
        compartments: int = 5,
        channel_dim: int | Sequence[int] = 1,
        v_threshold: float = 1.0,
        surrogate: str | Surrogate | FireFunction | None = None,
        reset_mode: str = "subtract",
        feedback: str = "residual",
        reset_feedback: float = 0.0,
        detach_reset: bool = True,
        init: str = "sequence",
        start: Mapping[str, float | Sequence[float]] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(channels, channel_dim, backend)
        if not (type(compartments) is int and compartments >= 1):
            raise ValueError(f"compartments must be an integer, at least 1, got {compartments!r}")
        if init not in CHAIN_INITS:
            reason = "its output vector couples the soma to every compartment" if init in INITS else "unknown"
            raise ValueError(f"init {init!r} ({reason}); known: {', '.join(CHAIN_INITS)}")
        self.compartments = compartments
        self.v_threshold = v_threshold
        self.reset_mode = reset_mode
        self.feedback = feedback
        self.reset_feedback = reset_feedback
        self.detach_reset = detach_reset
        self.init = init
        self.surrogate = surrogate
        self._settings()
        self._start = self._starts(start or {})
        self._make_parameters()
        for name in set(PARAMETERS) - set(self._widths):
            self.register_parameter(name, None)
        self._freeze(*(name for name, value in self._start.items() if value.isinf().all()))
        if channels is not None:
            self.materialize(channels)

    @classmethod
    def lif(cls, channels: int | None = None, decay: float = 0.5, **kwargs: Any) -> MSN:
        """One compartment: LIF, ``v = decay r + x``, reset by subtraction, no learned parameter.

        Args:
            channels: as for the class.
            decay: factor on the membrane per step, in (0, 1].
            **kwargs: further arguments of the class.

        Raises:
            ValueError: a decay out of its range.
        """
        if not 0 < number("decay", decay) <= 1:
            raise ValueError(f"decay must lie in (0, 1], got {decay!r}")
        rate = -math.log(decay)
        log_tau = -math.log(rate) if rate else math.inf
        start = {"log_dt": 0.0, "log_tau_soma": log_tau, "gamma": 1.0}
        neuron = cls(channels, 1, start=start, **kwargs)
        neuron._freeze(*start)
        return neuron

    @classmethod
    def tc_lif(
        cls,
        channels: int | None = None,
        beta_1: float = -0.5,
        beta_2: float = 0.5,
        gamma: float = 0.5,
        feedback: str = "membrane",
        detach_reset: bool = False,
        **kwargs: Any,
    ) -> MSN:
        """Two compartments: TC-LIF (Zhang et al., AAAI 2024, arXiv 2308.13250, equations 10 to 12)::

            U_D[t] = U_D[t-1] + beta_1 U_S[t-1] + x[t] - gamma S[t-1]
            U_S[t] = U_S[t-1] + beta_2 U_D[t] - v_threshold S[t-1],    S[t] = [U_S[t] >= v_threshold]

        The couplings that make it so: ``dt = 1``, no leak, ``beta_up = beta_2``, ``beta_down = beta_1``, input gain 1
        of the dendrite and 0 of the soma, ``reset_feedback = gamma``, ``feedback="membrane"``. ``beta_1`` and
        ``beta_2`` are learned, one a channel and without the published sigmoid (``beta_1 = -sigmoid(c_1)``,
        ``beta_2 = sigmoid(c_2)``, one pair a layer): training may carry them out of their range.

        Args:
            channels: as for the class.
            beta_1: start value of the coupling from soma to dendrite, in (-1, 0).
            beta_2: start value of the coupling from dendrite to soma, in (0, 1).
            gamma: volts that a spike takes from the dendrite.
            feedback: ``"membrane"`` as printed; ``"residual"`` as in the published code, whose ``U_S[t-1]`` in the
                first line is the one after the reset.
            detach_reset: False, as in the published code.
            **kwargs: further arguments of the class.

        Raises:
            ValueError: a coupling out of its range.
        """
        for name, value, low in (("beta_1", beta_1, -1), ("beta_2", beta_2, 0)):
            if not low < number(name, value) < low + 1:
                raise ValueError(f"{name} must lie in ({low}, {low + 1}), got {value!r}")
        start: dict[str, float | Sequence[float]] = {
            "log_dt": 0.0,
            "log_tau": math.inf,
            "log_tau_soma": math.inf,
            "beta_up": beta_2,
            "beta_down": beta_1,
            "gamma": (1.0, 0.0),
        }
        kwargs.update(feedback=feedback, reset_feedback=gamma, detach_reset=detach_reset)
        neuron = cls(channels, 2, start=start, **kwargs)
        neuron._freeze("log_dt", "gamma")
        return neuron

    @property
    def hidden(self) -> int:
        """Number of hidden compartments."""
        return self.compartments - 1

    @property
    def supported_backends(self) -> tuple[str, ...]:
        return ("auto", "torch")

    @property
    def _widths(self) -> dict[str, tuple[int, ...]]:
        hidden, soma = (self.hidden,), ("log_dt", "log_tau_soma")
        widths = dict.fromkeys(PARAMETERS, hidden) | dict.fromkeys(soma, ()) | {"gamma": (self.compartments,)}
        return {name: width for name, width in widths.items() if width != (0,)}

    def _starts(self, given: Mapping[str, float | Sequence[float]]) -> dict[str, Tensor]:
        """Start values that are the same in every channel, by parameter: those of ``init``, then the ``given``."""
        precise: Any = {"dtype": torch.float64, "device": "cpu"}  # a net built on meta has values here
        k = INITS[self.init].coupling * torch.arange(1.0, max(1, self.hidden), **precise)
        values = {"log_tau_soma": torch.tensor(math.inf, **precise)}
        if self.hidden:
            values["log_tau"] = torch.full((self.hidden,), math.log(2.0), **precise)
            values["beta_up"] = torch.cat([-k, k.new_ones(1)])
            values["beta_down"] = torch.cat([k, k.new_zeros(1)])
        for name, value in given.items():
            if name not in self._widths:
                raise ValueError(
                    f"start has {name!r}, which is no parameter of an MSN with {self.compartments} compartments; "
                    f"known: {', '.join(self._widths)}"
                )
            values[name] = self._start_value(name, value)
        return values

    def _start_value(self, name: str, value: float | Sequence[float]) -> Tensor:
        width = self._widths[name]
        try:
            tensor = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"start[{name!r}] is made of numbers, got {value!r}") from error
        if tensor.shape not in ((), width):
            raise ValueError(
                f"start[{name!r}] is a number{f' or {width[0]} of them' if width else ''}, got {value!r}"
            )
        infinite = name in ("log_tau", "log_tau_soma")
        if not (tensor.isfinite() | (tensor == math.inf) & infinite).all():
            raise ValueError(
                f"start[{name!r}] must be finite{', or inf for no leak' if infinite else ''}, got {value!r}"
            )
        return tensor

    def _freeze(self, *names: str) -> None:
        for name in names:
            getattr(self, name).requires_grad = False

    def _settings(self) -> dict[str, Any]:
        """What a step needs beside the weights; raise on settings that cannot work, changed since or not."""
        theta = number("v_threshold", self.v_threshold)
        if not theta > 0:
            raise ValueError(f"v_threshold must be positive, got {self.v_threshold!r}")
        for name, known in (("reset_mode", RESET_MODES), ("feedback", FEEDBACKS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        reset_feedback = number("reset_feedback", self.reset_feedback)
        if reset_feedback and not self.hidden:
            raise ValueError(
                f"reset_feedback={self.reset_feedback!r} takes from a hidden compartment, but this MSN has one "
                "compartment only: leave it 0"
            )
        if self.backend not in self.supported_backends:
            raise ValueError(f"backend {self.backend!r} has no kernel for MSN: set backend='auto'")
        return {
            "v_threshold": theta,
            "surrogate": self.surrogate,
            "reset_mode": self.reset_mode,
            "feedback": self.feedback,
            "reset_feedback": reset_feedback,
            "detach_reset": self.detach_reset,
        }

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The start values: the published chain of compartments, random dt and direct gain; then those of ``start``."""
        init = INITS[self.init]
        self.log_dt.uniform_(math.log(init.dt_min), math.log(init.dt_max))
        self.gamma.fill_(1.0)
        soma = self.gamma[:, -1]
        soma.copy_(init.gain(soma.shape, dtype=soma.dtype, device=soma.device))
        for name, value in self._start.items():
            parameter = getattr(self, name)
            parameter.copy_(value.expand_as(parameter))

    def check_input(self, x: Tensor) -> Tensor:
        x = super().check_input(x)
        self._count_lanes(x)
        return x

    def state_spec(self, x: Tensor) -> tuple[tuple[torch.Size, torch.dtype], ...]:
        dtype = state_dtype(x.dtype)
        return (x.shape, dtype), (x.shape + (self.hidden,), dtype)

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``T``, the tridiagonal matrix of the hidden compartments, [channels, n-1, n-1]."""
        self._require_channels("the matrix")
        if not self.hidden:
            return self.log_dt.new_zeros((len(self.log_dt), 0, 0), dtype=dtype)
        log_tau, up, down = (value_of(self, n).to(dtype) for n in ("log_tau", "beta_up", "beta_down"))
        leaks = torch.diag_embed(-torch.exp(-log_tau))
        return leaks + torch.diag_embed(up[:, :-1], -1) + torch.diag_embed(down[:, :-1], 1)

    def weights(self, dtype: torch.dtype = torch.float32) -> Weights:
        """The constants of a step, in ``dtype``."""
        self._require_channels("the weights")
        dt, gamma = torch.exp(value_of(self, "log_dt").to(dtype)), value_of(self, "gamma").to(dtype)
        a, p = zero_order_hold(self.matrix(dtype), dt)
        b = (p * gamma[:, None, :-1]).sum(-1)
        leak = torch.exp(-dt * torch.exp(-value_of(self, "log_tau_soma").to(dtype)))
        if not self.hidden:
            return Weights(a, b, b, torch.zeros_like(dt), gamma[:, -1], leak)
        up, down = (value_of(self, name).to(dtype) for name in ("beta_up", "beta_down"))
        back = p[..., -1] * down[:, -1:]
        return Weights(a, b, back, up[:, -1], gamma[:, -1], leak)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        x = self.check_input(x)
        return self._step(x, state, self.weights(state_dtype(x.dtype)))

    def _step(self, x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State, Tensor]:
        v, h = self.check_state(x, state)
        shape = channel_shape(self.channel_dim, x)
        weights = Weights(*(w.reshape([*shape, *w.shape[1:]]) for w in weights))
        s, v, h, m = msn_step(x.to(v.dtype), v, h, weights, **self._settings())
        return s.to(x.dtype), (v, h), m

    def _run(
        self, x_seq: Tensor, state: State, membrane: bool, lengths: Tensor | None
    ) -> tuple[Tensor, State, Tensor | None]:
        # The loop of step with the matrix exponential taken once.
        weights = self.weights(state[0].dtype)
        return self._loop(x_seq, state, membrane, lengths, lambda x, state: self._step(x, state, weights))

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, compartments={self.compartments}, channel_dim={self.channel_dim}, "
            f"v_threshold={self.v_threshold}, reset_mode={self.reset_mode!r}, feedback={self.feedback!r}, "
            f"reset_feedback={self.reset_feedback}, detach_reset={self.detach_reset}, init={self.init!r}, "
            f"backend={self.backend!r}"
        )
