"""The neurons that tests run: numbers at which spikes, several time scales and gradients of every parameter appear."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import randn, tensor
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons import MSF, MSN, PMSN, ParallelIF
from msf_pmsn_plugins.neurons.msn import Weights
from msf_pmsn_plugins.neurons.pmsn import BURSTS, pmsn
from msf_pmsn_plugins.neurons.pmsn.module import PARAMETERS
from msf_pmsn_plugins.settings import PMSNSettings
from msf_pmsn_plugins.surrogate import Custom, Surrogate
from msf_pmsn_plugins.tensors import PMSNState, PMSNWeights
from tolerances import F32

TRIANGLE = Surrogate("triangle", 1.0)
CUSTOM = Custom(lambda u: (1 - u.abs()).clamp(min=0))  # the triangle, by its slopes


class Triangle(torch.autograd.Function):
    """The step, with the slope of a triangle."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (1 - ctx.saved_tensors[0].abs()).clamp(min=0)


class HostObject(torch.nn.Module):
    """A surrogate as SpikingJelly has them: a module that can be switched between spikes and its primitive."""

    def __init__(self) -> None:
        super().__init__()
        self.spiking = True

    def forward(self, u: Tensor) -> Tensor:
        return Triangle.apply(u) if self.spiking else u


def host_closure() -> Callable[[Tensor], Tensor]:
    """A surrogate as snnTorch has them: a function that a call returns."""

    def fire(u: Tensor) -> Tensor:
        return Triangle.apply(u)

    return fire


class Learned(torch.nn.Module):
    """A step whose slope is learned, the same everywhere: no kernel can run it."""

    def __init__(self) -> None:
        super().__init__()
        self.height = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, u: Tensor) -> Tensor:
        through = self.height.to(u.dtype) * u
        return (u >= 0).to(u.dtype) + (through - through.detach())


RATES: dict[str, dict[str, Any]] = {
    "decay": {"decay": 0.3, "input_scale": 0.75},
    "tau": {"tau": 1.7},
    "w": {"w": -0.4},
    "none": {},
}


def build_msf(charge: str, **kwargs: Any) -> MSF:
    """MSF with any charge."""
    return MSF(charge=charge, **(RATES[CHARGES[charge].rate] | kwargs))


def build_pmsn(
    channels: int = 3, compartments: int = 5, seed: int = 0, dtype: torch.dtype = F32, **kwargs: Any
) -> PMSN:
    """Unpaired modes, fast enough that spikes, gradients of every parameter and several time scales appear."""
    neuron = PMSN(channels, compartments, **kwargs)
    modes = neuron.modes
    with torch.no_grad():
        neuron.log_dt.copy_(torch.linspace(-3.5, -0.7, channels))
        neuron.log_A_real.copy_(-0.7 + 0.5 * randn(channels, modes, seed=seed + 1))
        neuron.A_imag.copy_(4 * randn(channels, modes, seed=seed + 2))
        for i, name in enumerate(("VinvB_real", "VinvB_imag", "CV_real", "CV_imag")):
            getattr(neuron, name).copy_(1.5 * randn(channels, modes, seed=seed + 3 + i))
        neuron.D.copy_(0.5 + 0.3 * randn(channels, seed=seed + 7))
    return neuron.to(dtype)


def from_golden(g: dict[str, np.ndarray], prefix: str = "", dtype: torch.dtype = F32, **kwargs: Any) -> PMSN:
    values = {name: tensor(g[prefix + name]) for name in PARAMETERS}
    channels, modes = values["A_imag"].shape
    neuron = PMSN(channels, modes + 1, **kwargs)
    neuron.load_state_dict(values)
    return neuron.to(dtype)


# (reset_mode, burst, residual) that go together
SOMAS = [
    *itertools.product(("floor", "serial"), BURSTS, ("float",)),
    *(("floor", burst, "fixed") for burst in BURSTS),
    ("none", False, "float"),
    ("cumulative", False, "float"),
]
all_somas = pytest.mark.parametrize("soma", SOMAS, ids=lambda soma: "-".join(map(str, soma)))


def with_soma(soma: tuple[str, bool | str, str], **kwargs: Any) -> PMSN:
    reset_mode, burst, residual = soma
    return build_pmsn(reset_mode=reset_mode, burst=burst, residual=residual, **kwargs)


def at_rest(x: Tensor, modes: int) -> PMSNState:
    """The state of the op before the first step ``x`` [L, C, K]."""
    return PMSNState(torch.zeros_like(x), torch.zeros(*x.shape, modes, dtype=x.dtype.to_complex()))


