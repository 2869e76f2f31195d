"""PMSN: the identities of its specification that need gradients."""

import copy
import math

import pytest
import torch

from helpers import (
    DTYPES,
    PMSN_FLOATS,
    all_backends,
    all_ways,
    assert_matches_step,
    both_dtypes,
    randn,
    sequence,
)
from msf_pmsn_plugins.neurons import PMSN
from msf_pmsn_plugins.neurons.pmsn import discretise, pmsn
from msf_pmsn_plugins.neurons.pmsn.module import PARAMETERS, PER_CHANNEL
from msf_pmsn_plugins.surrogate import Surrogate
from msf_pmsn_plugins.tensors import PMSNState, PMSNWeights
from subjects import (
    at_rest,
    build_pmsn,
    drive,
    kernel_of,
    soma,
)
from tolerances import F64, assert_close, assert_same


def total_gradients(neuron, x, gs):
    s, _, m = sequence(neuron, x)
    names = ["x", *PARAMETERS]
    grads = torch.autograd.grad(s, [x, *(getattr(neuron, n) for n in PARAMETERS)], gs)
    return s, m, dict(zip(names, grads, strict=True))


def test_phase_invariance():
    """B -> p B, C -> C/p changes neither drive, spikes nor the gradient to the input."""
    neuron, x, gs = build_pmsn(3, dtype=F64), randn(60, 2, 3).requires_grad_(), randn(60, 2, 3, seed=9)
    s, m, g = total_gradients(neuron, x, gs)
    turned = copy.deepcopy(neuron)
    p = torch.polar(torch.ones(3, 4, dtype=F64) * 1.5, randn(3, 4, seed=4))
    with torch.no_grad():
        for name, factor in (("VinvB", p), ("CV", 1 / p)):
            value = torch.complex(getattr(turned, f"{name}_real"), getattr(turned, f"{name}_imag")) * factor
            getattr(turned, f"{name}_real").copy_(value.real)
            getattr(turned, f"{name}_imag").copy_(value.imag)
    s_, m_, g_ = total_gradients(turned, x, gs)
    assert_same(s_, s)
    assert_close(m_, m, "drive")
    for name in ("x", "log_dt", "log_A_real", "A_imag", "D"):
        assert_close(g_[name], g[name], "pmsn_adjoint")


def test_mode_permutation():
    neuron, x, gs = build_pmsn(3, dtype=F64), randn(60, 2, 3).requires_grad_(), randn(60, 2, 3, seed=9)
    s, m, g = total_gradients(neuron, x, gs)
    order = torch.tensor([2, 0, 3, 1])
    permuted = copy.deepcopy(neuron)
    with torch.no_grad():
        for name in PARAMETERS:
            if name not in PER_CHANNEL:
                getattr(permuted, name).copy_(getattr(neuron, name)[:, order])
    s_, m_, g_ = total_gradients(permuted, x, gs)
    assert_same(s_, s)
    assert_close(m_, m, "drive")
    for name in g:
        expected = g[name] if name == "x" or name in PER_CHANNEL else g[name][:, order]
        assert_close(g_[name], expected, "pmsn_adjoint")


def test_silent_modes_change_nothing_but_their_own_output_gradient():
    neuron, x, gs = build_pmsn(3, 3, dtype=F64), randn(60, 2, 3).requires_grad_(), randn(60, 2, 3, seed=9)
    s, _, g = total_gradients(neuron, x, gs)
    wider = build_pmsn(3, 5, dtype=F64, seed=20)
    with torch.no_grad():
        for name in PARAMETERS:
            if name in PER_CHANNEL:
                getattr(wider, name).copy_(getattr(neuron, name))
            else:
                getattr(wider, name)[:, :2] = getattr(neuron, name)
        wider.CV_real[:, 2:] = wider.CV_imag[:, 2:] = 0
    s_, _, g_ = total_gradients(wider, x, gs)
    assert_same(s_, s)
    for name in g:
        assert_close(
            g_[name] if name == "x" or name in PER_CHANNEL else g_[name][:, :2], g[name], "pmsn_adjoint"
        )
    for name in ("log_A_real", "A_imag", "VinvB_real", "VinvB_imag"):
        assert not g_[name][:, 2:].any()
    assert g_["CV_real"][:, 2:].all()


