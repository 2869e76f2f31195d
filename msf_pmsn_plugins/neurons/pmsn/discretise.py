"""From the published parameters of PMSN to the weights of its recurrence: initialisation and zero-order hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..autograd import no_autograd, transformed

__all__ = ["INITS", "Init", "discretise", "eigensystem"]


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


def _expm1(z: Tensor) -> Tensor:
    """``exp(z) - 1`` to the last digits, also near 0: for a leak no two parts of it cancel."""
    sine = torch.sin(z.imag / 2)
    return torch.complex(
        torch.expm1(z.real) * torch.cos(z.imag) - 2 * sine * sine,
        torch.exp(z.real) * torch.sin(z.imag),
    )


def _phi_value(z: Tensor) -> Tensor:
    zero = z == 0
    return torch.where(zero, 1.0, _expm1(z) / torch.where(zero, 1.0, z))


def _phi_slope(z: Tensor, phi: Tensor) -> Tensor:
    """``(exp(z) - phi)/z``, near 0 its series: the sum of ``(k + 1)/(k + 2)! z**k``."""
    small = z.abs() < 0.5
    near, far = torch.where(small, z, 0.0), torch.where(small, 1.0, z)
    terms = 16 if z.dtype == torch.complex128 else 9
    series = torch.zeros_like(z)
    for k in range(terms, -1, -1):
        series = series * near + (k + 1) / math.factorial(k + 2)
    return torch.where(small, series, (torch.exp(far) - phi) / far)


class _Phi(torch.autograd.Function):
    """``expm1(z)/z`` for complex z with its limit 1 at 0; value and derivative without cancellation.

    Autograd through the series would cost more than the rest of a small network.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return _phi_value(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * _phi_slope(*ctx.saved_tensors).conj()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] * _phi_slope(*ctx.saved_tensors)


def _phi_traced(z: Tensor) -> Tensor:
    """:class:`_Phi` for a compiler, which takes no Function with a forward derivative: a line of the right slope."""
    fixed = z.detach()
    phi = _phi_value(fixed)
    return phi + _phi_slope(fixed, phi) * (z - fixed)


def _zero_order_hold(
    log_dt: Tensor, log_A_real: Tensor, A_imag: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    dt = torch.exp(log_dt).unsqueeze(-1)
    z = torch.complex(-torch.exp(log_A_real), A_imag) * dt
    phi = _phi_traced(z) if torch.compiler.is_compiling() else _Phi.apply(z)
    return z * phi, c * b * (phi * dt)


class _ZeroOrderHold(torch.autograd.Function):
    """:func:`_zero_order_hold` with its adjoint by hand: autograd's costs more than many steps of a small network.

    With ``z = Lam dt`` and holomorphic f a gradient g to f(z) gives ``g conj(f'(z))`` to z.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        log_dt, log_a, a_imag, b, c = inputs
        dt, leak = torch.exp(log_dt).unsqueeze(-1), torch.exp(log_a)
        z = torch.complex(-leak, a_imag) * dt
        phi = _phi_value(z)
        e, held = z * phi, phi * dt
        ctx.save_for_backward(*inputs, dt, leak, z, phi, held)
        return e, c * b * held

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *inputs, dt, leak, z, phi, held = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            outputs = _zero_order_hold(*inputs)
            return torch.autograd.grad(outputs, inputs, grads, create_graph=True)
        ge, gw = grads
        b, c = inputs[3:]
        g_held = gw * (b * c).conj()
        gz = ge * (1 + z * phi).conj() + g_held * (dt * _phi_slope(z, phi)).conj()
        g_dt = (g_held * phi.conj()).real + (gz * torch.complex(-leak, inputs[2]).conj()).real
        g_lam = gz * dt
        return (
            (g_dt * dt).sum(-1),
            -g_lam.real * leak,
            g_lam.imag,
            gw * (c * held).conj(),
            gw * (b * held).conj(),
        )


def discretise(
    log_dt: Tensor,
    log_A_real: Tensor,
    A_imag: Tensor,
    VinvB_real: Tensor,
    VinvB_imag: Tensor,
    CV_real: Tensor,
    CV_imag: Tensor,
) -> tuple[Tensor, Tensor]:
    """Zero-order hold: the published parameters -> ``e, w`` of the recurrence, complex [channels, modes].

    ``e = expm1(Lam dt)``, one less than the factor on the hidden state; ``w = C B e/Lam``.
    """
    b = torch.complex(VinvB_real, VinvB_imag)
    c = torch.complex(CV_real, CV_imag)
    hold = _zero_order_hold if no_autograd() or transformed() else _ZeroOrderHold.apply
    return hold(log_dt, log_A_real, A_imag, b, c)
