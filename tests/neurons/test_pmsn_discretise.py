"""PMSN: from its parameters to the weights of the recurrence, against sixty digits."""

import copy
import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import (
    DTYPES,
    both_dtypes,
    examples,
    randn,
)
from msf_pmsn_plugins.neurons import PMSN
from msf_pmsn_plugins.neurons.pmsn import discretise
from msf_pmsn_plugins.neurons.pmsn.module import PARAMETERS
from subjects import (
    build_pmsn,
    drive,
)
from tolerances import F32, F64, assert_close

# ---------------------------------------------------------------- discretisation


def exact(log_dt, log_a, a_imag, b, c):
    """e = a - 1, w and their derivatives by (log_dt, log_A_real, A_imag), 60 digits."""
    mp = mpmath.mp
    with mpmath.workdps(60):
        dt = mp.exp(mp.mpf(log_dt))
        real = mp.exp(mp.mpf(log_a)) if log_a > -math.inf else mp.mpf(0)
        lam = mp.mpc(-real, mp.mpf(a_imag))
        cb = mp.mpc(b) * mp.mpc(c)
        a, e = mp.exp(lam * dt), mp.expm1(lam * dt)
        if lam == 0:
            phi, dphi = dt, dt**2 / 2
        else:
            phi, dphi = e / lam, (dt * a * lam - e) / lam**2
        value = {"e": e, "w": cb * phi}
        by = {
            ("e", 0): lam * dt * a,
            ("w", 0): cb * dt * a,
            ("e", 1): dt * a * -real,
            ("w", 1): cb * dphi * -real,
            ("e", 2): dt * a * mp.mpc(0, 1),
            ("w", 2): cb * dphi * mp.mpc(0, 1),
        }
    return {k: complex(v) for k, v in value.items()}, {k: complex(v) for k, v in by.items()}


def check_discretise(log_dt, log_a, a_imag, dtype):
    b, c = 0.75 - 0.5j, -0.25 + 1.5j
    leaves = [
        torch.tensor([log_dt], dtype=dtype),
        torch.tensor([[log_a]], dtype=dtype),
        torch.tensor([[a_imag]], dtype=dtype),
    ]
    for leaf in leaves:
        leaf.requires_grad_()
    fixed = [torch.full((1, 1), v, dtype=dtype) for v in (b.real, b.imag, c.real, c.imag)]
    out = dict(zip("ew", discretise(*leaves, *fixed), strict=True))
    value, by = exact(*(leaf.item() for leaf in leaves), b, c)
    for name in "ew":
        assert_close(out[name], torch.tensor([[value[name]]], dtype=torch.complex128), "discretise")
        parts = [
            torch.autograd.grad(getattr(out[name], part).sum(), leaves, retain_graph=True)
            for part in ("real", "imag")
        ]
        for i in range(3):
            ours = torch.complex(*(grads[i].double().reshape(()) for grads in parts))
            assert_close(
                ours, torch.tensor(by[name, i], dtype=torch.complex128), "discretise_gradient", dtype
            )


@both_dtypes
@pytest.mark.parametrize("dt", [1e-8, 1e-6, 1e-4, 1e-2, 0.3, 1.0, 3.0])
@pytest.mark.parametrize(
    ("log_a", "a_imag"), [(-0.7, 0.0), (-0.7, 4.1), (-12.0, 1e-3), (-math.inf, 0.0), (-math.inf, 2.0)]
)
def test_discretise_loses_no_digits(log_a, a_imag, dt, p):
    """At tiny steps (exp - 1)/Lam cancels, and at Lam = 0 it is 0/0; value and gradients must not."""
    check_discretise(math.log(dt), log_a, a_imag, DTYPES[p])


@examples(60)
@given(log_dt=st.floats(-18, 0), log_a=st.floats(-15, 0), a_imag=st.floats(-1, 1))
def test_discretise_anywhere(log_dt, log_a, a_imag):
    check_discretise(log_dt, log_a, a_imag, F64)


def test_the_weights_can_be_differentiated_twice_and_forward():
    parameters = [randn(2), randn(2, 3) - 1, randn(2, 3), *(randn(2, 3) for _ in range(4))]
    parameters = [part.requires_grad_() for part in parameters]

    def real(*parts):
        return torch.view_as_real(torch.cat(discretise(*parts)))

    assert torch.autograd.gradcheck(real, parameters)
    assert torch.autograd.gradgradcheck(real, parameters)
    assert torch.autograd.gradcheck(real, parameters, check_forward_ad=True, check_backward_ad=False)


@pytest.mark.parametrize("size", [0.98, 0.9999, 1.0, 1.0001, 1.02])
@pytest.mark.parametrize("angle", [0.5, 0.6, 0.75, 1.0])
def test_discretise_where_its_two_formulas_meet(angle, size):
    """|Lam dt| about 1, at angles between the imaginary axis (times pi) and the negative real one."""
    real, imag = -size * math.cos(math.pi * angle), size * math.sin(math.pi * angle)
    check_discretise(0.0, math.log(real) if real > 1e-9 else -math.inf, imag, F64)


@both_dtypes
def test_every_parameter_is_stable(p):
    neuron = PMSN(64, 17, init="sequence").to(DTYPES[p])
    e, _, _ = neuron.weights(DTYPES[p])
    assert ((1 + e.to(torch.complex128)).abs() < 1).all()


@pytest.mark.parametrize("dt", [1e-6, 1e-3])
def test_parameter_gradients_at_small_steps(dt):
    """float32 gradients of log_A_real and A_imag against float64: the published arithmetic is off by 1e-3 here."""
    neuron = build_pmsn(3)
    with torch.no_grad():
        neuron.log_dt.fill_(math.log(dt))
        neuron.VinvB_real.mul_(0.05 / dt)
        neuron.VinvB_imag.mul_(0.05 / dt)
        neuron.D.zero_()
    x, gs = randn(64, 2, 3, dtype=F32), randn(64, 2, 3, seed=2, dtype=F32)
    _, y = drive(neuron, x)
    grads = torch.autograd.grad(y, [getattr(neuron, n) for n in PARAMETERS], gs)
    wide = copy.deepcopy(neuron).double()
    exact_grads = torch.autograd.grad(
        drive(wide, x.double())[1], [getattr(wide, n) for n in PARAMETERS], gs.double()
    )
    for ours, theirs in zip(grads, exact_grads, strict=True):
        assert_close(ours, theirs, "pmsn_gradient")
