"""MSN: by hand, its special cases (LIF, TC-LIF, PMSN), the zero-order hold, and ``sequence`` against ``step``."""

import contextlib
import copy
import io
import itertools
import math
import pickle
import re
from fractions import Fraction
from pathlib import Path

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call

from helpers import DTYPES, PATHS, chunks, examples, loop, poisoned_empty, sequence
from msf_pmsn_plugins.backends import BACKENDS
from msf_pmsn_plugins.neurons import MSF, MSN, PMSN
from msf_pmsn_plugins.neurons.msn import PARAMETERS, Weights, msn_step, zero_order_hold
from msf_pmsn_plugins.surrogate import Surrogate
from tolerances import F32, F64, assert_close, assert_same

ROOT = Path(__file__).parents[2]
TRIANGLE = Surrogate("triangle", 1.0)
both_dtypes = pytest.mark.parametrize("p", DTYPES)
all_paths = pytest.mark.parametrize("how", PATHS)
# a matrix exponential by scaling and squaring: a few roundings more than a scalar one, in proportion to the norm
HOLD = {F32: 5e-7, F64: 1e-15}


@pytest.fixture(autouse=True, scope="module")
def _poison():
    with poisoned_empty():
        yield


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def build(channels=3, compartments=4, seed=0, dtype=F32, **kwargs):
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


SETTINGS = [
    {"reset_mode": mode, "feedback": feedback, "reset_feedback": volts, "detach_reset": detach}
    for mode, feedback, volts, detach in itertools.product(
        ("subtract", "floor"), ("residual", "membrane"), (0.0, 0.3), (True, False)
    )
]
all_settings = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))


# ---------------------------------------------------------------- by hand


def one_channel(a, b, back, up, gain, leak, dtype=F64):
    return Weights(*(torch.tensor([value], dtype=dtype) for value in (a, b, back, up, gain, leak)))


BY_HAND = {
    # x = 2, 0, 0; spike, membrane, soma after its reset, hidden compartments before the next input
    ("residual", "subtract"): [
        (1, 3.0, 2.0, [1.625, -2.75]),
        (0, -4.5, -4.5, [-1.0, 2.3125]),
        (1, 2.375, 1.375, [0.296875, 0.03125]),
    ],
    ("membrane", "subtract"): [
        (1, 3.0, 2.0, [1.875, -3.75]),
        (0, -6.5, -6.5, [-1.625, 3.6875]),
        (1, 4.125, 3.125, [1.015625, -1.71875]),
    ],
    ("residual", "floor"): [
        (1, 3.0, 0.0, [0.875, -1.25]),
        (0, -2.5, -2.5, [-0.5, 1.4375]),
        (1, 1.625, 0.625, [0.140625, 0.09375]),
    ],
}


@both_dtypes
@pytest.mark.parametrize(("feedback", "mode"), BY_HAND)
def test_by_hand(feedback, mode, p):
    """Numbers from paper and pencil; all of them are dyadic, so both dtypes are exact."""
    weights = one_channel([[0.5, 0.25], [-0.5, 0.5]], [1.0, 0.5], [0.25, -1.0], 2.0, 0.5, 0.5, DTYPES[p])
    v, h = torch.zeros(1, 1, dtype=DTYPES[p]), torch.zeros(1, 1, 2, dtype=DTYPES[p])
    seen = []
    for x in (2.0, 0.0, 0.0):
        s, v, h, m = msn_step(
            torch.full_like(v, x), v, h, weights, 1.0, TRIANGLE, mode, feedback, reset_feedback=0.5
        )
        seen.append((s.item(), m.item(), v.item(), h.flatten().tolist()))
    assert seen == BY_HAND[feedback, mode]


@pytest.mark.parametrize("mode", ["subtract", "floor"])
def test_ties_fire(mode):
    neuron = MSN.lif(1, decay=1.0, reset_mode=mode)
    s, (v, _), m = sequence(neuron, torch.tensor([1.0, 0.5, 0.5, -3.0, 2.5]).reshape(5, 1, 1))
    assert m.flatten().tolist() == [1.0, 0.5, 1.0, -3.0, -0.5]
    assert s.flatten().tolist() == [1, 0, 1, 0, 0]
    assert v.item() == -0.5


@both_dtypes
@pytest.mark.parametrize("theta", [1.0, 0.5, 0.3, 0.7])
def test_floor_reset_is_exact(theta, p):
    """The residual is the exact remainder of the membrane, in [0, theta); k counts what was taken."""
    m = torch.cat([randn(500, dtype=DTYPES[p]) * 4, torch.arange(-9, 10, dtype=DTYPES[p]) * theta])
    weights = one_channel([[0.0]], [0.0], [0.0], 0.0, 1.0, 0.0, DTYPES[p])
    h = torch.zeros(1, len(m), 1, dtype=DTYPES[p])
    weights = Weights(*(w.reshape(1, 1, *w.shape[1:]) for w in weights))
    s, v, _, _ = msn_step(m[None], m[None], h, weights, theta, TRIANGLE, "floor")
    unit = Fraction(torch.tensor(theta, dtype=DTYPES[p]).item())
    for volts, spike, left in zip(m.tolist(), s[0].tolist(), v[0].tolist(), strict=True):
        exact = Fraction(volts)
        assert Fraction(left) == (exact % unit if exact >= unit else exact)
        assert spike == (exact >= unit)