def test_conjugate_pairs_have_conjugate_gradients():
    neuron, x, gs = PMSN(3).double(), (5 * randn(60, 2, 3)).requires_grad_(), randn(60, 2, 3, seed=9)
    s, _, g = total_gradients(neuron, x, gs)
    assert s.sum() > 0
    for name, sign in (
        ("log_A_real", 1),
        ("A_imag", -1),
        ("VinvB_real", 1),
        ("VinvB_imag", -1),
        ("CV_real", 1),
        ("CV_imag", -1),
    ):
        assert_close(g[name].flip(1), sign * g[name], "pmsn_adjoint")
    e, w, d = (t.detach() for t in neuron.weights(F64))
    flat = x.detach().unsqueeze(-1)
    _, y, _, _ = pmsn(flat, at_rest(flat[0], 2), PMSNWeights(e[:, :2], 2 * w[:, :2], d))
    assert_close(y.squeeze(-1), drive(neuron, x)[1], "drive")  # twice the real part of one half


@all_ways
def test_causality_of_outputs_and_gradients(way):
    neuron, x = build_pmsn(3, dtype=F64), randn(70, 2, 3).requires_grad_()
    s, _, m = way(neuron, x)
    for t in (0, 31, 32, 40, 69):
        (gx,) = torch.autograd.grad(s[t].sum(), x, retain_graph=True)
        assert not gx[t + 1 :].any()
        changed = x.detach().clone()
        changed[t + 1 :] += 3 * randn(69 - t, 2, 3, seed=5)
        s_, _, m_ = way(neuron, changed)
        assert_same(s_[: t + 1], s[: t + 1])
        assert_close(m_[: t + 1], m[: t + 1], "drive")


@all_backends
def test_drive_is_linear_in_the_input(backend):
    neuron, x, u = build_pmsn(3, dtype=F64), randn(70, 2, 3), randn(70, 2, 3, seed=1)
    y = [drive(neuron, v, backend)[1] for v in (x, u, 2 * x - 3 * u)]
    assert_close(y[2], 2 * y[0] - 3 * y[1], "drive")


@all_backends
def test_reset_sees_the_positive_part_only(backend):
    y = randn(100, 20)
    s, _, _, r = soma(y, 1.0, backend)
    s_, _, _, r_ = soma(torch.where(y < 0, y - 7, y), 1.0, backend)
    assert_same(s_, s)
    assert_same(r_, r)


@all_ways
def test_one_hot_gradient(way):
    """gs at t alone: h(v[t]) [y[t] > 0] (K[t-i] + D [i = t])."""
    neuron, x = build_pmsn(2, dtype=F64), randn(70, 1, 2).requires_grad_()
    s, _, m = way(neuron, x)
    weights = neuron.weights(F64)
    kernel, d = kernel_of(weights, 70).T.detach(), weights.d.detach()  # [T, C]
    y = drive(neuron, x)[1].detach()
    used = 0
    for t in (*range(0, 70, 5), 31, 32, 33, 69):
        (gx,) = torch.autograd.grad(s[t].sum(), x, retain_graph=True)
        gy = (1 - (m.detach()[t, 0] - 1).abs()).clamp(min=0) * (y[t, 0] > 0)
        expected = torch.zeros(70, 2, dtype=F64)
        expected[: t + 1] = gy * kernel[: t + 1].flip(0)
        expected[t] += gy * d
        assert_close(gx[:, 0], expected, "pmsn_adjoint")
        used += bool(gy.any())
    assert used > 8


@pytest.mark.parametrize("modes", [1, 3])
@pytest.mark.parametrize("steps", [5, 35])
def test_finite_differences_of_the_linear_part(steps, modes):
    """Drive and last state against every input and every published parameter, surrogate left out."""
    neuron = build_pmsn(2, modes + 1, dtype=F64)
    names = [n for n, _ in neuron.named_parameters()]
    x, z = randn(steps, 1, 2, 1), torch.complex(randn(1, 2, 1, modes, seed=1), randn(1, 2, 1, modes, seed=2))
    r = torch.zeros(1, 2, 1, dtype=F64)

    def linear(x, z, *values):
        byname = dict(zip(names, values, strict=True))
        e, w = discretise(*(byname[n] for n in PARAMETERS if n != "D"))
        _, y, _, state = pmsn(x, PMSNState(r, z), PMSNWeights(e, w, byname["D"]))
        return y, state.z

    leaves = [t.detach().clone().requires_grad_() for t in (x, z, *neuron.parameters())]
    assert torch.autograd.gradcheck(linear, leaves, fast_mode=steps > 10)


