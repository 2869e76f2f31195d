"""PMSN, the parallel multi-compartment spiking neuron.

Chen, Wu, Ma, Yan, Wu, Tan: "PMSN: A Parallel Multi-compartment Spiking Neuron for Multi-scale Temporal
Processing", arXiv 2408.14917. ``n - 1`` hidden compartments are a complex diagonal linear system (equations 9, 10);
the soma resets by whole thresholds (16 to 18). With ``Lam = -exp(log_A_real) + i A_imag`` and ``dt = exp(log_dt)``::

    a = exp(Lam dt),  w = C B expm1(Lam dt)/Lam       zero-order hold, B and C folded
    z = a z + x                                       hidden state, complex
    y = Re(sum w z) + D x                             drive of the soma
    v = r + max(y, 0)/v_threshold                     r, v in units of the threshold
    s = [v >= 1],  r = v - floor(v)                   one spike, all whole thresholds removed
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from .. import backends
from ..surrogate import FireFunction, Surrogate, as_surrogate, fire
from .base import Neuron, NoSecondDerivative, State, first_step, loop_vmap, number, state_dtype

__all__ = ["INITS", "PMSN", "Init", "discretise", "pmsn", "pmsn_step"]

PARAMETERS = ("log_dt", "log_A_real", "A_imag", "VinvB_real", "VinvB_imag", "CV_real", "CV_imag", "D")
PER_CHANNEL = ("log_dt", "D")  # the others are [channels, modes]


@dataclass(frozen=True)
class Init:
    """A published initialisation: coupling between compartments, range of dt, output vector, direct gain."""

    coupling: float
    dt_min: float
    dt_max: float
    output: str  # "last" (unit vector of the last hidden compartment) or "ones"
    gain: Callable[..., Tensor]


INITS: dict[str, Init] = {
    "sequence": Init(5.0, 1e-3, 1e-1, "last", torch.randn),
    "shd": Init(5.0, 1e-3, 1e-1, "ones", torch.randn),
    "imagenet": Init(0.25, 0.2, 1.0, "last", torch.rand),
}


def eigensystem(modes: int, coupling: float, output: str) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies, ``B = V^H 1`` and ``C = c V`` of the coupled compartments, [modes], float64 and complex128.

    The matrix has -0.5 on its diagonal and ``+-coupling*k`` beside it. With P = diag(i^k) it is
    ``-0.5 + i coupling P M P^-1``, where M is real symmetric with 1, 2, .. beside a zero diagonal. So the
    eigenvectors are P times real ones; fixing their first entry positive fixes every phase, whatever the
    linear-algebra library, and makes conjugate modes conjugate to the bit.
    """
    k = torch.arange(1, modes, dtype=torch.float64)
    mu, q = torch.linalg.eigh(torch.diag(k, 1) + torch.diag(k, -1))
    q = q * torch.where(q[0] < 0, -1.0, 1.0)
    alternate = (-1.0) ** torch.arange(modes, dtype=torch.float64).unsqueeze(1)
    mu = (mu - mu.flip(0)) / 2
    q = (q + alternate * q.flip(1)) / 2
    phase = torch.tensor([1, 1j, -1, -1j], dtype=torch.complex128)[torch.arange(modes) % 4]
    v = phase.unsqueeze(1) * q
    return coupling * mu, v.conj().sum(0), v[-1] if output == "last" else v.sum(0)


def _phi(z: Tensor) -> Tensor:
    """``expm1(z)/z`` for complex z with its limit 1 at 0; value and derivative without cancellation."""
    small = z.abs() < 0.5
    near = torch.where(small, z, 0.0)
    series = torch.ones_like(z)
    for k in range(17 if z.dtype == torch.complex128 else 10, 1, -1):  # enough for the derivative too
        series = 1 + near / k * series
    far = torch.where(small, 1.0, z)
    sine = torch.sin(far.imag / 2)
    expm1 = torch.complex(
        torch.expm1(far.real) * torch.cos(far.imag) - 2 * sine * sine,
        torch.exp(far.real) * torch.sin(far.imag),
    )
    return torch.where(small, series, expm1 / far)