def test_a_spike_takes_reset_feedback_for_each_threshold():
    weights = one_channel([[1.0]], [0.0], [0.0], 0.0, 1.0, 0.0)
    for mode, taken in (("subtract", 0.25), ("floor", 0.75)):
        _, _, h, _ = msn_step(
            torch.full((1, 1), 3.5, dtype=F64),
            torch.zeros(1, 1, dtype=F64),
            torch.zeros(1, 1, 1, dtype=F64),
            weights,
            1.0,
            TRIANGLE,
            mode,
            reset_feedback=0.25,
        )
        assert h.item() == -taken


# ---------------------------------------------------------------- the continuous chain, step by step


def integrate(v, dt, rate):
    """The potentials after ``dt`` of ``dv/dt = rate(v)``, by 200 Runge-Kutta steps."""
    step = dt / 200
    for _ in range(200):
        k_1 = rate(v)
        k_2 = rate([a + step / 2 * b for a, b in zip(v, k_1, strict=True)])
        k_3 = rate([a + step / 2 * b for a, b in zip(v, k_2, strict=True)])
        k_4 = rate([a + step * b for a, b in zip(v, k_3, strict=True)])
        slopes = zip(k_1, k_2, k_3, k_4, strict=True)
        v = [a + step / 6 * (p + 2 * q + 2 * r + s) for a, (p, q, r, s) in zip(v, slopes, strict=True)]
    return v


def chain(neuron, inputs):
    """One channel in plain numbers: the compartments one by one, integrated, not exponentiated."""
    values = {name: q.flatten().tolist() for name, q in neuron.named_parameters()}
    dt, tau_soma = math.exp(values["log_dt"][0]), math.exp(values["log_tau_soma"][0])
    up, down, gamma = values["beta_up"], values["beta_down"], values["gamma"]
    hidden = range(neuron.hidden)

    def rate(v, drives):
        leaks = [-v[i] / math.exp(values["log_tau"][i]) for i in hidden]
        below = [up[i - 1] * v[i - 1] if i else 0.0 for i in hidden]
        above = [down[i] * v[i + 1] if i + 1 < len(v) else 0.0 for i in hidden]
        return [sum(terms) for terms in zip(leaks, below, above, drives, strict=True)]

    h, soma, rows = [0.0] * neuron.hidden, 0.0, []
    for x in inputs:
        entered = integrate([0.0] * neuron.hidden, dt, lambda v: rate(v, [g * x for g in gamma[:-1]]))  # noqa: B023
        h = [a + b for a, b in zip(h, entered, strict=True)]
        m = math.exp(-dt / tau_soma) * soma + up[-1] * h[-1] + gamma[-1] * x
        k = int(m >= 1) if neuron.reset_mode == "subtract" else max(math.floor(m), 0)
        soma = m - k
        h[-1] -= neuron.reset_feedback * k
        seen = soma if neuron.feedback == "residual" else m
        drives = [0.0] * (neuron.hidden - 1) + [down[-1] * seen]
        h = integrate(h, dt, lambda v: rate(v, drives))  # noqa: B023
        rows.append((float(k > 0), m))
    return rows, soma, h