def drive(neuron: PMSN, x_seq: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Spikes and the drive y of a [T, B, H, ...] input, from the op."""
    steps, batch, channels, *_ = x_seq.shape
    flat = x_seq.reshape(steps, batch, channels, -1)
    settings = PMSNSettings(
        v_threshold=float(neuron.v_threshold), surrogate=neuron.surrogate.name, width=neuron.surrogate.width
    )
    weights = neuron.weights(x_seq.dtype)
    s, y, _, _ = pmsn(flat, at_rest(flat[0], neuron.modes), weights, settings, backend=backend)
    return s.reshape(x_seq.shape), y.reshape(x_seq.shape)


def drive_by_loop(neuron: PMSN, x_seq: Tensor) -> Tensor:
    """The drive y of a [T, B, H, ...] input, from the recurrence in the order of ``pmsn_step``."""
    tail = (1,) * (x_seq.dim() - 3)
    e, w, d = neuron.weights(x_seq.dtype)
    e, w = (t.reshape(neuron.channels, *tail, neuron.modes) for t in (e, w))
    z, rows = torch.zeros((*x_seq.shape[1:], neuron.modes), dtype=e.dtype), []
    for x in x_seq:
        z = z + (e * z + x.unsqueeze(-1))
        rows.append((w * z).sum(-1).real + d.reshape(-1, *tail) * x)
    return torch.stack(rows)


def soma(
    y: Tensor, theta: float, backend: str = "auto", r: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The reset stage of the op alone: no hidden drive and a direct gain of 1, so that the drive is the input.

    Returns spikes, drives, membranes and the last residual.
    """
    x = y.reshape(*y.shape[:1], 1, 1, -1)
    state = at_rest(x[0], 1)
    state = state if r is None else state._replace(r=r.reshape(x[0].shape))
    none = torch.zeros(1, 1, dtype=y.dtype.to_complex())
    weights = PMSNWeights(none, none, torch.ones(1, dtype=y.dtype))
    settings = PMSNSettings(v_threshold=theta, keep_membrane=True)
    s, drives, m, state = pmsn(x, state, weights, settings, backend=backend)
    return s.reshape(y.shape), drives.reshape(y.shape), m.reshape(y.shape), state.r.reshape(y.shape[1:])


def kernel_of(weights: PMSNWeights, steps: int) -> Tensor:
    """The impulse response of the hidden compartments, ``Re(sum w a**t)``, [C, T]."""
    a = 1 + weights.e
    return (weights.w.unsqueeze(-1) * a.unsqueeze(-1) ** torch.arange(steps)).sum(1).real


STREAMS = {
    "msf": lambda: MSF(D=3, decay=0.3),
    "msf-soft": lambda: MSF(D=3, decay=0.3, reset_mode="soft", detach_reset=False, surrogate="atan"),
    "msf-learned": lambda: MSF(D=2, decay=torch.tensor([0.3, 0.5, 0.8]), learn_decay=True, surrogate="atan"),
    "msf-delayed": lambda: MSF(D=2, decay=0.3, reset_mode="soft", reset_delay=True, surrogate="atan"),
    "msf-retake": lambda: MSF(
        D=2, decay=0.6, reset_mode="soft", retake=True, detach_reset=False, surrogate="atan"
    ),
    "msf-threshold": lambda: MSF(D=2, v_threshold=torch.tensor([0.5, 1.0, 1.5]), learn_threshold=True),
    "msf-slopes": lambda: MSF(D=2, decay=0.3, surrogate=CUSTOM),
    "msf-slopes-attached": lambda: MSF(D=3, decay=0.3, surrogate=CUSTOM, detach_reset=False),
    "msf-slopes-delayed": lambda: MSF(
        D=2, decay=0.3, reset_mode="soft", reset_delay=True, surrogate=Triangle.apply
    ),
    "msf-loop": lambda: MSF(D=2, decay=0.3, surrogate=Learned()),
    "pmsn": lambda: build_pmsn(3),
    "pmsn-serial": lambda: build_pmsn(3, reset_mode="serial"),
    "pmsn-none": lambda: build_pmsn(3, reset_mode="none"),
    "pmsn-cumulative": lambda: build_pmsn(3, reset_mode="cumulative"),
    "pmsn-burst": lambda: build_pmsn(3, burst=True),
    "pmsn-fixed": lambda: build_pmsn(3, residual="fixed"),
    "pmsn-slopes": lambda: build_pmsn(3, surrogate=CUSTOM),
    "pmsn-slopes-burst": lambda: build_pmsn(3, burst=True, surrogate=Triangle.apply),
    "pmsn-loop": lambda: build_pmsn(3, surrogate=Learned()),
    "parallel_if": lambda: ParallelIF(0.7),
}


def build_msn(
    channels: int = 3, compartments: int = 4, seed: int = 0, dtype: torch.dtype = F32, **kwargs: Any
) -> MSN:
    """Leaks, couplings both ways, feedback and a leaky soma, different in every channel, with plenty of spikes."""
    neuron = MSN(channels, compartments, start={"log_tau_soma": 0.0}, **kwargs)
    with torch.no_grad():
        neuron.log_dt.copy_(torch.linspace(-1.5, 0, channels))
        neuron.log_tau_soma.copy_(torch.linspace(0.2, 1.5, channels))
        neuron.gamma.copy_(1 + 0.4 * randn(channels, compartments, seed=seed + 1))
        if compartments > 1:
            shape = (channels, compartments - 1)
            neuron.log_tau.copy_(0.5 + 0.5 * randn(*shape, seed=seed + 2))
            neuron.beta_up.copy_(0.7 + 0.3 * randn(*shape, seed=seed + 3))
            neuron.beta_down.copy_(-0.5 + 0.2 * randn(*shape, seed=seed + 4))
    return neuron.to(dtype)


MSN_SETTINGS = [
    {"reset_mode": mode, "feedback": feedback, "reset_feedback": volts, "detach_reset": detach}
    for mode, feedback, volts, detach in itertools.product(
        ("subtract", "floor"), ("residual", "membrane"), (0.0, 0.3), (True, False)
    )
]


def one_channel(
    a: Any, b: Any, back: Any, up: float, gain: float, leak: float, dtype=torch.float64
) -> Weights:
    """The weights of one step of MSN, by hand."""
    return Weights(*(torch.tensor([value], dtype=dtype) for value in (a, b, back, up, gain, leak)))
