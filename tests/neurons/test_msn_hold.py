"""MSN: its zero-order hold against sixty digits, and gradients by finite differences."""

import math

import mpmath
import pytest
import torch
from torch.func import functional_call

from helpers import DTYPES, both_dtypes, randn, sequence
from msf_pmsn_plugins.neurons import MSN
from msf_pmsn_plugins.neurons.msn import msn_step, zero_order_hold
from subjects import TRIANGLE, build_msn, one_channel
from tolerances import F32, F64, assert_same

# a matrix exponential by scaling and squaring: a few roundings more than a scalar one, in proportion to the norm
HOLD = {F32: 5e-7, F64: 1e-15}


# ---------------------------------------------------------------- zero-order hold


def exact_hold(t, dt):
    """exp(t dt) and its integral from their series, 60 digits."""
    with mpmath.workdps(60):
        t, dt = mpmath.matrix(t), mpmath.mpf(dt)
        term, total = mpmath.eye(t.rows), mpmath.zeros(t.rows)
        integral, k = mpmath.zeros(t.rows), 0
        while mpmath.mnorm(term) > mpmath.mpf(10) ** -50:
            total, integral = total + term, integral + term * (dt / (k + 1))
            k += 1
            term = term * t * (dt / k)
        return (
            torch.tensor([[float(q) for q in row] for row in p.tolist()], dtype=F64)
            for p in (total, integral)
        )