@pytest.mark.parametrize("settings", SETTINGS[::2], ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("compartments", [2, 3, 5])
def test_the_chain_is_what_its_equations_say(compartments, settings):
    """Against plain numbers: every leak, coupling, gain and the feedback, in every place of the chain."""
    neuron = build(1, compartments, seed=3, dtype=F64, **settings)
    with torch.no_grad():
        neuron.log_dt.fill_(-0.5)
    x = randn(12, 1, 1) * 1.5
    s, (v, h), m = sequence(neuron, x)
    rows, soma, hidden = chain(neuron, x.flatten().tolist())
    assert 0 < s.sum() < 12
    assert s.flatten().tolist() == [spike for spike, _ in rows]
    assert m.flatten().tolist() == pytest.approx([volts for _, volts in rows], abs=1e-8)
    assert v.item() == pytest.approx(soma, abs=1e-8)
    assert h.flatten().tolist() == pytest.approx(hidden, abs=1e-8)


# ---------------------------------------------------------------- one compartment: LIF


@both_dtypes
@all_paths
@pytest.mark.parametrize("decay", [0.25, 0.5, 0.9, 1.0])
def test_one_compartment_is_lif(decay, how, p):
    """Bit for bit MSF with one threshold and a soft reset: spikes, membranes, state, gradient to input and state."""
    dtype = DTYPES[p]
    neuron = MSN.lif(3, decay).to(dtype)
    leak = neuron.weights(dtype).leak
    assert leak.tolist() == pytest.approx([decay] * 3, rel=1e-6)
    reference = MSF(D=1, decay=leak[0].item(), reset_mode="soft", surrogate=TRIANGLE)
    x, v0 = randn(40, 2, 3, dtype=dtype).mul(1.5), randn(2, 3, seed=1, dtype=dtype)
    results = []
    for node, path in ((neuron, PATHS[how]), (reference, loop)):
        xs, v = x.clone().requires_grad_(), v0.clone().requires_grad_()
        state = (v, v.new_zeros(2, 3, 0)) if node is neuron else (v,)
        s, (v1, *_), m = path(node, xs, state)
        results.append((s, v1, m, *torch.autograd.grad((s, m), [xs, v], [torch.ones_like(s), m.detach()])))
    assert results[0][0].sum() > 0
    for ours, theirs in zip(*results, strict=True):
        assert_same(ours, theirs)
    assert not [q for q in neuron.parameters() if q.requires_grad]


def test_lif_decay_survives_float32():
    """Through log tau and back the factor is a rounding off at most."""
    for decay in (1e-3, 0.1, 0.25, 0.5, 0.875, 0.99, 0.999, 1.0):
        leak = MSN.lif(1, decay).double().weights(F64).leak.item()
        assert abs(leak - decay) <= 3e-7 * decay
    assert MSN.lif(1, 1.0).weights().leak.item() == 1.0


# ---------------------------------------------------------------- two compartments: TC-LIF


def tc_lif(x_seq, beta_1, beta_2, gamma, theta, feedback, detach):
    """Equations 10 to 12 of the paper, or the published code, whose U_S[t-1] in (10) is the one after the reset."""
    dendrite = soma = spike = torch.zeros_like(x_seq[0])
    rows = []
    for x in x_seq:
        given = spike.detach() if detach else spike
        seen = soma if feedback == "membrane" else soma - theta * given
        dendrite = dendrite + beta_1 * seen + x - gamma * given
        soma = soma + beta_2 * dendrite - theta * given
        spike = TRIANGLE(soma - theta)
        rows.append((spike, soma, dendrite))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def dendrites(neuron, x_seq):
    """The dendrite of each step: the state before it, plus its input."""
    state, rows = neuron.initial_state(x_seq[0]), []
    for x in x_seq:
        rows.append(state[1][..., 0] + x)
        _, state, _ = neuron.step(x, state)
    return torch.stack(rows)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("feedback", ["membrane", "residual"])
@pytest.mark.parametrize(("gamma", "theta"), [(0.5, 1.0), (0.7, 1.5), (0.5, 1.8)])
def test_two_compartments_are_tc_lif(gamma, theta, feedback, detach):
    """Spikes, both compartments, gradients to the input and, by the chain rule, to the published c_1 and c_2."""
    kwargs = {"feedback": feedback, "detach_reset": detach, "v_threshold": theta}
    neuron = MSN.tc_lif(3, gamma=gamma, **kwargs).double()
    c_1, c_2 = (randn(3, seed=seed).requires_grad_() for seed in (1, 2))
    beta_1, beta_2 = -torch.sigmoid(c_1), torch.sigmoid(c_2)
    with torch.no_grad():
        neuron.beta_down.copy_(beta_1[:, None])
        neuron.beta_up.copy_(beta_2[:, None])
    x = randn(60, 4, 3).requires_grad_()
    up = randn(60, 4, 3, seed=3)
    s, _, m = sequence(neuron, x)
    spikes, soma, dendrite = tc_lif(x, beta_1, beta_2, gamma, theta, feedback, detach)
    assert 0.05 < spikes.mean() < 0.6
    assert_same(s, spikes)
    assert_close(m, soma, "drive")
    assert_close(dendrites(neuron, x), dendrite, "drive")
    gx, g_down, g_up = torch.autograd.grad(s, [x, neuron.beta_down, neuron.beta_up], up)
    expected = torch.autograd.grad(spikes, [x, c_1, c_2], up)
    ours = gx, g_down[:, 0] * beta_1 * (1 + beta_1), g_up[:, 0] * beta_2 * (1 - beta_2)
    for mine, theirs in zip(ours, expected, strict=True):
        assert_close(mine, theirs, "pmsn_adjoint")


def test_the_two_forms_of_tc_lif_differ_by_a_constant():
    """beta_1 (U_S - theta S) - gamma S = beta_1 U_S - (gamma + beta_1 theta) S."""
    x = randn(80, 4, 3)
    code = MSN.tc_lif(3, -0.25, 0.5, gamma=0.5, feedback="residual", v_threshold=1.5).double()
    same = MSN.tc_lif(3, -0.25, 0.5, gamma=0.125, feedback="membrane", v_threshold=1.5).double()
    other = MSN.tc_lif(3, -0.25, 0.5, gamma=0.5, feedback="membrane", v_threshold=1.5).double()
    assert_same(sequence(code, x)[0], sequence(same, x)[0])
    assert_close(sequence(code, x)[2], sequence(same, x)[2], "drive")
    assert (sequence(code, x)[0] != sequence(other, x)[0]).any()


@both_dtypes
@examples(20)
@given(eighths=st.lists(st.integers(-12, 24), min_size=1, max_size=8))
def test_tc_lif_is_exact_on_a_lattice(p, eighths):
    """beta and gamma 1/2, inputs in eighths, 8 steps: bit-equal to rational arithmetic, ties included."""
    x = torch.tensor(eighths, dtype=DTYPES[p]).reshape(-1, 1, 1) / 8
    s, _, m = sequence(MSN.tc_lif(1).to(DTYPES[p]), x)
    half, dendrite, soma, spike = Fraction(1, 2), Fraction(0), Fraction(0), 0
    for t, eighth in enumerate(eighths):
        dendrite = dendrite - half * soma + Fraction(eighth, 8) - half * spike
        soma = soma + half * dendrite - spike
        spike = int(soma >= 1)
        assert (s[t].item(), m[t].item()) == (spike, float(soma))


def test_tc_lif_learns_its_couplings_only():
    for neuron in (MSN.tc_lif(3), MSN.tc_lif()):
        assert {name for name, q in neuron.named_parameters() if q.requires_grad} == {"beta_up", "beta_down"}
    neuron(torch.randn(2, 2, 5))
    assert {name for name, q in neuron.named_parameters() if q.requires_grad} == {"beta_up", "beta_down"}
    assert neuron.detach_reset is False


# ---------------------------------------------------------------- no leak, no feedback: PMSN without its clamp


def as_pmsn(neuron, **kwargs):
    """PMSN in the eigenbasis of the hidden compartments, in double."""
    values, vectors = torch.linalg.eig(neuron.matrix(F64).detach())
    assert (values.real < 0).all()
    b = torch.linalg.solve(vectors, neuron.gamma[:, :-1].to(vectors.dtype))
    c = neuron.beta_up[:, -1:] * vectors[:, -1]
    other = PMSN(neuron.channels, neuron.compartments, v_threshold=neuron.v_threshold, **kwargs).double()
    with torch.no_grad():
        other.log_dt.copy_(neuron.log_dt)
        other.log_A_real.copy_(torch.log(-values.real))
        other.A_imag.copy_(values.imag)
        for name, value in (("VinvB", b), ("CV", c)):
            getattr(other, f"{name}_real").copy_(value.real)
            getattr(other, f"{name}_imag").copy_(value.imag)
        other.D.copy_(neuron.gamma[:, -1])
    return other


@pytest.mark.parametrize("theta", [1.0, 0.7])
@pytest.mark.parametrize("compartments", [2, 3, 5])
def test_without_leak_and_feedback_it_is_pmsn(compartments, theta):
    """Spikes, membranes and, with the floor's straight-through estimate, gradients of PMSN's serial reset."""
    kwargs = {"reset_mode": "floor", "detach_reset": False, "v_threshold": theta}
    neuron = build(3, compartments, dtype=F64, **kwargs)
    with torch.no_grad():
        neuron.log_tau_soma.fill_(math.inf)
        neuron.beta_down[:, -1] = 0
    x = randn(80, 2, 3).requires_grad_()
    other = as_pmsn(neuron, reset_mode="serial")
    (s, (v, _), m), (s_, (r, _), m_) = sequence(neuron, x), sequence(other, x)
    assert 0.05 < s.mean() < 0.9
    assert (m < 0).any()
    assert_same(s, s_)
    assert_close(m, m_, "drive")
    assert_close(v, r * theta, "residual")
    up = randn(*x.shape, seed=9)
    ours = torch.autograd.grad(s, [x, neuron.gamma, neuron.log_dt], up)
    theirs = torch.autograd.grad(s_, [x, other.D, other.log_dt], up)
    assert_close(ours[0], theirs[0], "pmsn_adjoint")
    assert_close(ours[1][:, -1], theirs[1], "pmsn_adjoint")
    assert_close(ours[2], theirs[2], "pmsn_adjoint")


def test_without_leak_and_feedback_it_is_a_plain_loop():
    """The same from the words: drives by PMSN's recurrence, v = r + y, k = max(floor(v/theta), 0)."""
    neuron = build(2, 4, dtype=F64, reset_mode="floor")
    with torch.no_grad():
        neuron.log_tau_soma.fill_(math.inf)
        neuron.beta_down[:, -1] = 0
    x = randn(60, 3, 2)
    a, w, d = as_pmsn(neuron).weights(F64)
    z, r = torch.zeros(3, 2, 3, dtype=torch.complex128), torch.zeros(3, 2, dtype=F64)
    s, _, m = sequence(neuron, x)
    for t in range(60):
        z = a * z + x[t].unsqueeze(-1)
        v = r + (w * z).sum(-1).real + d * x[t]
        r = v - torch.floor(v).clamp(min=0)
        assert_close(m[t], v, "drive")
        assert_same(s[t], (v >= 1).to(F64))


@pytest.mark.parametrize("init", ["sequence", "imagenet"])
@pytest.mark.parametrize("compartments", [2, 4, 5])
def test_the_start_is_that_of_pmsn(compartments, init):
    """The same seed gives the same physical system as PMSN's published start, leak of the soma and feedback absent."""
    neurons = []
    for make in (MSN, PMSN):
        torch.manual_seed(0)
        neurons.append(make(64, compartments, init=init).double())
    neuron, other = neurons
    assert_same(neuron.log_dt, other.log_dt)
    assert_same(neuron.gamma[:, -1], other.D)
    assert_close(
        neuron.matrix(F64).diagonal(dim1=1, dim2=2), torch.full_like(neuron.log_tau, -0.5), "initial_values"
    )
    assert_same(neuron.weights(F64).leak, torch.ones(64, dtype=F64))
    assert_same(neuron.weights(F64).back, torch.zeros(64, compartments - 1, dtype=F64))
    impulse = torch.zeros(40, 1, 64, dtype=F64)
    impulse[0] = 1
    neuron.v_threshold = 1e6  # no spike: the membrane is the running sum of the drives
    a, w, d = other.weights(F64)
    kernel = (w.unsqueeze(-1) * a.unsqueeze(-1) ** torch.arange(40)).sum(1).real
    kernel[:, 0] += d
    # PMSN's frequencies were float32 numbers
    assert_close(sequence(neuron, impulse)[2][:, 0].T.float(), torch.cumsum(kernel, 1), "drive")


def test_feedback_is_learned_from_nothing_and_an_absent_leak_is_not_learned():
    neuron = MSN(3)
    assert {name for name, q in neuron.named_parameters() if not q.requires_grad} == {"log_tau_soma"}
    neuron = MSN(3, start={"log_tau_soma": 1.0})
    assert all(q.requires_grad for q in neuron.parameters())
    neuron(5 * randn(30, 4, 3, dtype=F32))[0].sum().backward()
    for name, parameter in neuron.named_parameters():
        assert parameter.grad.any(), name
    assert neuron.beta_down.grad[:, -1].any()


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
    neuron = build(2, compartments, dtype=F64, v_threshold=1e6)
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
    neuron = build(2, compartments, dtype=F64, surrogate=torch.sigmoid, **settings)
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
    neuron = build(2, 3, dtype=F64)
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


# ---------------------------------------------------------------- step, sequence, chunks


@all_settings
@both_dtypes
@pytest.mark.parametrize("compartments", [1, 2, 4])
def test_sequence_is_the_loop(compartments, p, settings):
    """Bit-equal outputs; gradients of spikes, membranes and states to input, states and parameters."""
    if compartments == 1:
        settings = {**settings, "reset_feedback": 0.0}
    neuron = build(3, compartments, dtype=DTYPES[p], **settings)
    x = randn(25, 2, 3, 2, dtype=DTYPES[p])
    v0, h0 = (
        randn(2, 3, 2, seed=5, dtype=DTYPES[p]),
        randn(2, 3, 2, compartments - 1, seed=6, dtype=DTYPES[p]),
    )
    ups = [
        randn(*shape, seed=i, dtype=DTYPES[p])
        for i, shape in enumerate((x.shape, x.shape, v0.shape, h0.shape))
    ]
    results, unused = [], {"allow_unused": True, "materialize_grads": True}
    for path in (loop, sequence, chunks):
        leaves = [t.clone().requires_grad_() for t in (x, v0, h0)]
        s, (v, h), m = path(neuron, leaves[0], tuple(leaves[1:]))
        # the attached floor takes the whole gradient from the residual
        pairs = [(part, up) for part, up in zip((s, m, v, h), ups, strict=True) if part.requires_grad]
        outputs, upstream = zip(*pairs, strict=True)
        grads = torch.autograd.grad(outputs, [*leaves, *neuron.parameters()], upstream, **unused)
        results.append(((s, m, v, h), grads))
    assert 0.05 < results[0][0][0].mean() < 0.95
    for outputs, grads in results[1:]:
        for ours, theirs in zip(outputs, results[0][0], strict=True):
            assert_same(ours, theirs)
        for ours, theirs in zip(grads, results[0][1], strict=True):
            assert_close(ours, theirs, "pmsn_adjoint")


def test_step_is_the_oracle():
    """The loop of the helper is one `step` after another."""
    neuron, x = build(3), randn(12, 2, 3, dtype=F32)
    state, rows = neuron.initial_state(x[0]), []
    for x_t in x:
        s, state, m = neuron.step(x_t, state)
        rows.append((s, m))
    s_seq, last, m_seq = sequence(neuron, x)
    assert_same(s_seq, torch.stack([s for s, _ in rows]))
    assert_same(m_seq, torch.stack([m for _, m in rows]))
    for ours, theirs in zip(last, state, strict=True):
        assert_same(ours, theirs)


@examples(25)
@given(steps=st.integers(0, 30), seed=st.integers(0, 99), data=st.data())
def test_every_chunking_has_equal_bits(steps, seed, data):
    neuron, x = build(2, feedback="membrane", reset_feedback=0.2), randn(steps, 2, 2, seed=seed, dtype=F32)
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=4)))
    sizes = [b - a for a, b in itertools.pairwise([0, *cuts, steps])]
    (s, state, m), (s_, state_, m_) = sequence(neuron, x), chunks(neuron, x, sizes=sizes)
    for ours, theirs in zip((s_, m_, *state_), (s, m, *state), strict=True):
        assert_same(ours, theirs)