def test_one_real_mode_is_a_leaky_integrator():
    neuron = PMSN(1, 2).double()
    assert neuron.A_imag.tolist() == [[0.0]]
    with torch.no_grad():
        neuron.log_dt.fill_(math.log(0.5))
        neuron.D.fill_(0.25)
    x = randn(60, 3, 1)
    s, _, m = sequence(neuron, x)
    rate = math.exp(neuron.log_A_real.item())
    decay = math.exp(-rate * 0.5)
    gain = (1 - decay) / rate * (neuron.VinvB_real * neuron.CV_real).item()
    v = r = hidden = torch.zeros(3, 1, dtype=F64)
    for t in range(60):
        hidden = decay * hidden + gain * x[t]
        v = r + (hidden + 0.25 * x[t]).clamp(min=0)
        assert_close(m[t], v, "drive")
        assert_same(s[t], (v >= 1).to(F64))
        r = v % 1


@all_ways
@both_dtypes
@pytest.mark.parametrize("theta", [0.5, 0.3, 2.0])
def test_units_are_volts_whatever_the_threshold(theta, p, way):
    """Against the loop of sections 2.4 and 4.1 in volts: the half-width stays 1 V, no factor 1/theta appears."""
    neuron = build_pmsn(3, dtype=F64, v_threshold=theta)
    x = randn(50, 2, 3).requires_grad_()
    gs = randn(50, 2, 3, seed=4)
    parameters = [getattr(neuron, n) for n in PARAMETERS]
    # reference: convolution for the drive, a loop in volts for the soma
    weights = neuron.weights(F64)
    kernel, d = kernel_of(weights, 50), weights.d
    y = torch.stack(
        [(kernel[:, : t + 1].flip(1) * x[: t + 1].permute(1, 2, 0)).sum(-1) + d * x[t] for t in range(50)]
    )
    r, spikes, volts = torch.zeros(2, 3, dtype=F64), [], []
    for drive_t in y.detach():
        v = r + drive_t.clamp(min=0)
        spikes.append((v >= theta).double())
        volts.append(v)
        r = v - theta * torch.floor(v / theta)
    v = torch.stack(volts)
    gy = gs * (1 - (v - theta).abs()).clamp(min=0) * (y > 0)
    expected = torch.autograd.grad(y, [x, *parameters], gy)
    narrow = copy.deepcopy(neuron).to(DTYPES[p])
    xs = x.detach().to(DTYPES[p]).requires_grad_()
    s, _, m = way(narrow, xs)
    assert_same(s.double(), torch.stack(spikes))
    assert_close(m, v, "drive")
    actual = torch.autograd.grad(s, [xs, *(getattr(narrow, n) for n in PARAMETERS)], gs.to(DTYPES[p]))
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, "pmsn_adjoint")


@all_backends
def test_slope_at_the_edges(backend):
    """h(1) = 1, h(0) = h(2) = 0; y = 0 and y < 0 pass nothing even where h does not vanish."""
    y = torch.tensor([[1.0, 2.0, 0.25, 0.0, -1.0]], dtype=F64, requires_grad=True)
    r = torch.tensor([0.0, 0.0, 0.0, 0.75, 0.75], dtype=F64)
    s, _, _, _ = soma(y, 1.0, backend, r)
    s.sum().backward()
    assert s.tolist() == [[1, 1, 0, 0, 0]]
    assert y.grad.tolist() == [[1.0, 0.0, 0.25, 0.0, 0.0]]


@pytest.mark.parametrize(
    "surrogate", ["rectangular", "atan", "sigmoid", "gaussian", Surrogate("triangle", 0.25)]
)
def test_other_surrogates(surrogate):
    neuron, x = (
        build_pmsn(3, dtype=F64, surrogate=surrogate, v_threshold=0.5),
        randn(40, 2, 3).requires_grad_(),
    )
    assert_matches_step(neuron, x, precision=PMSN_FLOATS)