MATRICES = {
    "no leak": [[0.0]],
    "one": [[-0.5]],
    "nilpotent": [[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [0.0, -2.0, 0.0]],
    "singular": [[-1.0, 1.0], [1.0, -1.0]],
    "published": [
        [-0.5, 5.0, 0.0, 0.0],
        [-5.0, -0.5, 10.0, 0.0],
        [0.0, -10.0, -0.5, 15.0],
        [0.0, 0.0, -15.0, -0.5],
    ],
    "defective": [[-1.0, 0.0], [3.0, -1.0]],
}


STEPS = [1e-7, 1e-3, 0.01, 0.03, 0.1, 1.0, 4.0]


all_matrices = pytest.mark.parametrize("name", MATRICES)


def hold_error(ours, theirs, t, dt, size=None):
    """Relative to the largest entry (of ``size``), and to the angle or decay that the step takes."""
    size = theirs if size is None else size
    scale = max(1.0, (t.abs().sum(0).max() * dt).item()) * size.abs().max().item()
    return (ours.double() - theirs).abs().max().item() / scale


@both_dtypes
@pytest.mark.parametrize("dt", STEPS)
@all_matrices
def test_hold_against_sixty_digits(name, dt, p):
    t, step = torch.tensor(MATRICES[name], dtype=DTYPES[p]), torch.tensor(dt, dtype=DTYPES[p])
    ours = zero_order_hold(t.unsqueeze(0), step.unsqueeze(0))
    for mine, theirs in zip(ours, exact_hold(t.double().tolist(), step.item()), strict=True):
        assert hold_error(mine[0], theirs, t, dt) <= HOLD[DTYPES[p]]


@both_dtypes
@pytest.mark.parametrize("dt", STEPS)
@all_matrices
def test_gradient_of_the_hold_against_sixty_digits(name, dt, p):
    """By dt the transition has derivative T A, and the integral A."""
    t, step = (
        torch.tensor(MATRICES[name], dtype=DTYPES[p]),
        torch.tensor(dt, dtype=DTYPES[p], requires_grad=True),
    )
    a, p_ = (part[0] for part in zero_order_hold(t.unsqueeze(0), step.unsqueeze(0)))
    exact, _ = exact_hold(t.double().tolist(), step.item())
    wide = t.double()
    for part, theirs, size in ((a, wide @ exact, wide.abs() @ exact.abs()), (p_, exact, exact)):
        rows = [torch.autograd.grad(entry, step, retain_graph=True)[0] for entry in part.flatten()]
        ours = torch.stack(rows).reshape(t.shape)
        if theirs.any():
            assert hold_error(ours, theirs, t, dt, size) <= 4 * HOLD[DTYPES[p]]
        else:
            assert not ours.any()


def test_hold_of_no_compartment_and_of_many_channels():
    a, p = zero_order_hold(torch.zeros(3, 0, 0), torch.ones(3))
    assert a.shape == p.shape == (3, 0, 0)
    t, dt = randn(5, 3, 3), torch.linspace(0.1, 1, 5, dtype=F64)
    a, p = zero_order_hold(t, dt)
    for i in range(5):
        one = zero_order_hold(t[i : i + 1], dt[i : i + 1])
        assert_same(a[i], one[0][0])
        assert_same(p[i], one[1][0])


def test_matrix_is_the_chain():
    neuron = MSN(
        2,
        4,
        start={"beta_up": (1.0, 2.0, 3.0), "beta_down": (4.0, 5.0, 6.0), "log_tau": (0.0, 0.0, math.inf)},
    )
    assert neuron.matrix().tolist() == [[[-1.0, 4.0, 0.0], [1.0, -1.0, 5.0], [0.0, 2.0, 0.0]]] * 2
    assert neuron.log_tau.requires_grad


# ---------------------------------------------------------------- the smooth parts by finite differences


@pytest.mark.parametrize("compartments", [1, 2, 4])
def test_finite_differences_of_the_linear_part(compartments):
    """No spike: membranes and last state against every input, state and parameter."""
    neuron = build_msn(2, compartments, dtype=F64, v_threshold=1e6)
    names = [name for name, _ in neuron.named_parameters()]
    x = randn(4, 1, 2)
    v, h = randn(1, 2, seed=5), randn(1, 2, compartments - 1, seed=6)

    def linear(x, v, h, *values):
        _, state, m = functional_call(
            _Membranes(neuron), dict(zip(_prefixed(names), values, strict=True)), (x, v, h)
        )
        return m, *state

    leaves = [t.detach().clone().requires_grad_() for t in (x, v, h, *neuron.parameters())]
    assert torch.autograd.gradcheck(linear, leaves)


class _Membranes(torch.nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.neuron = neuron

    def forward(self, x, v, h):
        return self.neuron.sequence(x, (v, h), membrane=True)


def _prefixed(names):
    return [f"neuron.{name}" for name in names]


@pytest.mark.parametrize("feedback", ["residual", "membrane"])
@pytest.mark.parametrize("compartments", [2, 3])
def test_finite_differences_through_the_reset(compartments, feedback):
    """A smooth spike and no detaching: every path of the step, reset and what it takes from the dendrite included."""
    settings = {"feedback": feedback, "reset_feedback": 0.3, "detach_reset": False}
    neuron = build_msn(2, compartments, dtype=F64, surrogate=torch.sigmoid, **settings)
    names = [name for name, _ in neuron.named_parameters()]

    def smooth(x, v, h, *values):
        s, state, m = functional_call(
            _Membranes(neuron), dict(zip(_prefixed(names), values, strict=True)), (x, v, h)
        )
        return s, m, *state

    x, v, h = randn(4, 1, 2), randn(1, 2, seed=5), randn(1, 2, compartments - 1, seed=6)
    leaves = [t.detach().clone().requires_grad_() for t in (x, v, h, *neuron.parameters())]
    assert torch.autograd.gradcheck(smooth, leaves)


def test_gradients_at_an_absent_leak_are_finite():
    neuron = build_msn(2, 3, dtype=F64)
    with torch.no_grad():
        neuron.log_tau.fill_(math.inf)
        neuron.log_tau_soma.fill_(math.inf)
    sequence(neuron, randn(20, 3, 2))[0].sum().backward()
    for name, parameter in neuron.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert not neuron.log_tau.grad.any()
    assert not neuron.log_tau_soma.grad.any()
    assert neuron.beta_down.grad.any()


# ---------------------------------------------------------------- gradient through the reset


def test_detached_reset_keeps_the_path_of_the_membrane():
    """Two steps of an integrator that fires: ds[1]/dx[0] = h(v[1]) whether a threshold was taken or not."""
    for mode in ("subtract", "floor"):
        neuron = MSN.lif(1, 1.0, reset_mode=mode).double()
        x = torch.tensor([1.25, 0.5], dtype=F64).reshape(2, 1, 1).requires_grad_()
        s, _, m = sequence(neuron, x)
        assert m.flatten().tolist() == [1.25, 0.75]
        (gx,) = torch.autograd.grad(s[1].sum(), x)
        assert gx.flatten().tolist() == [0.75, 0.75]


def test_attached_reset_by_hand():
    """Mode "subtract": the path is 1 - h(v[0]). Mode "floor": the straight-through floor takes all of it."""
    for mode, first in (("subtract", 0.75 * (1 - 0.75)), ("floor", 0.0)):
        neuron = MSN.lif(1, 1.0, reset_mode=mode, detach_reset=False).double()
        x = torch.tensor([1.25, 0.5], dtype=F64).reshape(2, 1, 1).requires_grad_()
        s, _, _ = sequence(neuron, x)
        (gx,) = torch.autograd.grad(s[1].sum(), x)
        assert gx.flatten().tolist() == [first, 0.75]


def test_attached_floor_reaches_the_dendrite_through_the_count():
    """k = m/theta in the backward: what a spike takes from the dendrite has slope reset_feedback/theta."""
    weights = one_channel([[1.0]], [0.0], [0.0], 0.0, 1.0, 0.0)
    x = torch.full((1, 1), 1.75, dtype=F64, requires_grad=True)
    zero = torch.zeros(1, 1, dtype=F64)
    for detach, slope in ((True, None), (False, -0.25 / 0.5)):
        _, _, h, _ = msn_step(
            x, zero, zero[..., None], weights, 0.5, TRIANGLE, "floor", "residual", 0.25, detach
        )
        assert h.item() == -0.75
        (gx,) = torch.autograd.grad(h.sum(), x)
        assert gx.item() == (slope or 0.0)