def test_a_sequence_takes_the_matrix_exponential_once(monkeypatch):
    taken, exponential = [], torch.linalg.matrix_exp
    monkeypatch.setattr(torch.linalg, "matrix_exp", lambda t: taken.append(t.shape) or exponential(t))
    neuron, x = build(3, 4), randn(10, 2, 3, dtype=F32)
    sequence(neuron, x)
    assert taken == [(3, 6, 6)]
    loop(neuron, x)
    assert len(taken) == 11
    assert "weights" not in neuron.__dict__


def test_compiles_without_graph_breaks():
    neuron, x = build(2, 3), randn(3, 2, 2, dtype=F32)
    compiled = torch.compile(lambda x: neuron.sequence(x, membrane=True), backend="aot_eager", fullgraph=True)
    (s, state, m), (s_, state_, m_) = compiled(x), sequence(neuron, x)
    for ours, theirs in zip((s, m, *state), (s_, m_, *state_), strict=True):
        assert_same(ours, theirs)


@all_paths
def test_causality_of_outputs_and_gradients(how):
    neuron, x = build(3, dtype=F64), randn(20, 2, 3).requires_grad_()
    s, _, m = PATHS[how](neuron, x)
    for t in (0, 7, 19):
        (gx,) = torch.autograd.grad(s[t].sum(), x, retain_graph=True)
        assert not gx[t + 1 :].any()
        changed = x.detach().clone()
        changed[t + 1 :] += 3
        s_, _, m_ = PATHS[how](neuron, changed)
        assert_same(s_[: t + 1], s[: t + 1])
        assert_same(m_[: t + 1], m[: t + 1])