def discretise(
    log_dt: Tensor,
    log_A_real: Tensor,
    A_imag: Tensor,
    VinvB_real: Tensor,
    VinvB_imag: Tensor,
    CV_real: Tensor,
    CV_imag: Tensor,
) -> tuple[Tensor, Tensor]:
    """Zero-order hold: the published parameters -> ``a, w`` of the recurrence, complex [channels, modes]."""
    dt = torch.exp(log_dt).unsqueeze(-1)
    z = torch.complex(-torch.exp(log_A_real), A_imag) * dt
    b = torch.complex(VinvB_real, VinvB_imag)
    c = torch.complex(CV_real, CV_imag)
    return torch.exp(z), c * b * (_phi(z) * dt)


def pmsn_step(
    x: Tensor,
    r: Tensor,
    z: Tensor,
    a: Tensor,
    w: Tensor,
    d: Tensor,
    v_threshold: float,
    surrogate: Surrogate | FireFunction,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of PMSN, the oracle: ``x, r`` [N, *], ``z`` [N, *, modes]; ``a, w, d`` broadcast against them.

    Returns spikes, next ``r`` (units of the threshold, no gradient), next ``z``, membrane before reset (volts).
    A non-finite input makes its lane NaN from that step on.
    """
    x = torch.where(torch.isfinite(x), x, torch.nan)
    z = a * z + x.unsqueeze(-1)
    y = (w * z).sum(-1).real + d * x
    v = r.detach() + torch.relu(y) / v_threshold
    k = torch.floor(v.detach())
    volts = v * v_threshold
    # Fire in units of the threshold, where the reset is exact; the surrogate sees volts, as published.
    s = (k >= 1).to(x.dtype)
    soft = fire(volts - v_threshold, surrogate)
    return s + (soft - soft.detach()), v.detach() - k, z, volts


@torch.library.custom_op("msf_pmsn_plugins::pmsn", mutates_args=())
def _pmsn_op(
    x_seq: Tensor, r: Tensor, z: Tensor, a: Tensor, w: Tensor, d: Tensor, v_threshold: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s_seq, y_seq, r, z = backends.load(backend).pmsn_fwd(x_seq, r, z, a, w, d, v_threshold)
    return s_seq.contiguous(), y_seq.contiguous(), r.contiguous(), z.contiguous()


@_pmsn_op.register_fake
def _(x_seq: Tensor, r: Tensor, z: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s_seq, y_seq, r, z = (p.new_empty(p.shape) for p in (x_seq, x_seq, r, z))
    return s_seq, y_seq, r, z


@torch.library.custom_op("msf_pmsn_plugins::pmsn_backward", mutates_args=())
def _pmsn_backward_op(
    gs_seq: Tensor | None,
    gy_seq: Tensor | None,
    gz: Tensor | None,
    x_seq: Tensor,
    y_seq: Tensor,
    r: Tensor,
    z: Tensor,
    a: Tensor,
    w: Tensor,
    d: Tensor,
    v_threshold: float,
    surrogate: str,
    width: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    args = (x_seq, y_seq, r, z, a, w, d, v_threshold, surrogate, width)
    gx, gz, ga, gw, gd = backends.load(backend).pmsn_bwd(gs_seq, gy_seq, gz, *args)
    return gx.contiguous(), gz.contiguous(), ga.contiguous(), gw.contiguous(), gd.contiguous()


@_pmsn_backward_op.register_fake
def _(
    gs_seq: Any,
    gy_seq: Any,
    gz: Any,
    x_seq: Tensor,
    y_seq: Tensor,
    r: Tensor,
    z: Tensor,
    a: Tensor,
    w: Tensor,
    d: Tensor,
    *args: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gx, gz, ga, gw, gd = (p.new_empty(p.shape) for p in (x_seq, z, a, w, d))
    return gx, gz, ga, gw, gd


for _op in (_pmsn_op, _pmsn_backward_op):
    _op.register_vmap(loop_vmap(_op))


class _PMSNFunction(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x_seq: Tensor, r: Tensor, z: Tensor, a: Tensor, w: Tensor, d: Tensor, settings: tuple[Any, ...]
    ) -> Any:
        v_threshold, _surrogate, _width, backend = settings
        return _pmsn_op(x_seq, r, z, a, w, d, v_threshold, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x_seq, r, z, a, w, d, ctx.settings = inputs
        ctx.save_for_backward(x_seq, output[1], r, z, a, w, d)
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, gs_seq: Tensor | None, gy_seq: Tensor | None, gr: Tensor | None, gz: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x_seq, y_seq, r, z, a, w, d = ctx.saved_tensors
        gz = None if gz is None else gz.resolve_conj()
        gx, gz, ga, gw, gd = _PMSNBackward.apply(
            gs_seq, gy_seq, gz, x_seq, y_seq, r, z, a, w, d, ctx.settings
        )
        return gx, None, gz, ga, gw, gd, None


class _PMSNBackward(NoSecondDerivative):
    @staticmethod
    def forward(
        gs_seq: Tensor | None,
        gy_seq: Tensor | None,
        gz: Tensor | None,
        x_seq: Tensor,
        y_seq: Tensor,
        r: Tensor,
        z: Tensor,
        a: Tensor,
        w: Tensor,
        d: Tensor,
        settings: tuple[Any, ...],
    ) -> Any:
        return _pmsn_backward_op(gs_seq, gy_seq, gz, x_seq, y_seq, r, z, a, w, d, *settings)


def pmsn(
    x_seq: Tensor,
    r: Tensor,
    z: Tensor,
    a: Tensor,
    w: Tensor,
    d: Tensor,
    v_threshold: float,
    surrogate: Surrogate,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All steps of PMSN at once: a loop of :func:`pmsn_step`, as one op.

    Args:
        x_seq: input currents [T, L, C, K] (L leading lanes, C channels, K positions), float32 or float64.
        r: residual in units of the threshold, [L, C, K]; carries no gradient.
        z: hidden state [L, C, K, modes], complex.
        a, w: recurrence and output weights, complex [C, modes]; see :func:`discretise`.
        d: direct gain [C].
        v_threshold: volts.
        surrogate: a named surrogate over ``v - v_threshold`` in volts.
        backend: ``"auto"`` or a key of :data:`msf_pmsn_plugins.backends.BACKENDS`.

    Returns:
        spikes and drive ``y`` [T, L, C, K], last ``r`` and ``z``.
    """
    settings = (v_threshold, surrogate.name, surrogate.width, backends.resolve(backend, x_seq))
    return _PMSNFunction.apply(x_seq, r, z, a, w, d, settings)


def membranes(y_seq: Tensor, r: Tensor, v_threshold: float) -> Tensor:
    """Membranes before reset, volts, from the drives: a loop of the soma of :func:`pmsn_step`."""
    v_seq = []
    for y in y_seq.unbind(0):
        v = r + torch.relu(y) / v_threshold
        r = v.detach() - torch.floor(v.detach())
        v_seq.append(v * v_threshold)
    return torch.stack(v_seq) if v_seq else torch.empty_like(y_seq)


class PMSN(Neuron):
    """The parallel multi-compartment spiking neuron (arXiv 2408.14917).

    Parameters are learned per channel and shared over batch and positions: ``2 + 6 (compartments - 1)`` a channel.

    Args:
        channels: size of the channel axis, or None to take it from the first input (or a loaded state dict).
        compartments: hidden ones plus the soma, 2 to 17.
        channel_dim: the channel axis in the per-step tensor [N, C, *]; a tuple of adjacent axes (heads and their
            width, say) counts as one axis of their product.
        v_threshold: volts.
        surrogate: a name, a :class:`~msf_pmsn_plugins.surrogate.Surrogate` over ``v - v_threshold`` in volts, or a
            callable ``u -> spikes``, which runs on the plain step loop. Default: triangle of half-width 1 V.
        init: ``"sequence"`` (S-MNIST, sequential CIFAR), ``"shd"`` or ``"imagenet"``, as published.
        backend: ``"auto"`` or the name of a backend.

    State: ``(r, z)``: the residual in units of the threshold [N, *] and the hidden state, complex [N, *, modes].

    Raises:
        ValueError: a parameter out of its range, unknown init, surrogate or backend; an input whose channel axis
            has another size.
    """

    state_names = ("r", "z")
    log_dt: nn.Parameter
    log_A_real: nn.Parameter
    A_imag: nn.Parameter
    VinvB_real: nn.Parameter
    VinvB_imag: nn.Parameter
    CV_real: nn.Parameter
    CV_imag: nn.Parameter
    D: nn.Parameter

    def __init__(
        self,
        channels: int | None = None,
        compartments: int = 5,
        channel_dim: int | Sequence[int] = 1,
        v_threshold: float = 1.0,
        surrogate: str | Surrogate | FireFunction | None = None,
        init: str = "sequence",
        backend: str = "auto",
    ) -> None:
        super().__init__(backend)
        if not (type(compartments) is int and 2 <= compartments <= 17):
            raise ValueError(f"compartments must be an integer from 2 to 17, got {compartments!r}")
        if channels is not None and not (type(channels) is int and channels >= 1):
            raise ValueError(
                f"channels must be a positive integer or None (taken from the first input), got {channels!r}"
            )
        if init not in INITS:
            raise ValueError(f"unknown init {init!r}; known: {', '.join(INITS)}")
        dims = channel_dim if isinstance(channel_dim, tuple | list) else (channel_dim,)
        if not dims or any(type(d) is not int for d in dims):
            raise TypeError(f"channel_dim must be an integer or a tuple of them, got {channel_dim!r}")
        self.compartments = compartments
        self.channel_dim = channel_dim
        self.v_threshold = v_threshold
        self.init = init
        self.surrogate = surrogate
        self._theta()
        for name in PARAMETERS:
            setattr(self, name, UninitializedParameter())
        if channels is not None:
            self.materialize(channels)

    @property
    def modes(self) -> int:
        """Number of hidden compartments."""
        return self.compartments - 1

    @property
    def channels(self) -> int | None:
        """Size of the channel axis, None before it is known."""
        return None if isinstance(self.D, UninitializedParameter) else len(self.D)

    @property
    def surrogate(self) -> Surrogate | FireFunction:
        return self._surrogate

    @surrogate.setter
    def surrogate(self, value: str | Surrogate | FireFunction | None) -> None:
        self._keep_surrogate(Surrogate("triangle", 1.0) if value is None else as_surrogate(value))

    def _theta(self) -> float:
        """The threshold as it is now; raise unless it is positive."""
        theta = number("v_threshold", self.v_threshold)
        if not theta > 0:
            raise ValueError(f"v_threshold must be positive, got {self.v_threshold!r}")
        return theta

    def materialize(self, channels: int) -> None:
        """Give the parameters their size, in place (an optimizer may hold them already), and initialise them."""
        with torch.inference_mode(False):  # born in inference mode they could never be trained
            for name in PARAMETERS:
                parameter = getattr(self, name)
                if isinstance(parameter, UninitializedParameter):
                    parameter.materialize((channels,) if name in PER_CHANNEL else (channels, self.modes))
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialisation: coupled compartments in their eigenbasis, random dt and direct gain."""
        init = INITS[self.init]
        frequency, b, c = eigensystem(self.modes, init.coupling, init.output)
        low, high = math.log(init.dt_min), math.log(init.dt_max)
        self.log_dt.uniform_(low, high)
        self.D.copy_(init.gain(self.D.shape, dtype=self.D.dtype, device=self.D.device))
        self.log_A_real.fill_(math.log(0.5))
        self.A_imag.copy_(frequency.expand_as(self.A_imag))
        for name, value in (("VinvB", b), ("CV", c)):
            getattr(self, f"{name}_real").copy_(value.real.expand_as(self.A_imag))
            getattr(self, f"{name}_imag").copy_(value.imag.expand_as(self.A_imag))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        d = state_dict.get(prefix + "D", state_dict.get(prefix + "neuron.D"))
        if self.channels is None and isinstance(d, Tensor) and not isinstance(d, UninitializedParameter):
            self.materialize(len(d))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._require_channels("state_dict()")
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _require_channels(self, what: str) -> None:
        if self.channels is None:
            raise RuntimeError(
                f"{what} of a PMSN whose channel count is not known yet: pass channels=..., or run one forward pass "
                "or load a state dict first"
            )

    def _axes(self, x: Tensor) -> tuple[int, ...]:
        """The channel axes of one step ``x``, non-negative and checked."""
        dims = self.channel_dim if isinstance(self.channel_dim, Sequence) else (self.channel_dim,)
        axes = tuple(d + x.dim() if d < 0 else d for d in dims)
        if any(not 1 <= d < x.dim() for d in axes):
            raise ValueError(
                f"channel_dim={self.channel_dim} counts in the per-step tensor [N, C, *], whose axis 0 is the batch; "
                f"one step of this input has shape {tuple(x.shape)}"
            )
        if axes != tuple(range(axes[0], axes[0] + len(axes))):
            raise ValueError(f"channel_dim={self.channel_dim} must name adjacent axes in ascending order")
        return axes

    def check_input(self, x: Tensor) -> None:
        super().check_input(x)
        axes = self._axes(x)
        width = math.prod([x.shape[d] for d in axes])  # a list: torch.compile traces no generator here
        if self.channels is None:
            if width == 0:
                raise ValueError(
                    f"cannot take the channel count from an input of shape {tuple(x.shape)} per step"
                )
            self.materialize(width)
        elif width != self.channels:
            raise ValueError(
                f"this PMSN has {self.channels} channels, but axis {self.channel_dim} of one step "
                f"{tuple(x.shape)} has {width}: pass channels={width}, or the channel_dim that holds "
                f"{self.channels}"
            )

    def state_spec(self, x: Tensor) -> tuple[tuple[torch.Size, torch.dtype], ...]:
        dtype = state_dtype(x.dtype)
        paired = torch.complex128 if dtype == torch.float64 else torch.complex64
        return (x.shape, dtype), (torch.Size((*x.shape, self.modes)), paired)

    def initial_state(self, x: Tensor) -> State:
        return tuple(torch.zeros(shape, dtype=dtype, device=x.device) for shape, dtype in self.state_spec(x))

    def weights(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """``a, w`` (complex [channels, modes]) and ``d`` ([channels]) of the recurrence, in ``dtype``."""
        self._require_channels("the weights")
        log_dt, log_a, a_imag, b_re, b_im, c_re, c_im, d = (getattr(self, n).to(dtype) for n in PARAMETERS)
        return *discretise(log_dt, log_a, a_imag, b_re, b_im, c_re, c_im), d

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        self.check_input(x)
        r, z = self.check_state(x, state)
        axes = self._axes(x)
        a, w, d = self.weights(r.dtype)
        shape = [n if i in axes else 1 for i, n in enumerate(x.shape)]
        a, w, d = a.reshape(*shape, self.modes), w.reshape(*shape, self.modes), d.reshape(shape)
        s, r, z, m = pmsn_step(x.to(r.dtype), r, z, a, w, d, self._theta(), self.surrogate)
        return s.to(x.dtype), (r, z), m

    def sequence(
        self, x_seq: Tensor, state: State | None = None, membrane: bool = False
    ) -> tuple[Tensor, State, Tensor | None]:
        r, z = state = self._begin(x_seq, state)
        if not self._has_kernel(self.surrogate):
            return self._loop(x_seq, state, membrane)
        axes = [d + 1 for d in self._axes(first_step(x_seq))]
        shape = x_seq.shape
        lead, tail = math.prod(shape[1 : axes[0]]), math.prod(shape[axes[-1] + 1 :])
        lanes = (lead, len(self.D), tail)
        a, w, d = self.weights(r.dtype)
        theta = self._theta()
        s_seq, y_seq, r_last, z_last = pmsn(
            x_seq.to(r.dtype).reshape(len(x_seq), *lanes),
            r.reshape(lanes),
            z.reshape(*lanes, self.modes),
            a,
            w,
            d,
            theta,
            self.surrogate,
            self.backend,
        )
        m_seq = membranes(y_seq.reshape(shape), r, theta) if membrane else None
        return s_seq.reshape(shape).to(x_seq.dtype), (r_last.reshape(r.shape), z_last.reshape(z.shape)), m_seq

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, compartments={self.compartments}, channel_dim={self.channel_dim}, "
            f"v_threshold={self.v_threshold}, init={self.init!r}, backend={self.backend!r}"
        )