def test_the_feedback_reaches_the_next_step_and_not_its_own():
    """ds[1]/dx[0] runs through the soma alone when the dendrite does not drive it."""
    for feedback, seen in (("residual", 0.25), ("membrane", 1.25)):
        neuron = MSN(1, 2, feedback=feedback).double()
        with torch.no_grad():
            for name, value in (("log_dt", 0.0), ("log_tau", math.inf), ("beta_up", 1.0), ("beta_down", 1.0)):
                getattr(neuron, name).fill_(value)
            neuron.gamma.copy_(torch.tensor([[0.0, 1.0]]))
        x = torch.tensor([1.25, 0.0], dtype=F64).reshape(2, 1, 1)
        _, _, m = sequence(neuron, x)
        # 1.25 V fire, 0.25 V remain; the dendrite then hands on what it saw of the soma
        assert m.flatten().tolist() == [1.25, 0.25 + seen]


def test_truncated_backpropagation():
    """A detached state cuts the gradient at the chunk and nothing else."""
    neuron, x = build(3, dtype=F64), randn(30, 2, 3).requires_grad_()
    s_1, state, _ = sequence(neuron, x[:20])
    s_2, _, _ = sequence(neuron, x[20:], tuple(part.detach() for part in state))
    assert_same(torch.cat([s_1, s_2]), sequence(neuron, x)[0])
    (cut,) = torch.autograd.grad(s_2.sum(), x, retain_graph=True)
    assert not cut[:20].any()
    assert cut[20:].any()
    s_2, _, _ = sequence(neuron, x[20:], state)
    (whole,) = torch.autograd.grad(s_2.sum(), x)
    assert whole[:20].any()
    assert_close(whole[20:], cut[20:], "pmsn_adjoint")


@all_paths
def test_batch_rows_and_channels_are_independent(how):
    neuron, x = build(3), randn(20, 4, 3, dtype=F32)
    s, _, m = PATHS[how](neuron, x)
    changed = x.clone()
    changed[:, 2, 1] += 2
    s_, _, m_ = PATHS[how](neuron, changed)
    same = torch.ones(4, 3, dtype=torch.bool)
    same[2, 1] = False
    assert_same(s_[:, same], s[:, same])
    assert_same(m_[:, same], m[:, same])
    assert (m_[:, 2, 1] != m[:, 2, 1]).all()


def test_lengths_are_samples_of_their_own():
    neuron, x = build(3, reset_feedback=0.3, feedback="membrane"), randn(12, 4, 3, dtype=F32)
    lengths = [12, 0, 5, 7]
    garbage = x.clone()
    for n, length in enumerate(lengths):
        garbage[length:, n] = math.nan
    s, (v, h), m = neuron.sequence(garbage, membrane=True, lengths=lengths)
    for n, length in enumerate(lengths):
        s_, (v_, h_), m_ = sequence(neuron, x[:length, n : n + 1])
        assert_same(s[:length, n : n + 1], s_)
        assert_same(m[:length, n : n + 1], m_)
        assert not s[length:, n].any()
        assert_same(v[n : n + 1], v_)
        assert_same(h[n : n + 1], h_)


# ---------------------------------------------------------------- shapes, dtypes, bad numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, F32, F64])
@pytest.mark.parametrize("compartments", [1, 3])
def test_states_are_float32_or_float64(dtype, compartments):
    neuron = build(3, compartments, dtype=F64 if dtype == F64 else F32)
    x = (torch.randint(-96, 97, (20, 4, 3, 2), generator=torch.Generator().manual_seed(0)) / 32).to(dtype)
    x.requires_grad_()
    s, (v, h), m = sequence(neuron, x)
    state = F64 if dtype == F64 else F32
    assert (s.dtype, v.dtype, h.dtype, m.dtype) == (dtype, state, state, state)
    assert (s.shape, v.shape, h.shape) == (x.shape, (4, 3, 2), (4, 3, 2, compartments - 1))
    assert neuron.state_spec(x[0]) == ((v.shape, state), (h.shape, state))
    assert_same(s.to(state), sequence(neuron, x.detach().to(state))[0])
    (gx,) = torch.autograd.grad(s.sum(), x)
    assert gx.dtype == dtype
    assert gx.any()


def test_half_parameters_compute_in_float32():
    neuron, x = build(3).to(torch.bfloat16), randn(20, 2, 3).to(torch.bfloat16)
    s, (v, h), _ = sequence(neuron, x)
    assert (s.dtype, v.dtype, h.dtype) == (torch.bfloat16, F32, F32)
    assert_same(s.float(), sequence(copy.deepcopy(neuron).float(), x.float())[0])


@all_paths
@pytest.mark.parametrize("shape", [(0, 2, 3), (6, 0, 3), (6, 2, 3, 0)])
def test_empty_inputs(shape, how):
    neuron = build(3)
    state = tuple(torch.full_like(part, 0.5) for part in neuron.initial_state(torch.empty(shape[1:])))
    path = sequence if shape[0] == 0 else PATHS[how]
    s, last, m = path(neuron, torch.empty(shape), state)
    assert s.shape == m.shape == shape
    for ours, theirs in zip(last, state, strict=True):
        assert ours.shape == theirs.shape
        if shape[0] == 0:
            assert_same(ours, theirs)


@pytest.mark.parametrize("compartments", [1, 3])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_input_silences_its_own_lane_from_then_on(bad, compartments):
    neuron, x = build(3, compartments), randn(30, 2, 3, dtype=F32) * 2
    clean, _, m_clean = sequence(neuron, x)
    x[12, 1, 2] = bad
    s, (v, h), m = sequence(neuron, x)
    assert clean[12:, 1, 2].any()
    assert not s[12:, 1, 2].any()
    assert m[12:, 1, 2].isnan().all()
    assert v[1, 2].isnan()
    assert h[1, 2].isnan().all()
    m[12:, 1, 2] = m_clean[12:, 1, 2]
    assert_same(m, m_clean)


@pytest.mark.parametrize(
    ("channel_dim", "shape"),
    [(1, (2, 6, 4)), (-1, (2, 5, 6)), ((1, 2), (2, 2, 3, 5)), ([-2, -1], (2, 5, 3, 2))],
)
def test_channel_axis_anywhere(channel_dim, shape):
    neuron, plain = build(6, channel_dim=channel_dim, dtype=F64), build(6, dtype=F64)
    x = randn(20, *shape)
    s, (v, h), m = sequence(neuron, x)
    dims = channel_dim if isinstance(channel_dim, tuple | list) else (channel_dim,)
    axes = [d % len(shape) for d in dims]

    def flat(t, lead):
        """Channels last, all else in front."""
        rest = [i for i in range(len(shape)) if i not in axes]
        order = [*range(lead), *(i + lead for i in (*rest, *axes)), *range(len(shape) + lead, t.dim())]
        return t.permute(order).reshape(*t.shape[:lead], -1, 6, *t.shape[len(shape) + lead :])

    s_, (v_, h_), m_ = sequence(plain, flat(x, 1))
    assert s.sum() > 0
    for ours, theirs in ((flat(s, 1), s_), (flat(m, 1), m_), (flat(v, 0), v_), (flat(h, 0), h_)):
        assert_close(ours, theirs, "drive")


@pytest.mark.parametrize("view", ["transposed", "expanded", "strided"])
def test_views_equal_their_contiguous_copy(view):
    base = randn(12, 6, 3, 4, dtype=F32)
    x = {
        "transposed": base.transpose(0, 1)[:, :3].transpose(1, 2).contiguous().transpose(1, 2),
        "expanded": base[:, :1, :, :1].expand(12, 5, 3, 2),
        "strided": base[::2, ::2, :, ::3],
    }[view]
    x = x if x.shape[2] == 3 else x.permute(0, 1, 3, 2)[:, :, :3]
    assert not x.is_contiguous()
    neuron = build(3)
    s, _, m = sequence(neuron, x)
    s_, _, m_ = sequence(neuron, x.contiguous())
    assert_same(s, s_)
    assert_same(m, m_)


# ---------------------------------------------------------------- surrogates and backends


@pytest.mark.parametrize("surrogate", ["rectangular", "atan", "sigmoid", Surrogate("triangle", 0.25)])
def test_other_surrogates_change_the_gradient_only(surrogate):
    x = randn(20, 2, 3).requires_grad_()
    s, _, _ = sequence(build(3, dtype=F64), x)
    s_, _, _ = sequence(build(3, dtype=F64, surrogate=surrogate), x)
    assert_same(s_, s)
    (g,), (g_,) = torch.autograd.grad(s.sum(), x), torch.autograd.grad(s_.sum(), x)
    assert not torch.allclose(g, g_)


@pytest.mark.parametrize("mode", ["subtract", "floor"])
def test_a_strict_callable_decides_what_is_taken(mode):
    """Where a callable stays silent at a tie the threshold stays too: no spike is lost."""
    neuron = MSN.lif(1, 1.0, reset_mode=mode, surrogate=lambda u: (u > 0).to(u.dtype))
    s, (v, _), m = sequence(neuron, torch.tensor([1.0, 0.25]).reshape(2, 1, 1))
    assert s.flatten().tolist() == [0, 1]
    assert m.flatten().tolist() == [1.0, 1.25]
    assert v.item() == 0.25


def test_a_backend_without_a_kernel_raises(monkeypatch):
    monkeypatch.setitem(BACKENDS, "other", "msf_pmsn_plugins.backends.torch_backend")
    with pytest.raises(ValueError, match="backend 'other' has no kernel for MSN: set backend='auto'"):
        MSN(3, backend="other")
    neuron = MSN(3)
    neuron.backend = "other"
    with pytest.raises(ValueError, match="no kernel"):
        neuron(torch.zeros(2, 1, 3))
    neuron.backend = "torch"
    neuron(torch.zeros(2, 1, 3))
    assert neuron.supported_backends == ("auto", "torch")


# ---------------------------------------------------------------- construction, errors, saving


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"compartments": 0}, ValueError, "compartments must be an integer, at least 1, got 0"),
        ({"compartments": 2.0}, ValueError, "at least 1, got 2.0"),
        ({"compartments": True}, ValueError, "at least 1, got True"),
        ({"channels": 0}, ValueError, "channels must be a positive integer or None"),
        ({"channel_dim": "1"}, TypeError, "channel_dim must be an integer or a tuple"),
        ({"channel_dim": ()}, TypeError, "channel_dim must be an integer or a tuple"),
        ({"v_threshold": 0}, ValueError, "v_threshold must be positive, got 0"),
        ({"v_threshold": -1.0}, ValueError, "v_threshold must be positive"),
        ({"v_threshold": math.inf}, ValueError, "v_threshold must be a finite number"),
        ({"reset_mode": "hard"}, ValueError, "unknown reset_mode 'hard'; known: subtract, floor"),
        ({"feedback": "soma"}, ValueError, "unknown feedback 'soma'; known: residual, membrane"),
        ({"reset_feedback": "a"}, TypeError, "reset_feedback must be a finite number"),
        ({"compartments": 1, "reset_feedback": 0.5}, ValueError, "one compartment only: leave it 0"),
        ({"init": "shd"}, ValueError, "couples the soma to every compartment.*known: sequence, imagenet"),
        ({"init": "mnist"}, ValueError, "init 'mnist' .unknown.; known: sequence, imagenet"),
        ({"surrogate": "step"}, ValueError, "unknown surrogate"),
        ({"backend": "cuda"}, ValueError, "unknown backend"),
        ({"start": {"tau": 1.0}}, ValueError, "start has 'tau', which is no parameter.*log_tau_soma"),
        (
            {"compartments": 1, "start": {"beta_up": 1.0}},
            ValueError,
            "no parameter of an MSN with 1 compartments",
        ),
        (
            {"start": {"gamma": (1.0, 2.0)}},
            ValueError,
            r"start\['gamma'\] is a number or 5 of them, got \(1.0, 2.0\)",
        ),
        ({"start": {"log_dt": (1.0, 2.0)}}, ValueError, r"start\['log_dt'\] is a number, got"),
        ({"start": {"gamma": math.inf}}, ValueError, r"start\['gamma'\] must be finite, got inf"),
        ({"start": {"log_tau": -math.inf}}, ValueError, "must be finite, or inf for no leak, got -inf"),
        ({"start": {"log_tau": math.nan}}, ValueError, "must be finite, or inf for no leak, got nan"),
        ({"start": {"gamma": "one"}}, TypeError, r"start\['gamma'\] is made of numbers, got 'one'"),
    ],
)
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        MSN(**{"channels": 3, **kwargs})


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5, math.nan])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match="decay"):
        MSN.lif(3, decay)


@pytest.mark.parametrize(
    "couplings", [(0.0, 0.5), (-1.0, 0.5), (0.5, 0.5), (-0.5, 0.0), (-0.5, 1.0), (-0.5, -0.5)]
)
def test_bad_couplings(couplings):
    with pytest.raises(ValueError, match=r"beta_[12] must lie in \((-1, 0|0, 1)\), got"):
        MSN.tc_lif(3, *couplings)


def test_bad_inputs():
    neuron = MSN(3)
    with pytest.raises(ValueError, match="this MSN has 3 channels, but axis 1 of one step .2, 4. has 4"):
        neuron(torch.zeros(5, 2, 4))
    with pytest.raises(ValueError, match="channel_dim=1 counts in the per-step tensor"):
        neuron(torch.zeros(5, 2))
    with pytest.raises(TypeError, match="floating-point"):
        neuron(torch.zeros(5, 2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="left by another batch"):
        neuron(torch.zeros(5, 2, 3), neuron.initial_state(torch.zeros(4, 3)))
    with pytest.raises(ValueError, match=r"a tuple of 2 tensors \('v', 'h'\)"):
        neuron(torch.zeros(5, 2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="cannot take the channel count"):
        MSN()(torch.zeros(5, 2, 0))
    neuron.v_threshold = -1.0
    with pytest.raises(ValueError, match="v_threshold must be positive"):
        neuron(torch.zeros(5, 2, 3))


def test_channels_from_the_first_input():
    neuron = MSN(start={"log_tau_soma": 1.0})
    assert neuron.channels is None
    held = list(neuron.parameters())
    with pytest.raises(RuntimeError, match="channel count is not known yet"):
        neuron.state_dict()
    with pytest.raises(RuntimeError, match="channel count is not known yet"):
        neuron.weights()
    torch.manual_seed(3)
    neuron(torch.zeros(1, 2, 7))
    assert neuron.channels == 7
    assert all(a is b for a, b in zip(held, neuron.parameters(), strict=True))
    torch.manual_seed(3)
    for ours, theirs in zip(
        neuron.parameters(), MSN(7, start={"log_tau_soma": 1.0}).parameters(), strict=True
    ):
        assert_same(ours, theirs)


@pytest.mark.parametrize("make", [MSN.lif, MSN.tc_lif, MSN])
def test_born_in_inference_mode_it_still_trains(make):
    neuron = make()
    with torch.inference_mode():
        neuron(torch.zeros(1, 2, 3))
    neuron.gamma.requires_grad = True
    neuron(torch.ones(2, 2, 3))[0].sum().backward()
    assert neuron.gamma.grad is not None


@pytest.mark.parametrize("compartments", [1, 2, 5])
def test_state_dict_round_trip(compartments):
    neuron, x = build(3, compartments), randn(15, 2, 3, dtype=F32)
    saved = neuron.state_dict()
    names = PARAMETERS if compartments > 1 else ("log_dt", "log_tau_soma", "gamma")
    assert set(saved) == set(names)
    count = 2 + compartments + 3 * (compartments - 1)
    assert sum(q.numel() for q in neuron.parameters()) == 3 * count
    for fresh in (MSN(3, compartments), MSN(None, compartments)):
        fresh.load_state_dict(saved)
        assert_same(sequence(fresh, x)[2], sequence(neuron, x)[2])
    held = torch.nn.Module()
    held.neuron = neuron
    fresh = MSN(None, compartments)
    fresh.load_state_dict(held.state_dict())
    assert_same(sequence(fresh, x)[2], sequence(neuron, x)[2])
    for twin in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert_same(sequence(twin, x)[2], sequence(neuron, x)[2])
    with pytest.raises(RuntimeError, match="size mismatch"):
        MSN(3, compartments + 1).load_state_dict({**saved, **dict.fromkeys(PARAMETERS, saved["gamma"])})


def test_extra_repr_says_what_it_is():
    assert repr(MSN(3, 4, v_threshold=0.5, feedback="membrane", reset_feedback=0.25)) == (
        "MSN(channels=3, compartments=4, channel_dim=1, v_threshold=0.5, reset_mode='subtract', feedback='membrane', "
        "reset_feedback=0.25, detach_reset=True, init='sequence', backend='auto')"
    )


def test_an_optimizer_with_an_l2_penalty_leaves_an_absent_leak_alone():
    neuron = MSN(3)
    trained = torch.optim.SGD([q for q in neuron.parameters() if q.requires_grad], 0.1, weight_decay=0.1)
    everything = torch.optim.SGD(neuron.parameters(), 0.1, weight_decay=0.1)
    for optimizer in (trained, everything):
        optimizer.zero_grad()
        neuron(5 * randn(20, 2, 3, dtype=F32))[0].sum().backward()
        optimizer.step()
    assert neuron.log_tau_soma.isinf().all()
    assert all(not q.isnan().any() for q in neuron.parameters())


# ---------------------------------------------------------------- docs


def test_the_example_of_the_page_prints_what_stands_below_it():
    page = (ROOT / "docs" / "msn.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    shown = re.findall(r"```text\n(.*?)```", page[page.index(code) :], flags=re.DOTALL)[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/msn.md", "exec"), {})
    assert printed.getvalue().splitlines() == shown.splitlines()
